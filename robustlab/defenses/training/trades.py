"""TRADES: trade-off-inspired adversarial defense by surrogate loss minimization.

Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan, "Theoretically principled trade-off between robustness and accuracy"
(2019). The robust error is the natural error plus the boundary error, the share of inputs that are right but near the
decision boundary. A surrogate of each is minimized, equation (5) with β = 1/λ:

    minimize_θ  E_(x, y) [ CE(model_θ(x), y) + β · max_{‖δ‖_p ≤ ε, x + δ ∈ box} KL(p_θ(x) ‖ p_θ(x + δ)) ]

where p_θ = softmax(model_θ). The label has no part in the second term. The inner maximum is approached by algorithm 1:
PGD on the divergence from a start at x + 0.001·n with n standard normal, since the divergence has no slope at x itself.

Different from the authors' code: the start is projected onto ball and box as every iterate is; in ℓ2 a row without
slope stays where it is, where the code divides by the gradient's norm first; crafting fills no parameter's gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.training.crafting import Ball, CraftMode, Forward, InBall, at_worst_weights, divergence
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import ProperNorm
from robustlab.training.resuming import with_arguments

__all__ = ["trades"]

START = 1e-3  # standard deviation of the first perturbation


class Trades(InBall):
    """The objective that :func:`trades` returns."""

    def __init__(self, ball: Ball, beta: float, weight_perturbation: float) -> None:
        super().__init__(ball)
        self.beta, self.weight_perturbation = beta, weight_perturbation

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean cross-entropy at x, and β times the mean divergence between x and the crafted inputs."""
        self.ball.check(x)
        x_adv = most_divergent(model, x, y, self.ball, ids=ids, seed=seed)

        def loss(net: Forward) -> Tensor:
            clean = net(x)
            return F.cross_entropy(clean, y) + self.beta * divergence(clean, net(x_adv)).mean()

        return at_worst_weights(model, loss, self.weight_perturbation)


def most_divergent(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, ids: Tensor, seed: int) -> Tensor:
    """PGD on KL(p(x) ‖ p(x + δ)) from a start at 0.001·n: algorithm 1 of Zhang et al. (2019), lines 5 to 7."""
    start = START * Noise(seed, ids.to(x.device)).normal(0, x.shape[1:], x.dtype)
    with ball.holding(model):
        with torch.no_grad():
            clean = model(x)

        def minus_divergence(logits: Tensor, *_: object) -> Tensor:
            return -divergence(clean, logits)

        return ball.maximize(model, x, y, ids=ids, seed=seed, loss=minus_divergence, init=start)


@with_arguments
def trades(
    *,
    norm: ProperNorm = "linf",
    eps: float,
    beta: float = 6.0,
    steps: int = 10,
    step_size: float | None = None,
    warmup: float = 0.0,
    craft_mode: CraftMode = "eval",
    bounds: tuple[float, float] = (0.0, 1.0),
    weight_perturbation: float = 0.0,
) -> Trades:
    """An objective for :func:`robustlab.training.fit.fit`: natural loss and boundary term.

        loss = 1/N Σ_i [ CE(model(x_i), y_i) + β·KL(p(x_i) ‖ p(x_i + δ_i)) ],
        δ_i from K steps of PGD on the divergence in the ball of radius ε

    The gradient of the divergence goes through both of its sides.

    Args:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius of the ball, in units of x, above 0 and no wider than the box.
        beta: β = 1/λ, at least 0; the default 6 is the authors' on CIFAR-10. More is more robust and less accurate.
        steps: K, at least 1; default 10.
        step_size: of one PGD step, in units of x; None means 2.5·eps/steps, and 1.25·eps for a single step.
        warmup: part of the training, in [0, 1], over which epsilon grows linearly from 0; default 0, as in the paper.
        craft_mode: ``"eval"``, as in the authors' code, or ``"train"``; see
            :func:`~robustlab.defenses.training.adversarial_training.adversarial_training`.
        bounds: the box of the inputs; a batch outside it is refused.
        weight_perturbation: γ of adversarial weight perturbation (Wu et al., 2020), such as 0.005; default 0 is none.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``; the start depends on the step's seed and the sample's id.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Zhang et al. (2019), equation (5) and algorithm 1.
    """
    checks.not_negative("beta", beta)
    checks.not_negative("weight_perturbation", weight_perturbation)
    return Trades(Ball(norm, eps, steps, step_size, warmup, craft_mode, bounds), beta, weight_perturbation)
