"""Adversarial training.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks" (2018),
equation (2.1): train on the worst input of a ball instead of the given one,

    minimize_θ  E_(x, y) [ max_{‖δ‖_p ≤ ε, x + δ ∈ box}  CE(model_θ(x + δ), y) ]

The inner maximum is approached by PGD from a random start, and its last iterate is trained on. With ``steps=1`` that is
the single-step training of Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial training" (2020):
one signed step of 1.25·ε from a uniform start. It may fail all at once: the net learns to fool the one step and loses
all robustness. Hence the check, ``check_every``.

Different here: the mode in which batch norm runs while crafting is explicit, epsilon may grow over the first part of
the training, without which a small net on few images can stay at chance for a large epsilon, and the weights may be
perturbed as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.victim import Victim
from robustlab.attacks.whitebox.pgd import pgd, pgd_maximize
from robustlab.data import Dataset
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.defenses.training.crafting import Ball, CraftMode, InBall, at_worst_weights
from robustlab.geometry.keyed import derive_seed
from robustlab.geometry.norms import ProperNorm
from robustlab.models.modes import evaluating
from robustlab.training.resuming import with_arguments

__all__ = ["OverfittingCheck", "adversarial_training", "robust_validation"]

CHECK_STEPS = 10  # steps of the PGD that checks
SUSPICIOUS = 0.2  # this gap of accuracies is no longer that of a stronger attack


@dataclass(frozen=True)
class OverfittingCheck:
    """What training saw on one of its batches, in evaluation mode.

    Attributes:
        done: the part of the training that was over, in [0, 1).
        crafted: accuracy on the inputs that it trains on.
        pgd: accuracy under 10 steps of PGD in the same ball.
    """

    done: float
    crafted: float
    pgd: float

    @property
    def catastrophic(self) -> bool:
        """Whether the net withstands what it trains on, and not the stronger attack."""
        return self.crafted - self.pgd > SUSPICIOUS


class AdversarialTraining(InBall):
    """The objective that :func:`adversarial_training` returns; ``checks`` holds what its checks saw."""

    def __init__(self, ball: Ball, weight_perturbation: float, check_every: int) -> None:
        super().__init__(ball)
        self.weight_perturbation, self.check_every = weight_perturbation, check_every
        self.checks: list[OverfittingCheck] = []
        self.calls, self.done = 0, 0.0

    def set_progress(self, fraction: float) -> None:
        """As of all objectives in a ball; the checks say how far the training was, too."""
        super().set_progress(fraction)
        self.done = fraction

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean cross-entropy at the crafted inputs."""
        self.ball.check(x)
        with self.ball.holding(model):
            x_adv = self.ball.maximize(model, x, y, ids=ids, seed=seed)
        if self.check_every and self.calls % self.check_every == 0:
            self._check(model, x, x_adv, y, ids, seed)
        self.calls += 1
        return at_worst_weights(model, lambda net: F.cross_entropy(net(x_adv), y), self.weight_perturbation)

    def _check(self, model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, ids: Tensor, seed: int) -> None:
        """Compare what is trained on with PGD, as Wong et al. (2020) do on a minibatch of each epoch."""
        ball = self.ball
        with evaluating(model), torch.no_grad():
            strong = pgd_maximize(
                model, x, y, norm=ball.norm, eps=ball.scale * ball.eps, steps=CHECK_STEPS, seed=derive_seed(seed, 1),
                ids=ids, bounds=ball.bounds,
            )  # fmt: skip
            crafted, pgd = (float((model(at).argmax(dim=1) == y).double().mean()) for at in (x_adv, strong))
        seen = OverfittingCheck(self.done, crafted, pgd)
        if seen.catastrophic and not (self.checks and self.checks[-1].catastrophic):
            checks.warn(
                f"adversarial_training: catastrophic overfitting: accuracy is {crafted:.0%} on what is trained on, and "
                f"{pgd:.0%} under PGD-{CHECK_STEPS}; take more steps, a smaller eps or step_size, or stop before here"
            )
        self.checks.append(seen)


@with_arguments
def adversarial_training(
    *,
    norm: ProperNorm = "linf",
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    warmup: float = 0.0,
    craft_mode: CraftMode = "eval",
    bounds: tuple[float, float] = (0.0, 1.0),
    weight_perturbation: float = 0.0,
    check_every: int = 0,
) -> AdversarialTraining:
    """An objective for :func:`robustlab.training.fit.fit`: cross-entropy at PGD's last iterate.

        loss = 1/N Σ_i CE(model(x_i + δ_i), y_i),  δ_i from K steps of PGD on CE in the ball of radius ε

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius of the ball, in units of x, above 0 and no wider than the box.
        steps: K, at least 1; default 10. One is single-step training.
        step_size: of one PGD step, in units of x; None means 2.5·eps/steps, and 1.25·eps for a single step.
        warmup: part of the training, in [0, 1], over which epsilon (and the step size) grows linearly from 0; the
            paper has none (the default, 0).
        craft_mode: ``"eval"`` crafts with batch norm's running statistics and dropout off, as an attacker will
            meet the model, and leaves the statistics to the training forward alone; ``"train"`` crafts in train
            mode, as the paper's code does, so that batch norm's statistics move at each PGD step too. The two agree
            for a model without such layers.
        bounds: the box of the inputs; a batch outside it is refused.
        weight_perturbation: γ of adversarial weight perturbation (Wu et al., 2020), relative to each weight tensor's
            length, such as 0.01; 0, the default, is none. It costs one more training pass.
        check_every: after so many batches in turn, beginning with the first, 10 steps of PGD attack the batch too, and
            a gap of more than 0.2 in accuracy warns of catastrophic overfitting; 0, the default, never.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``; the random start depends on the step's seed and the sample's id.
        Its list ``checks`` holds an :class:`OverfittingCheck` for each check.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Madry et al. (2018), equation (2.1) and section 5; Wong et al. (2020), algorithm 3, for one step. Departures:
        the warm-up, and eval mode while crafting. The check compares two attacks on one batch, where Wong et al.
        compare PGD's accuracy with that of the epoch before.
    """
    checks.not_negative("weight_perturbation", weight_perturbation)
    checks.at_least("check_every", check_every, 0, integer=True)
    ball = Ball(norm, eps, steps, step_size, warmup, craft_mode, bounds)
    return AdversarialTraining(ball, weight_perturbation, check_every)


def robust_validation(
    data: Pairs,
    *,
    norm: ProperNorm = "linf",
    eps: float,
    steps: int = 10,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Callable[[nn.Module], float]:
    """What ``fit(..., validate=)`` takes to stop early: the accuracy under PGD on samples that are not trained on.

    Adversarial training overfits: its robust accuracy on other samples falls while the training loss still does.

    Args:
        data: a pair (x, y) held out of the training data, as :func:`robustlab.data.hold_out` makes it, or a loader.
            A Dataset is refused, since what it holds beside its training data is for the end.
        norm, eps, steps, seed: of :func:`~robustlab.attacks.pgd`; steps by default 10.
        bounds: the box of the inputs.

    Returns:
        A function of a model, in [0, 1]; the data move to the model's device.

    Raises:
        ValueError, TypeError: for wrong or empty data, before any work.

    Source:
        Rice, Wong and Kolter, "Overfitting in adversarially robust deep learning" (2020), section 5.
    """
    if isinstance(data, Dataset):
        raise TypeError("data: want a pair held out of the training data, as data.hold_out makes it, got a Dataset")
    x, y = read_labeled(data)
    checks.images(x, bounds, takes="bounds={}")
    ball = Ball(norm, eps, steps, None, 0.0, "eval", bounds)

    def robust_accuracy(model: nn.Module) -> float:
        home = next(model.parameters()).device
        victim = Victim(model, bounds=bounds)
        fooled = pgd(victim, x.to(home), y.to(home), norm=ball.norm, eps=ball.eps, steps=ball.steps, seed=seed).success
        return 1.0 - float(fooled.double().mean())

    return robust_accuracy
