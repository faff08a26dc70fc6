"""Smoothing certified by the Rényi divergence.

Li, Chen, Wang and Carin, "Certified adversarial robustness with additive noise" (2019), theorem 1. The answers of one
model to x + σε and to x′ + σε have distributions whose Rényi divergence of order a is at most that of the noise,
a·‖x − x′‖²/2σ². As long as that is below the least divergence to a distribution in which the two most likely classes
change places, the class stays:

    radius² = sup_{a > 1}  −(2σ²/a) · log( 1 − p₁ − p₂ + 2·M )        M = ( (p₁^{1−a} + p₂^{1−a})/2 )^{1/(1−a)}

with p₁ a lower bound of the class's probability and p₂ an upper bound of any other's. It is never larger than
σ/2·(Φ⁻¹(p₁) − Φ⁻¹(p₂)), the radius of :func:`randomized_smoothing` for the same two bounds, which is exact.

Different here: the class is chosen by draws of its own, as Cohen et al. do, where the authors' code chooses and bounds
on the same; the bounds are Clopper and Pearson's with α split over them; and the supremum is taken in logarithms, since
p₂^{1−a} overflows in float64 at large a, which makes the radius infinite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustlab.defenses.certified.smoothing.votes import (
    Smoothed,
    bounds_of_two,
    certificate,
    check,
    choose_and_count,
)

__all__ = ["renyi_radius", "renyi_smoothing"]


def renyi_smoothing(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> Smoothed:
    """Certify the smoothed classifier by the Rényi divergence, from the same votes as randomized smoothing.

        radius = :func:`renyi_radius` (p₁, p₂)·σ,   p₁ at level α/2,   p₂ ≤ min(1 − p₁, K − 1 bounds at α/2(K − 1))

    Args:
        model, x, y, sigma, n0, n, alpha, batch_size, seed, ids, progress: as of
            :func:`randomized_smoothing`, whose draws these are.

    Returns:
        Smoothed, a Certificate in ℓ2 with confidence 1 − α. Cost: n0 + n forward rows per sample.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Li et al. (2019), theorem 1 and its algorithm.
    """
    y = check(model, x, y, sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size, ids=ids)
    chosen, counts = choose_and_count(
        model, x, y, sigma=sigma, n0=n0, n=n, seed=seed, ids=ids, batch_size=batch_size, progress=progress
    )
    p1, p2 = bounds_of_two(counts, chosen, n, alpha)
    return certificate(x, y, chosen, p1, sigma * renyi_radius(p1, p2), counts, "renyi_smoothing", alpha)


def renyi_radius(p1: Tensor, p2: Tensor, *, orders: int = 400) -> Tensor:
    """The radius in units of σ that follows from p₁ and p₂ alone; 0 where p₁ ≤ p₂.

        sup_{a > 1}  ( −(2/a) · log( 1 − p₁ − p₂ + 2·M_{1−a}(p₁, p₂) ) )^{1/2}

    Every order gives a valid radius, so that the largest over a grid is one, too, and hardly smaller than the supremum.

    Args:
        p1, p2: of the same shape, probabilities whose sum is at most 1.
        orders: of the grid, a − 1 spaced evenly in logarithms from 1e-3 to 1e4.

    Returns:
        Float64, the shape of p1.

    Raises:
        ValueError: for numbers that are no such probabilities.

    Source:
        Li et al. (2019), theorem 1.
    """
    one, two = torch.as_tensor(p1, dtype=torch.float64), torch.as_tensor(p2, dtype=torch.float64)
    if not bool(((one >= 0) & (two >= 0) & (one + two <= 1 + 1e-12)).all()):
        raise ValueError("p1, p2: want probabilities whose sum is at most 1")
    a = 1 + torch.logspace(-3, 4, orders, dtype=torch.float64, device=one.device)
    logs = torch.stack([one, two]).log()[..., None] * (1 - a)
    mean = ((logs.logsumexp(dim=0) - math.log(2)) / (1 - a)).exp()  # a power mean, near the smaller of the two
    squared = -2 / a * torch.log1p(2 * mean - (one + two)[..., None])
    radius = squared.nan_to_num(nan=0.0).clamp_min(0).amax(dim=-1).sqrt()
    return torch.where(one > two, radius, 0.0)
