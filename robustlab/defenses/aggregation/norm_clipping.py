"""Clipped updates with noise: nobody moves the model far, and what is left is blurred.

Sun, Kairouz, Suresh and McMahan, "Can you really backdoor federated learning?" (2019), section 4: updates longer than a
bound are shrunk to it, and Gaussian noise is added to their mean ("weak differential privacy", of a noise too small for
a meaningful guarantee).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.defenses.aggregation.vectors import stacked
from robustlab.geometry.keyed import Noise

__all__ = ["norm_clipping"]


def norm_clipping(updates: Tensor, *, bound: float, sigma: float = 0.0, seed: int = 0) -> Tensor:
    """The mean of the updates, each no longer than a bound, plus noise.

        1/n · Σ_i δ_i / max(1, ‖δ_i‖₂ / S) + σ·z      z ~ N(0, I)

    Args:
        updates: δ (n, d), one row per client.
        bound: S > 0.
        sigma: σ ≥ 0, standard deviation of the noise in each coordinate; 0 is none.
        seed: of the noise. A server gives each round another one, or the same noise is added again.

    Returns:
        (d,).

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Sun et al. (2019), section 4.
    """
    stacked(updates)
    checks.positive("bound", bound)
    checks.not_negative("sigma", sigma)
    norms = torch.linalg.vector_norm(updates, dim=1, keepdim=True)
    mean = (updates / (norms / bound).clamp_min(1)).mean(dim=0)
    if not sigma:
        return mean
    one = torch.zeros(1, dtype=torch.int64, device=updates.device)
    return mean + sigma * Noise(seed, one).normal(0, mean.shape, mean.dtype)[0]
