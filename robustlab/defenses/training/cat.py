"""CAT: customized adversarial training.

Cheng, Lei, Chen, Dhillon and Hsieh, "CAT: Customized adversarial training for improved robustness" (2020), algorithm 1.
Inputs near the decision boundary cannot withstand the whole radius, so each has its own, and a label as uncertain as
its radius is large. With ε_i = 0 at first, for each sample of a batch:

    ỹ  = (1 − c·ε_i)·onehot(y) + c·ε_i·Dirichlet(1, …, 1)
    x′ = K steps of ascent on ℓ(model(·), ỹ) from x, in the ball of radius min(ε_i + η, ε)
    ε_i ← min(ε_i + η, ε) where the attack fails, argmax model(x′) = y; else ε_i stays
    ỹ is drawn anew with this ε_i, and the loss is ℓ(model(x′), ỹ)

The loss ℓ is the cross-entropy with the soft label; "mixed" adds the margin max(max_{k≠y} z_k − z_y, −κ) of the logits.
A public implementation writes +κ there, which no difference of probabilities exceeds, so that its margin is constant.

Different here: a step is in proportion to the sample's radius, 2.5·(ε_i + η)/K, where the paper's is the same for all.
Label smoothing flatters attacks by gradients of the cross-entropy: judge such a net by AutoAttack.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.losses import margin
from robustlab.defenses.training.crafting import Ball, CraftMode, InBall
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import ProperNorm
from robustlab.models.probing import count_outputs
from robustlab.training.resuming import with_arguments

__all__ = ["cat"]

CatLoss = Literal["ce", "mixed"]


class Cat(InBall):
    """The objective that :func:`cat` returns; ``radius`` holds each sample's ε_i, by its row in the data."""

    def __init__(self, ball: Ball, eta: float, smoothing: float, loss: CatLoss, kappa: float) -> None:
        super().__init__(ball)
        self.eta, self.smoothing, self.loss, self.kappa = eta, smoothing, loss, kappa
        self.radius, self.classes = torch.zeros(0), 0

    def state_dict(self) -> dict[str, Tensor]:
        """What a training that is resumed has to know: the radii."""
        return {"radius": self.radius}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the radii of another training."""
        self.radius = state["radius"].clone()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean loss at the crafted inputs, with soft labels; radii grow where the attack has failed."""
        self.ball.check(x)
        radius, noise = self._radii(ids, x), Noise(seed, ids.to(x.device))
        tried = (radius + self.eta).clamp_max(self.ball.eps)
        self.classes = classes = self.classes or count_outputs(model, x)  # one more forward, once
        before = soft_labels(y, self.smoothing * radius, noise, 0, classes)

        def attacker(logits: Tensor, *_: object) -> Tensor:
            return -self._losses(logits, before, y)

        start = torch.zeros_like(x)
        with self.ball.holding(model):
            x_adv = self.ball.maximize(model, x, y, ids=ids, seed=seed, loss=attacker, init=start, radius=tried)
        logits = model(x_adv)
        radius = torch.where(logits.detach().argmax(dim=1) == y, tried, radius)
        self.radius[ids] = radius
        return self._losses(logits, soft_labels(y, self.smoothing * radius, noise, 1, classes), y).mean()

    def _radii(self, ids: Tensor, x: Tensor) -> Tensor:
        """ε_i of these samples; 0 where a sample is met for the first time."""
        known = self.radius.to(x)
        more = int(ids.max()) + 1 - len(known)
        self.radius = F.pad(known, (0, max(0, more)))
        return self.radius[ids]

    def _losses(self, logits: Tensor, soft: Tensor, y: Tensor) -> Tensor:
        """ℓ of each sample, (N,)."""
        entropy = F.cross_entropy(logits, soft, reduction="none")
        return entropy if self.loss == "ce" else entropy + (-margin(logits, y)).clamp_min(-self.kappa)


def soft_labels(y: Tensor, weight: Tensor, noise: Noise, draw: int, classes: int) -> Tensor:
    """(1 − w_i)·onehot(y_i) + w_i·Dirichlet(1, …, 1), (N, K)."""
    # Exponentials over their sum are uniform in the simplex.
    uniform = F.normalize(noise.exponential(draw, (classes,), weight.dtype), p=1, dim=1)
    return torch.lerp(F.one_hot(y, classes).to(weight), uniform, weight[:, None])


@with_arguments
def cat(
    *,
    norm: ProperNorm = "linf",
    eps: float,
    eta: float = 0.005,
    smoothing: float = 10.0,
    loss: CatLoss = "ce",
    kappa: float = 10.0,
    steps: int = 10,
    step_size: float | None = None,
    craft_mode: CraftMode = "eval",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Cat:
    """An objective for :func:`robustlab.training.fit.fit`: a radius and a soft label of its own for each sample.

        loss = 1/N Σ_i ℓ(model(x_i + δ_i), (1 − c·ε_i)·onehot(y_i) + c·ε_i·Dirichlet(1)),   ‖δ_i‖ ≤ min(ε_i + η, ε)

    where ε_i grows by η each time that the sample withstands its attack.

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: ε, the largest radius, in units of x, above 0 and no wider than the box.
        eta: η, by which a radius grows, above 0; the default 0.005 is the paper's for ε = 8/255. A training of E epochs
            reaches at most E·η.
        smoothing: c, how uncertain a label is per unit of radius, at least 0, with c·ε at most 1. The default 10 is the
            paper's for ε = 8/255; a larger ball wants less.
        loss: ``"ce"``, or ``"mixed"``, which adds the margin of the logits.
        kappa: κ, below which the margin of "mixed" counts no more, at least 0.
        steps: K, at least 1; default 10.
        step_size: of one step where the radius is ε, in proportion below; None means 2.5·eps/steps, and 1.25·eps for a
            single step.
        craft_mode: ``"eval"`` or ``"train"``; see
            :func:`~robustlab.defenses.training.adversarial_training.adversarial_training`.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``, with a state: ``radius``, (n,), by the samples' rows in the data.
        Give each training one of its own. The training forward decides whether the attack has failed.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Cheng et al. (2020), algorithm 1. Departure: steps in proportion to the radius.
    """
    checks.positive("eta", eta)
    checks.not_negative("smoothing", smoothing)
    checks.not_negative("kappa", kappa)
    checks.one_of("loss", loss, ("ce", "mixed"))
    ball = Ball(norm, eps, steps, step_size, 0.0, craft_mode, bounds)
    if smoothing * eps > 1:
        raise ValueError(
            f"smoothing: want at most 1/eps = {1 / eps:g}, beyond which labels are negative, got {smoothing}"
        )
    return Cat(ball, eta, smoothing, loss, kappa)
