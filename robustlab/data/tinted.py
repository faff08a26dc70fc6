"""Gray images made colorful, with a hue that tells something about the class."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.color import hsv_to_rgb
from robustlab.data.dataset import Dataset
from robustlab.geometry.keyed import Noise


def tinted(base: Dataset, *, spread: float = 0.03, seed: int = 0) -> Dataset:
    """Dye each image of a gray data set in one hue, as fruit and road signs have their usual colors.

        H = y / K + spread · n,  n ~ normal        S ~ uniform [0.5, 1)        V = the gray image

    The value of every pixel is the gray image itself, so whatever is done to hue and saturation leaves the shape as it
    was. How much the color gives away about the class is up to ``spread``: at 0 it says everything, from about 0.3 on
    hues are as good as uniform and say nothing.

    Args:
        base: a data set of gray images (N, 1, H, W).
        spread: standard deviation of the hue about that of the class, ≥ 0, in turns of the color circle.
        seed: of the draws; training and test images are drawn apart, keyed by their place.

    Returns:
        Dataset of color images (N, 3, H, W), with the labels of ``base``.

    Raises:
        ValueError, TypeError: if ``base`` is not gray or ``spread`` is negative.
    """
    checks.at_least("spread", spread, 0.0)
    if len(base.sample_shape) != 3 or base.sample_shape[0] != 1:
        raise ValueError(f"base: want gray images (N, 1, H, W), got samples of shape {base.sample_shape}")

    def dye(x: Tensor, y: Tensor, draw: int) -> Tensor:
        noise = Noise(seed, torch.arange(len(x), device=x.device))
        hue = y / len(base.classes) + spread * noise.normal((draw, 0), (), x.dtype)
        saturation = noise.uniform((draw, 1), (), x.dtype, 0.5, 1.0)
        plain = torch.ones_like(x)
        return hsv_to_rgb(torch.cat([plain * hue[:, None, None, None], plain * saturation[:, None, None, None], x], 1))

    return replace(
        base,
        name=f"{base.name}_tinted",
        x_train=dye(base.x_train, base.y_train, 0),
        x_test=dye(base.x_test, base.y_test, 1),
    )
