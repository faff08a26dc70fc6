"""Augmentations for training: functions of a batch, the samples' ids and a seed, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.geometry.keyed import Noise


def random_shift(pixels: int = 2) -> Callable[..., Tensor]:
    """An augmentation that moves each image by up to `pixels` in each direction, filling with zeros.

    Args:
        pixels: the largest shift along height and width, at least 1; both shifts are uniform integers.

    Returns:
        ``augment(x, *, ids, seed)`` for images (N, C, H, W), as :func:`robustlab.training.fit.fit` calls it.

    Raises:
        ValueError: if `pixels` is less than 1; on use, if x is not (N, C, H, W).
    """
    checks.at_least("pixels", pixels, 1, integer=True)

    def augment(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        checks.pictures(x)
        _, _, height, width = x.shape
        shifts = Noise(seed, ids, x.device).integers(0, (2,), 2 * pixels + 1)
        padded = F.pad(x, [pixels] * 4).permute(0, 2, 3, 1)
        rows = shifts[:, 0, None] + torch.arange(height, device=x.device)
        columns = shifts[:, 1, None] + torch.arange(width, device=x.device)
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return augment


def gaussian_noise(sigma: float) -> Callable[..., Tensor]:
    """An augmentation that adds Gaussian noise, new in every step: training for smoothed classifiers.

        x ← x + σ·ε,   ε ~ N(0, I)

    Args:
        sigma: σ > 0, in units of x. The result is not clipped.

    Returns:
        ``augment(x, *, ids, seed)``, as :func:`robustlab.training.fit.fit` calls it.

    Raises:
        ValueError: for σ ≤ 0.

    Source:
        Lecuyer et al. (2019); Cohen et al. (2019), section 3.4, Gaussian data augmentation.
    """
    checks.positive("sigma", sigma)

    def augment(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        return x + sigma * Noise(seed, ids, x.device).normal(0, x.shape[1:], x.dtype)

    return augment
