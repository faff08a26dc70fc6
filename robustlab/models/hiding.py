"""The thermometer code, which hides a gradient, and the small net that is trained with it.

The defense was broken; :mod:`robustlab.defenses.published` says by whom, and how. It is kept to be attacked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlab.models.architectures import Floats, small_cnn
from robustlab.models.registry import register


class Thermometer(nn.Module):
    """One pixel in [0, 1] → ``levels`` bits, bit k set where the pixel is above k / levels, k = 0 … levels − 1.

        τ(x)_k = 1 if x > k / levels, else 0            (N, C, H, W) → (N, C · levels, H, W)

    A staircase in each bit: its derivative is zero. Bit 0 says only that a pixel is not black.

    Source: Buckman, Roy, Raffel and Goodfellow (2018), section 3.
    """

    def __init__(self, levels: int = 16) -> None:
        super().__init__()
        self.levels = levels

    def _above(self, x: Tensor) -> Tensor:
        """How far each pixel is above each threshold, (N, C · levels, H, W)."""
        thresholds = torch.arange(self.levels, dtype=x.dtype, device=x.device) / self.levels
        return (x[:, :, None] - thresholds[:, None, None]).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self._above(x).sign().clamp(min=0)  # autograd knows its derivative: zero

    def smooth(self, x: Tensor) -> Tensor:
        """The stand-in of Athalye, Carlini and Wagner (2018): min(max(x − k / levels, 0), 1)."""
        return self._above(x).clamp(0, 1)


@register
def thermometer_cnn(
    *,
    in_shape: Sequence[int] = (1, 28, 28),
    levels: int = 16,
    channels: Sequence[int] = (8, 16),
    hidden: int = 32,
    classes: int = 10,
    mean: Floats = 0.0,
    std: Floats = 1.0,
    seed: int = 0,
) -> nn.Module:
    """A small CNN that reads thermometer codes.

    Args:
        in_shape: (C, H, W) of one input in [0, 1].
        levels: bits of a pixel (default 16).
        channels, hidden, classes: of the small CNN behind the code.
        mean, std: of the bits, as the small CNN normalizes them; the code itself reads raw pixels.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: as the small CNN does.
    """
    width, *size = in_shape
    coded = (width * levels, *size)
    net = small_cnn(in_shape=coded, channels=channels, hidden=hidden, classes=classes, mean=mean, std=std, seed=seed)
    return nn.Sequential(OrderedDict([("code", Thermometer(levels)), ("net", net)]))


__all__ = ["Thermometer", "thermometer_cnn"]
