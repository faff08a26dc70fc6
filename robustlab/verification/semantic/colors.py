"""Changes of color: hue, saturation, lightness; brightness and contrast.

A color changes piecewise linearly with the shift of its hue, saturation or lightness: between the points where a piece
ends (its *knots*) a channel is affine, so the largest and the smallest distance from a line are found at knots.
Mohapatra et al. write such a change as a layer of ReLUs before the network,

    x_j(θ) = x_j(low) + Σ_k (slope after knot k − slope before) · max(θ − t_jk, 0),

which :meth:`Piecewise.layers` builds; the tube needs no relaxation of these ReLUs, for it is taken from the curve.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlab.data.color import rgb_to_hsv
from robustlab.verification.semantic.change import Enclosed, beside_axes, rounded_tube
from robustlab.verification.semantic.tube import Tube

__all__ = ["BrightnessContrast", "Hue", "Lightness", "Piecewise", "Saturation"]


class Piecewise(Enclosed):
    """A change under which every pixel is piecewise linear in one parameter."""

    @abstractmethod
    def knots(self, x: Tensor, low: Tensor) -> Tensor:
        """(N, K, C, H, W): where pieces may end, from ``low`` (N, 1) on; one outside of the interval does no harm."""

    @abstractmethod
    def pixels(self, x: Tensor, theta: Tensor) -> Tensor:
        """(N, K, C, H, W) values of the pixels, each at a parameter of its own, ``theta`` of the same shape."""

    def images(self, x: Tensor, theta: Tensor) -> Tensor:
        """As in :class:`Change`."""
        return self.pixels(x, theta[:, :, None, None, None].expand(-1, -1, *x.shape[1:]))[:, 0]

    def tube(self, x: Tensor, low: Tensor, high: Tensor) -> Tube:
        """The lines through both ends, moved to the knot that is farthest below, and farthest above."""
        at, values = self._corners(x, low, high)
        first, last = values[:, 0], values[:, -1]
        width = beside_axes(high - low, x).clamp_min(torch.finfo(x.dtype).tiny)
        slope = (last - first) / width
        left = values - slope[:, None] * at
        return rounded_tube(low, high, slope[:, None], left.amin(1), left.amax(1), values.amin(1), values.amax(1))

    def layers(self, x: Tensor, low: float, high: float) -> nn.Sequential:
        """One image (1, C, H, W) → a network of ReLUs from the parameter (M, 1) to the changed images, on [low, high].

        Put before a model it turns any verifier of networks into one of this change.
        """
        ends = [torch.full((1, 1), end, dtype=x.dtype, device=x.device) for end in (low, high)]
        at, values = self._corners(x, *ends)
        run, rise = at.diff(dim=1)[0], values.diff(dim=1)[0]  # (pieces, C, H, W)
        slopes = torch.where(run > 0, rise / run.clamp_min(torch.finfo(x.dtype).tiny), torch.nan)
        for k in range(1, len(slopes)):  # a piece of length 0 has no bend: it goes on as the one before it
            slopes[k] = torch.where(slopes[k].isnan(), slopes[k - 1], slopes[k])
        slopes = slopes.nan_to_num(0.0)
        bends = torch.cat([slopes[:1], slopes.diff(dim=0)])
        pieces, pixels = len(bends), x[0].numel()
        first = nn.Linear(1, pixels * pieces, dtype=x.dtype, device=x.device)
        second = nn.Conv2d(pixels * pieces, pixels, 1, groups=pixels, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            first.weight.fill_(1.0)
            first.bias.copy_(-at[0, :-1].flatten(1).T.flatten())
            second.weight.copy_(bends.flatten(1).T[:, :, None, None])
            assert second.bias is not None
            second.bias.copy_(values[0, 0].flatten())
        shape = tuple(x.shape[1:])
        around = (nn.Unflatten(1, (pixels * pieces, 1, 1)), second, nn.Flatten(), nn.Unflatten(1, shape))
        return nn.Sequential(first, nn.ReLU(), *around).eval()

    def _corners(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Both ends and the knots between them in order, (N, K + 2, C, H, W), and the pixels there."""
        least, most = beside_axes(low, x)[:, None], beside_axes(high, x)[:, None]
        inner = self.knots(x, low).clamp(least, most).sort(dim=1).values
        ends = [end.expand(-1, 1, *x.shape[1:]) for end in (least, most)]
        at = torch.cat([ends[0], inner, ends[1]], dim=1)
        return at, self.pixels(x, at)


class _OfColor(Piecewise):
    def check(self, x: Tensor) -> None:
        """Wants three channels."""
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x: want color images (N, 3, H, W), got shape {tuple(x.shape)}")


_FALL = (0.0, 1.0, 3.0, 4.0)  # sixths of the circle at which a channel starts or ends to fall below the largest


@dataclass(frozen=True)
class Hue(_OfColor):
    """Turns the hue of all pixels by θ, in turns of the color circle (1/3 makes red green)."""

    names = ("hue",)
    valid = ((-1.0, 1.0),)
    widest = (1.0,)

    def knots(self, x: Tensor, low: Tensor) -> Tensor:
        """Each of the four bends comes once in a turn."""
        start = self._sixths(x, beside_axes(low, x)[:, None])
        return torch.cat([((bend - start) % 6) / 6 for bend in _FALL], dim=1) + beside_axes(low, x)[:, None]

    def pixels(self, x: Tensor, theta: Tensor) -> Tensor:
        """V − C·max(0, min(k, 4 − k, 1)) with k = (n + 6(H + θ)) mod 6."""
        most = x.amax(dim=1, keepdim=True)[:, None]
        chroma = most - x.amin(dim=1, keepdim=True)[:, None]
        k = self._sixths(x, theta) % 6
        return most - chroma * torch.minimum(k, 4 - k).clamp(0, 1)

    @staticmethod
    def _sixths(x: Tensor, theta: Tensor) -> Tensor:
        hue = rgb_to_hsv(x)[:, :1]
        place = torch.tensor([5.0, 3.0, 1.0], dtype=x.dtype, device=x.device)[:, None, None]
        return place + 6 * (hue[:, None] + theta)


class _OfHsl(_OfColor):
    """L + (1 − |2L − 1|)·S·t with t = (x − L)/C of the pixel as it is (red for gray, as in ``colorsys``)."""

    def pixels(self, x: Tensor, theta: Tensor) -> Tensor:
        """As the class says, with lightness and saturation after the change."""
        lightness, saturation, place = (part[:, None] for part in _hsl(x))
        lightness, saturation = self.changed(lightness, saturation, theta)
        return lightness + (1 - (2 * lightness - 1).abs()) * saturation * place

    @abstractmethod
    def changed(self, lightness: Tensor, saturation: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Lightness and saturation after the change."""


@dataclass(frozen=True)
class Saturation(_OfHsl):
    """Adds θ to the saturation (of hue, saturation and lightness), kept between 0 and 1."""

    names = ("saturation",)
    valid = ((-1.0, 1.0),)
    widest = (2.0,)

    def changed(self, lightness: Tensor, saturation: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """S ← clip(S + θ, 0, 1)."""
        return lightness, (saturation + theta).clamp(0, 1)

    def knots(self, x: Tensor, low: Tensor) -> Tensor:
        """Where S + θ reaches 0 and 1."""
        saturation = _hsl(x)[1].expand_as(x)
        return torch.stack([-saturation, 1 - saturation], dim=1)


@dataclass(frozen=True)
class Lightness(_OfHsl):
    """Adds θ to the lightness (of hue, saturation and lightness), kept between 0 and 1."""

    names = ("lightness",)
    valid = ((-1.0, 1.0),)
    widest = (2.0,)

    def changed(self, lightness: Tensor, saturation: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L ← clip(L + θ, 0, 1)."""
        return (lightness + theta).clamp(0, 1), saturation

    def knots(self, x: Tensor, low: Tensor) -> Tensor:
        """Where L + θ reaches 0, ½ and 1."""
        lightness = _hsl(x)[0].expand_as(x)
        return torch.stack([level - lightness for level in (0.0, 0.5, 1.0)], dim=1)


@dataclass(frozen=True)
class BrightnessContrast(Enclosed):
    """clip((1 + contrast)·x + brightness, 0, 1)."""

    names = ("brightness", "contrast")
    valid = ((-1.0, 1.0), (-1.0, 4.0))
    widest = (2.0, 5.0)

    def layers(self, x: Tensor) -> nn.Sequential:
        """One image (1, C, H, W) → a network of ReLUs from both parameters (M, 2) to the changed images.

        max(v, 0) − max(v − 1, 0) with v = (1 + contrast)·x + brightness is the clip, whatever the parameters.
        """
        pixel = x.flatten()
        first = nn.Linear(2, 2 * len(pixel), dtype=x.dtype, device=x.device)
        second = nn.Conv2d(2 * len(pixel), len(pixel), 1, groups=len(pixel), bias=False, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            twice = pixel.repeat_interleave(2)
            first.weight.copy_(torch.stack([torch.ones_like(twice), twice], dim=1))
            first.bias.copy_(twice - twice.new_tensor([0.0, 1.0]).repeat(len(pixel)))
            second.weight.copy_(twice.new_tensor([1.0, -1.0])[None, :, None, None])
        around = (nn.Unflatten(1, (2 * len(pixel), 1, 1)), second, nn.Flatten(), nn.Unflatten(1, tuple(x.shape[1:])))
        return nn.Sequential(first, nn.ReLU(), *around).eval()

    def images(self, x: Tensor, theta: Tensor) -> Tensor:
        """As in :class:`Change`."""
        brightness, contrast = (part[:, None, None, None] for part in theta.unbind(1))
        return ((1 + contrast) * x + brightness).clamp(0, 1)

    def tube(self, x: Tensor, low: Tensor, high: Tensor) -> Tube:
        """Before clipping a pixel is affine in both parameters; the clip is enclosed by lines through its ends."""
        least, most = ((1 + beside_axes(end[:, 1], x)) * x + beside_axes(end[:, 0], x) for end in (low, high))
        at = torch.stack([least, *(x.new_tensor(v).clamp(least, most) for v in (0.0, 1.0)), most], dim=1)
        values = at.clamp(0, 1)
        rate = (values[:, -1] - values[:, 0]) / (most - least).clamp_min(torch.finfo(x.dtype).tiny)
        left = values - rate[:, None] * at
        slope = torch.stack([rate, rate * x], dim=1)
        below, above = left.amin(1) + rate * x, left.amax(1) + rate * x
        return rounded_tube(low, high, slope, below, above, values.amin(1), values.amax(1))


def _hsl(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lightness and saturation (N, 1, H, W), and t = (x − L)/C (N, C, H, W), in [−½, ½]."""
    most, least = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    lightness, chroma = (most + least) / 2, most - least
    room = 1 - (2 * lightness - 1).abs()
    tiny = torch.finfo(x.dtype).tiny
    saturation = torch.where(room > 0, chroma / room.clamp_min(tiny), 0.0).clamp_max(1)
    red = x.new_tensor([0.5, -0.5, -0.5])[:, None, None]
    return lightness, saturation, torch.where(chroma > 0, (x - lightness) / chroma.clamp_min(tiny), red)
