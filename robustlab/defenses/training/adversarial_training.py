"""Adversarial training.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks" (2018),
equation (2.1): train on the worst input of a ball instead of the given one,

    minimize_θ  E_(x, y) [ max_{‖δ‖_p ≤ ε, x + δ ∈ box}  CE(model_θ(x + δ), y) ]

The inner maximum is approached by PGD from a random start, and its last iterate is trained on. Different here: the
mode in which batch norm runs while crafting is explicit, and epsilon may grow over the first part of the training,
without which a small net on few images can stay at chance for a large epsilon.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.geometry.norms import ProperNorm
from robustlab.models.modes import evaluating, frozen

__all__ = ["adversarial_training"]

CraftMode = Literal["eval", "train"]


class AdversarialTraining:
    """The objective that :func:`adversarial_training` returns."""

    takes_labels = True

    def __init__(
        self, norm: ProperNorm, eps: float, steps: int, step_size: float, warmup: float, craft_mode: CraftMode,
        bounds: tuple[float, float],
    ) -> None:  # fmt: skip
        self.norm, self.eps, self.steps, self.step_size = norm, eps, steps, step_size
        self.warmup, self.craft_mode, self.bounds = warmup, craft_mode, bounds
        self.scale = 1.0 if warmup == 0 else 0.0

    def set_progress(self, fraction: float) -> None:
        """Set epsilon for the part of the training that is over; :func:`robustlab.training.fit.fit` calls this."""
        self.scale = 1.0 if self.warmup == 0 else min(1.0, fraction / self.warmup)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean cross-entropy at the crafted inputs."""
        checks.images(x, self.bounds)  # crafting would clip what is outside
        if self.scale > 0:
            x = self._craft(model, x, y, ids, seed)
        return F.cross_entropy(model(x), y)

    def _craft(self, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, seed: int) -> Tensor:
        with evaluating(model) if self.craft_mode == "eval" else frozen(model):
            return pgd_maximize(
                model, x, y, norm=self.norm, eps=self.scale * self.eps, steps=self.steps,
                step_size=self.scale * self.step_size, seed=seed, ids=ids, bounds=self.bounds,
            )  # fmt: skip


def adversarial_training(
    *,
    norm: ProperNorm = "linf",
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    warmup: float = 0.0,
    craft_mode: CraftMode = "eval",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> AdversarialTraining:
    """An objective for :func:`robustlab.training.fit.fit`: cross-entropy at PGD's last iterate.

        loss = 1/N Σ_i CE(model(x_i + δ_i), y_i),  δ_i from K steps of PGD on CE in the ball of radius ε

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius of the ball, in units of x, above 0.
        steps: K, at least 1; default 10.
        step_size: of one PGD step, in units of x; None means 2.5·eps/steps.
        warmup: part of the training, in [0, 1], over which epsilon (and the step size) grows linearly from 0; the
            paper has none (the default, 0).
        craft_mode: ``"eval"`` crafts with batch norm's running statistics and dropout off, as an attacker will
            meet the model, and leaves the statistics to the training forward alone; ``"train"`` crafts in train
            mode, as the paper's code does, so that batch norm's statistics move at each PGD step too. The two agree
            for a model without such layers.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``; the random start depends on the step's seed and the sample's id.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Madry et al. (2018), equation (2.1) and section 5. Departures: the warm-up, and eval mode while crafting.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.positive("eps", eps)
    checks.at_least("steps", steps, 1, integer=True)
    if step_size is not None:
        checks.positive("step_size", step_size)
    checks.at_least("warmup", warmup, 0.0)
    checks.at_most("warmup", warmup, 1)
    checks.one_of("craft_mode", craft_mode, ("eval", "train"))
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds: want low < high, got {bounds}")
    step = 2.5 * eps / steps if step_size is None else step_size
    return AdversarialTraining(norm, eps, steps, step, warmup, craft_mode, bounds)
