"""What the objectives of robust training share: the inner maximizer, the worst weights, and a divergence.

Batch norm and dropout make "the model" two functions, so the mode in which inputs are crafted is always said.
``"eval"`` crafts with running statistics and without dropout, as an attacker will meet the model, and leaves the
statistics to the training forward alone. ``"train"`` crafts in train mode, as Madry's code does, and then the
statistics move at each PGD step too. The two agree for a model without such layers. Both put every mode back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robustlab import checks
from robustlab.attacker.domain import Box
from robustlab.attacker.losses import LossFunction, LossName
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.geometry.norms import ProperNorm
from robustlab.models.modes import evaluating, frozen

CraftMode = Literal["eval", "train"]
Forward = Callable[[Tensor], Tensor]
"""A model with given weights: inputs to logits."""


class Ball:
    """The ball around each input in which an objective crafts, and how: PGD's K steps, on a model in a stated mode.

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: its radius in units of x, above 0 and no wider than the box.
        steps: K, at least 1.
        step_size: of one PGD step, in units of x; None means 2.5·eps/steps, and 1.25·eps where there is one step.
        warmup: part of the training, in [0, 1], over which the radius (and the step) grows linearly from 0.
        craft_mode: ``"eval"`` or ``"train"``; see this module.
        bounds: the box of the inputs.

    Raises:
        ValueError, TypeError: for an argument out of its range.
    """

    def __init__(
        self, norm: ProperNorm, eps: float, steps: int, step_size: float | None, warmup: float, craft_mode: CraftMode,
        bounds: tuple[float, float],
    ) -> None:  # fmt: skip
        checks.one_of("norm", norm, ("l1", "l2", "linf"))
        checks.positive("eps", eps)
        checks.at_least("steps", steps, 1, integer=True)
        if step_size is not None:
            checks.positive("step_size", step_size)
        checks.at_least("warmup", warmup, 0.0)
        checks.at_most("warmup", warmup, 1)
        checks.one_of("craft_mode", craft_mode, ("eval", "train"))
        Box(*bounds)  # raises where it is none
        self.norm, self.eps, self.steps = norm, eps, steps
        self.step_size = (2.5 if steps > 1 else 1.25) * eps / steps if step_size is None else step_size
        self.warmup, self.craft_mode, self.bounds = warmup, craft_mode, bounds
        self.scale = 1.0 if warmup == 0 else 0.0
        self._fits_in_box(1)

    def set_progress(self, fraction: float) -> None:
        """Set the radius for the part of the training that is over."""
        self.scale = 1.0 if self.warmup == 0 else min(1.0, fraction / self.warmup)

    def check(self, x: Tensor) -> None:
        """Raises where crafting would clip the batch to the box, and where the ball is wider than the box."""
        checks.images(x, self.bounds, takes="bounds={}")
        self._fits_in_box(math.prod(x.shape[1:]))

    def _fits_in_box(self, d: int) -> None:
        """For ℓ1 and ℓ2, whose diameters grow with d, one element tells nothing yet."""
        diameter = (self.bounds[1] - self.bounds[0]) * d ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[self.norm]
        if self.eps > diameter and (d > 1 or self.norm == "linf"):
            hint = f"; did you mean {self.eps:g}/255?" if 1 <= self.eps <= 255 else ""
            raise ValueError(
                f"eps: want at most {diameter:g}, the diameter of the box in {self.norm}, got {self.eps:g}{hint}"
            )

    @contextmanager
    def holding(self, model: nn.Module) -> Iterator[None]:
        """The model as inputs are crafted on it, its parameters frozen; put back on leaving."""
        with evaluating(model) if self.craft_mode == "eval" else frozen(model):
            yield

    def maximize(
        self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, loss: LossName | LossFunction = "ce",
        init: Tensor | None = None, radius: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x + δ after K steps of PGD on a model that is held; x itself while the radius is 0.

        Args:
            loss: the attacker's, to be minimized.
            init: δ_0; None draws it uniformly from the ball.
            radius: (N,) in place of eps, the step in proportion.
        """
        if self.scale == 0:
            return x
        eps: float | Tensor = self.eps if radius is None else radius
        return pgd_maximize(
            model, x, y, norm=self.norm, eps=self.scale * eps, steps=self.steps,
            step_size=self.scale * self.step_size * (1.0 if radius is None else radius / self.eps),
            loss=loss, seed=seed, ids=ids, bounds=self.bounds, init=init,
        )  # fmt: skip


class InBall:
    """What objectives share that craft in a ball: labels are classes, and the ball may grow with the training."""

    takes_labels = True

    def __init__(self, ball: Ball) -> None:
        self.ball = ball

    def set_progress(self, fraction: float) -> None:
        """Set epsilon for the part of the training that is over; :func:`robustlab.training.fit.fit` calls this."""
        self.ball.set_progress(fraction)


def at_worst_weights(model: nn.Module, loss: Callable[[Forward], Tensor], gamma: float) -> Tensor:
    """The loss at weights that one step of ascent has made worse: adversarial weight perturbation.

        loss(θ + v),   v_l = γ·‖θ_l‖·g_l/‖g_l‖,   g = ∇_θ loss(θ),   for each weight tensor l of two or more dimensions

    Its gradient at θ + v is the gradient in θ, since v is held constant. Batch norm's statistics move once, at θ + v.

    Args:
        model: in the mode in which it trains.
        loss: of a model's forward pass, a scalar.
        gamma: γ, the length of the perturbation relative to that of the weights; 0 is the plain loss.

    Source:
        Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization" (2020), equations (7) to (10).
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    if gamma == 0 or not weights:
        return loss(model)
    with evaluating(model, freeze=False, mode="asis"):  # puts the statistics back
        slopes = torch.autograd.grad(loss(model), list(weights.values()), materialize_grads=True)
    moved = {
        name: p + gamma * p.detach().norm() * g / g.norm().clamp_min(torch.finfo(g.dtype).tiny)
        for (name, p), g in zip(weights.items(), slopes, strict=True)
    }
    return loss(lambda x: functional_call(model, moved, (x,)))


def divergence(from_logits: Tensor, to_logits: Tensor) -> Tensor:
    """KL(softmax(a) ‖ softmax(b)) of each row of logits, (N,), in nats; a class that is masked by −∞ adds 0."""
    log_p, log_q = (F.log_softmax(z, dim=1).clamp_min(torch.finfo(z.dtype).min) for z in (from_logits, to_logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
