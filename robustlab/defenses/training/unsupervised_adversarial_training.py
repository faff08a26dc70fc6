"""Unsupervised adversarial training (UAT).

Alayrac, Uesato, Huang, Fawzi, Stanforth and Kohli, "Are labels required for improving adversarial robustness?" (2019),
section 3. The robust error is at most the natural error plus the share of inputs around which the prediction changes,
and the second needs no labels. To adversarial training on the labeled data a term for the unlabeled data is added:

    online targets (UAT-OT)   E_x max_δ KL(p_θ̂(x) ‖ p_θ(x + δ))      θ̂ is θ, without a gradient through it
    fixed targets (UAT-FT)    E_x max_δ CE(model_θ(x + δ), ŷ(x))      ŷ from a net trained on the labeled data
    both (UAT++)              their sum, each with a δ of its own

    loss = E_(x, y) max_δ CE(model_θ(x + δ), y) + λ·term

Different here: a batch holds labeled and unlabeled samples as they come, and each expectation is the mean over its own.
The authors published no training code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.data.parts import UNLABELED
from robustlab.defenses.training.crafting import Ball, CraftMode, InBall, divergence
from robustlab.defenses.training.pseudo import PseudoLabels
from robustlab.geometry.keyed import derive_seed
from robustlab.geometry.norms import ProperNorm
from robustlab.training.resuming import with_arguments

__all__ = ["unsupervised_adversarial_training"]

Targets = Literal["online", "fixed", "both"]
Losses = Callable[..., Tensor]


class UnsupervisedAdversarialTraining(InBall):
    """The objective that :func:`unsupervised_adversarial_training` returns."""

    def __init__(self, ball: Ball, targets: Targets, pseudo: PseudoLabels, lam: float) -> None:
        super().__init__(ball)
        self.targets, self.pseudo, self.lam = targets, pseudo, lam
        self.check_labels = pseudo.check

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """Cross-entropy at the crafted inputs of labeled samples, and λ times the term of those whose y is −1."""
        self.ball.check(x)
        missing, label = y == UNLABELED, self.pseudo.fill(y, ids)
        with self.ball.holding(model):
            if self.targets != "fixed":
                with torch.no_grad():
                    target = model(x)

            def to_label(logits: Tensor, *_: object) -> Tensor:
                return F.cross_entropy(logits, label, reduction="none")

            def to_target(logits: Tensor, *_: object) -> Tensor:
                return divergence(target, logits)

            def to_either(logits: Tensor, *_: object) -> Tensor:
                return torch.where(missing, to_target(logits), to_label(logits))

            first = to_either if self.targets == "online" else to_label
            x_adv = self._worst(model, x, y, ids, seed, first)
            if self.targets == "both":
                x_other = self._worst(model, x, y, ids, derive_seed(seed, 1), to_target)
        logits = model(x_adv)
        term = _mean(first(logits), missing)
        if self.targets == "both":
            term = term + _mean(to_target(model(x_other)), missing)
        return _mean(first(logits), ~missing) + self.lam * term

    def _worst(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, seed: int, loss: Losses) -> Tensor:
        return self.ball.maximize(model, x, y, ids=ids, seed=seed, loss=lambda *given: -loss(*given))


def _mean(values: Tensor, over: Tensor) -> Tensor:
    """The mean over some of the rows; 0 where there are none."""
    return torch.where(over, values, 0.0).sum() / over.sum().clamp_min(1)


@with_arguments
def unsupervised_adversarial_training(
    *,
    targets: Targets = "online",
    pseudo_labels: Tensor | None = None,
    lam: float = 1.0,
    norm: ProperNorm = "linf",
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    warmup: float = 0.0,
    craft_mode: CraftMode = "eval",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> UnsupervisedAdversarialTraining:
    """An objective for :func:`robustlab.training.fit.fit`: adversarial training, and a term for unlabeled samples.

        loss = mean over labeled CE(model(x_i + δ_i), y_i) + λ · mean over unlabeled of
               KL(p(x_i) ‖ p(x_i + δ_i))  (online)   or   CE(model(x_i + δ_i), ŷ_i)  (fixed)   or their sum (both)

    The data are pairs in which a label of −1 says that it is not known. No gradient goes through p(x_i).

    Args:
        targets: ``"online"``, ``"fixed"`` or ``"both"``.
        pseudo_labels: ŷ (N,), one for each row of the data, as
            :func:`~robustlab.defenses.training.robust_self_training.pseudo_label` gives them; needed for fixed targets.
        lam: λ, at least 0; default 1. The paper chooses it on validation data.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius of the ball, in units of x, above 0 and no wider than the box.
        steps: K, at least 1; default 10.
        step_size: of one PGD step, in units of x; None means 2.5·eps/steps, and 1.25·eps for a single step.
        warmup: part of the training, in [0, 1], over which epsilon grows linearly from 0; default 0, as in the paper.
        craft_mode: ``"eval"`` or ``"train"``; see
            :func:`~robustlab.defenses.training.adversarial_training.adversarial_training`. Online targets are read in
            that mode.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``.

    Raises:
        ValueError, TypeError: for an argument out of its range; from ``fit``, before any work, also for fixed targets
            where rows have neither a label nor a pseudo-label.

    Source:
        Alayrac et al. (2019), section 3.
    """
    checks.one_of("targets", targets, ("online", "fixed", "both"))
    checks.not_negative("lam", lam)
    pseudo = PseudoLabels(pseudo_labels, wanted=targets != "online")
    return UnsupervisedAdversarialTraining(
        Ball(norm, eps, steps, step_size, warmup, craft_mode, bounds), targets, pseudo, lam
    )
