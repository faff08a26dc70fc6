"""Training under the noise of the certificate: a smoothed classifier is as good as its model is on noisy inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robustlab import checks
from robustlab.geometry.keyed import Noise

__all__ = ["gaussian_augmentation"]


def gaussian_augmentation(sigma: float) -> Callable[..., Tensor]:
    """What :func:`robustlab.training.fit.fit` takes as ``augment`` to train on noisy inputs, new ones in every step.

        x ← x + σ·ε,   ε ~ N(0, I)

    Args:
        sigma: σ > 0, in units of x.

    Returns:
        ``augment(x, ids=, seed=)``.

    Raises:
        ValueError: for σ ≤ 0.

    Source:
        Lecuyer et al. (2019); Cohen et al. (2019), section 3.4, training by Gaussian data augmentation.
    """
    checks.positive("sigma", sigma)

    def augment(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return x + sigma * Noise(seed, ids).normal(0, x.shape[1:], x.dtype)

    return augment
