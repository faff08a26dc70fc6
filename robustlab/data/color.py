"""Colors as hue, saturation and value: images (N, 3, H, W) in [0, 1], batched and on any device.

With the largest channel V, the smallest m and the chroma C = V − m,

    value V        saturation S = C / V (0 for black)        hue H in [0, 1): 0 red, 1/3 green, 2/3 blue (0 for gray)

Source: Smith, "Color gamut transform pairs" (1978), the hexcone model; Python's ``colorsys`` uses the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """(N, 3, H, W) red, green, blue → hue, saturation, value; all in [0, 1].

    Raises:
        ValueError: if the images do not have three channels.
    """
    _check("rgb", rgb)
    value, first = rgb.max(dim=1)
    chroma = value - rgb.amin(dim=1)
    tiny = torch.finfo(rgb.dtype).tiny
    saturation = chroma / value.clamp_min(tiny)
    # The hue is measured from the largest channel: the difference of the two others, in sixths of the circle.
    others = torch.roll(rgb, -1, dims=1) - torch.roll(rgb, -2, dims=1)  # G − B, B − R, R − G
    turn = others.gather(1, first.unsqueeze(1)).squeeze(1) / chroma.clamp_min(tiny)
    hue = torch.where(chroma > 0, ((2 * first + turn) / 6) % 1.0, 0.0)
    return torch.stack([torch.where(hue >= 1, 0.0, hue), saturation, value], dim=1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """(N, 3, H, W) hue, saturation, value → red, green, blue. The hue is a circle: 1.25 is 0.25.

        channel n = V − V·S·max(0, min(k, 4 − k, 1)),   k = (n + 6·H) mod 6,   n = 5, 3, 1 for red, green, blue

    Raises:
        ValueError: if the images do not have three channels.
    """
    _check("hsv", hsv)
    hue, saturation, value = hsv.unbind(1)
    channels = []
    for n in (5, 3, 1):
        k = (n + 6 * hue) % 6
        channels.append(value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _check(name: str, images: Tensor) -> None:
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: want color images (N, 3, H, W), got shape {tuple(images.shape)}")
