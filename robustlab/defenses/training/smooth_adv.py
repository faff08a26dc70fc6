"""SmoothAdv: adversarial training of a smoothed classifier.

Salman, Yang, Li, Zhang, Zhang, Razenshteyn and Bubeck, "Provably robust deep learning via adversarially trained
smoothed classifiers" (2019), section 2.2 and its pseudocode. What :func:`robustlab.defenses.randomized_smoothing`
certifies answers by E_ε[softmax(model(x + σε))], so that is what training attacks, with m draws for the expectation,

    x′ ≈ argmax_{‖x′ − x‖₂ ≤ r, x′ ∈ box}  −log( 1/m Σ_j softmax(model(x′ + σε_j))_y ),   ε_j ~ N(0, I)

by PGD from x, with the same draws in all its steps. The model then learns from x′ + σε_j for those draws.

Different from the authors' code: the radius may be of another norm; crafting fills no parameter's gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.losses import log_mean_probabilities
from robustlab.defenses.training.crafting import Ball, CraftMode, InBall
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import ProperNorm
from robustlab.training.resuming import with_arguments

__all__ = ["smooth_adv"]


class MeanAnswer(nn.Module):
    """The log of the mean probabilities over given noise (N, m, ...): x (N, ...) to (N, K)."""

    def __init__(self, model: nn.Module, noise: Tensor) -> None:
        super().__init__()
        self.model, self.noise = model, noise

    def forward(self, x: Tensor) -> Tensor:
        return log_mean_probabilities(self.model(around(x, self.noise)).unflatten(0, self.noise.shape[:2]), dim=1)


class SmoothAdv(InBall):
    """The objective that :func:`smooth_adv` returns."""

    def __init__(self, ball: Ball, sigma: float, draws: int) -> None:
        super().__init__(ball)
        self.sigma, self.draws = sigma, draws

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean cross-entropy at the noisy crafted inputs."""
        self.ball.check(x)
        noise = self.sigma * Noise(seed, ids.to(x.device)).normal(0, (self.draws, *x.shape[1:]), x.dtype)
        with self.ball.holding(model):
            x_adv = self.ball.maximize(MeanAnswer(model, noise), x, y, ids=ids, seed=seed, init=torch.zeros_like(x))
        return F.cross_entropy(model(around(x_adv, noise)), y.repeat_interleave(self.draws))


def around(x: Tensor, noise: Tensor) -> Tensor:
    """(N·m, ...): each x with each of its m noises."""
    return (x[:, None] + noise).flatten(0, 1)


@with_arguments
def smooth_adv(
    *,
    sigma: float,
    norm: ProperNorm = "l2",
    eps: float,
    steps: int = 4,
    step_size: float | None = None,
    draws: int = 2,
    warmup: float = 0.0,
    craft_mode: CraftMode = "eval",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> SmoothAdv:
    """An objective for :func:`robustlab.training.fit.fit`: the loss at noisy inputs, the noise around a worst place.

        loss = 1/(N·m) Σ_i Σ_j CE(model(x′_i + σε_ij), y_i),   x′ from K steps of PGD on the smoothed classifier

    Noise is not clipped, as it is not when the classifier is certified. No further noise is to be added: leave out
    :func:`robustlab.data.gaussian_noise`.

    Args:
        sigma: σ > 0, that of the certificate.
        norm, eps: of the ball, in units of x, above 0 and no wider than the box.
        steps: K, at least 1; the authors take 2 to 10.
        step_size: of one PGD step, in units of x; None means 2.5·eps/steps, and 1.25·eps for a single step.
        draws: m, at least 1. Each step of the training costs (K + 1)·m forward and backward rows per sample.
        warmup: part of the training, in [0, 1], over which epsilon grows linearly from 0.
        craft_mode: ``"eval"``, as in the authors' code, or ``"train"``; see
            :func:`~robustlab.defenses.training.adversarial_training.adversarial_training`.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``; the noise depends on the step's seed and the sample's id.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Salman et al. (2019), equation (6) and its pseudocode, "SmoothAdv-ersarial training".
    """
    checks.positive("sigma", sigma)
    checks.at_least("draws", draws, 1, integer=True)
    return SmoothAdv(Ball(norm, eps, steps, step_size, warmup, craft_mode, bounds), sigma, draws)
