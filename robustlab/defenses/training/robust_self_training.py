"""Robust self-training.

Carmon, Raghunathan, Schmidt, Liang and Duchi, "Unlabeled data improves adversarial robustness" (2019), algorithm 1. How
a net behaves around an input can be trained without the input's label, and a label that is wrong now and then does
little harm. So:

1. train a net in the standard way on the labeled data (robustness would cost accuracy here);
2. let it label the rest, once: :func:`pseudo_label`;
3. train a net robustly on all of it, the pseudo-labels weighted by w, with the loss of TRADES.

Different here: of the paper's two robust losses this is the adversarial one; the other, stability under Gaussian noise,
belongs to randomized smoothing. A batch holds labeled and unlabeled samples as they come, where the paper's holds half
of each.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.victim import predict
from robustlab.data.pairs import Pairs, read_pair
from robustlab.data.parts import UNLABELED
from robustlab.defenses.training.crafting import Ball, CraftMode, InBall, divergence
from robustlab.defenses.training.pseudo import PseudoLabels
from robustlab.defenses.training.trades import most_divergent
from robustlab.geometry.norms import ProperNorm
from robustlab.training.resuming import with_arguments

__all__ = ["pseudo_label", "robust_self_training"]


class RobustSelfTraining(InBall):
    """The objective that :func:`robust_self_training` returns."""

    def __init__(self, ball: Ball, pseudo: PseudoLabels, weight: float, beta: float) -> None:
        super().__init__(ball)
        self.pseudo, self.weight, self.beta = pseudo, weight, beta
        self.check_labels = pseudo.check

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The weighted mean of TRADES' loss, with pseudo-labels where y is −1."""
        self.ball.check(x)
        label = self.pseudo.fill(y, ids)
        weight = 1.0 + (self.weight - 1.0) * (y == UNLABELED).to(x.dtype)
        x_adv = most_divergent(model, x, label, self.ball, ids=ids, seed=seed)
        clean = model(x)
        losses = F.cross_entropy(clean, label, reduction="none") + self.beta * divergence(clean, model(x_adv))
        return (weight * losses).sum() / weight.sum()


def pseudo_label(teacher: nn.Module, data: Pairs) -> Tensor:
    """The labels of all rows: their own, and the teacher's prediction where that is −1.

    Args:
        teacher: gives logits (N, K); asked in evaluation mode.
        data: a pair (x, y), such as :func:`robustlab.data.hide_labels` makes, or a loader of such pairs.

    Returns:
        int64 (N,), on the device of y.

    Source:
        Carmon et al. (2019), algorithm 1, lines 1 and 2, where the teacher is trained in the standard way.
    """
    x, y = read_pair(data)
    checks.at_home(teacher, x, "data")
    return torch.where(y == UNLABELED, predict(teacher, x).to(y.device), y)


@with_arguments
def robust_self_training(
    *,
    pseudo_labels: Tensor | None = None,
    weight: float = 1.0,
    norm: ProperNorm = "linf",
    eps: float,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | None = None,
    warmup: float = 0.0,
    craft_mode: CraftMode = "eval",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> RobustSelfTraining:
    """An objective for :func:`robustlab.training.fit.fit`: TRADES on labels and pseudo-labels.

        loss = Σ_i w_i·[ CE(model(x_i), ŷ_i) + β·KL(p(x_i) ‖ p(x_i + δ_i)) ] / Σ_i w_i,   w_i = 1 or w

    The data are pairs in which a label of −1 says that it is not known.

    Args:
        pseudo_labels: (N,), one for each row of the data, as :func:`pseudo_label` gives them; those of labeled rows are
            not looked at. None is for data that are labeled throughout.
        weight: w of a sample with a pseudo-label, at least 0; default 1.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius of the ball, in units of x, above 0 and no wider than the box.
        beta: β, at least 0; default 6, as in the paper.
        steps: K, at least 1; default 10.
        step_size: of one PGD step, in units of x; None means 2.5·eps/steps, and 1.25·eps for a single step.
        warmup: part of the training, in [0, 1], over which epsilon grows linearly from 0; default 0, as in the paper.
        craft_mode: ``"eval"`` or ``"train"``; see
            :func:`~robustlab.defenses.training.adversarial_training.adversarial_training`.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``.

    Raises:
        ValueError, TypeError: for an argument out of its range; from ``fit``, before any work, also for data with rows
            that have neither a label nor a pseudo-label.

    Source:
        Carmon et al. (2019), algorithm 1 and equation (6).
    """
    checks.not_negative("weight", weight)
    checks.not_negative("beta", beta)
    pseudo = PseudoLabels(pseudo_labels)
    return RobustSelfTraining(Ball(norm, eps, steps, step_size, warmup, craft_mode, bounds), pseudo, weight, beta)
