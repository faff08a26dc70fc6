"""Changes of place: rotation and shift by any amount; translation by whole pixels and occlusion, all of them tried.

A rotated or shifted pixel is not piecewise linear. Its source point stays in a small rectangle while the angle stays in
a small interval, and bilinear interpolation takes its extremes on a rectangle at the corners of the rectangle and where
its sides and the grid cross. So bounds on *subdivisions* of the interval are exact for the rectangle; joined, they make
the tube.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import reduce
from itertools import product

import torch
from torch import Tensor

from robustlab import checks
from robustlab.verification.semantic.change import Enclosed, Listed, beside_axes, rounded_tube
from robustlab.verification.semantic.tube import Tube

__all__ = ["Occlusion", "Rotation", "Shift", "Translation"]


class Moved(Enclosed):
    """A change that takes each pixel from another point of the image, bilinear, with ``fill`` outside."""

    subdivisions: int | None
    fill: float

    def __post_init__(self) -> None:
        if self.subdivisions is not None:
            checks.at_least("subdivisions", self.subdivisions, 1, integer=True)

    @abstractmethod
    def source(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (N, H, W) that the pixels are taken from."""

    @abstractmethod
    def rectangle(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The least and greatest row, and column, while θ stays between ``low`` and ``high``."""

    @abstractmethod
    def needed(self, x: Tensor, low: Tensor, high: Tensor) -> int:
        """As many parts of each parameter's interval as keep a source point within half a pixel."""

    def images(self, x: Tensor, theta: Tensor) -> Tensor:
        """As in :class:`Change`."""
        return _bilinear(x, *self.source(x, theta), self.fill)

    def tube(self, x: Tensor, low: Tensor, high: Tensor) -> Tube:
        """Bounds on each part; a slope is the mean of those along the edges of the box of parameters."""
        parts, d = self.subdivisions or self.needed(x, low, high), low.shape[1]
        slope = self._slope(x, low, high)
        least: list[Tensor] = []
        most: list[Tensor] = []
        below, above = [], []
        for cell in product(range(parts), repeat=d):
            place = torch.tensor(cell, dtype=x.dtype, device=x.device)
            begin = low + (high - low) * (place / parts)
            end = low + (high - low) * ((place + 1) / parts)
            lower, upper = self._on_cell(x, begin, end)
            one, other = (slope * beside_axes(edge, slope, 2) for edge in (begin, end))
            least, most = [*least, lower], [*most, upper]
            below.append(lower - one.maximum(other).sum(1))
            above.append(upper - one.minimum(other).sum(1))
        pairs = ((below, torch.minimum), (above, torch.maximum), (least, torch.minimum), (most, torch.maximum))
        return rounded_tube(low, high, slope, *(reduce(join, found) for found, join in pairs))

    def _slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        d = low.shape[1]
        corners = list(product((0, 1), repeat=d))
        images = [self.images(x, torch.where(x.new_tensor(corner) > 0, high, low)) for corner in corners]
        width = (high - low).clamp_min(torch.finfo(x.dtype).tiny)
        rises = [
            sum((2 * corner[k] - 1) * image for corner, image in zip(corners, images, strict=True)) / 2 ** (d - 1)
            for k in range(d)
        ]
        return torch.stack(rises, dim=1) / beside_axes(width, torch.stack(rises, dim=1), 2)

    def _on_cell(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value of each pixel, exact for the rectangle around the source points."""
        top, bottom, left, right = self.rectangle(x, low, high)
        wide = max(float((bottom - top).amax()), float((right - left).amax())) if len(x) else 0.0
        if wide > 1:
            raise ValueError(f"subdivisions: a pixel's source moves by up to {wide:.3g} pixels in one part, want at "
                             f"most 1; take {math.ceil(wide)} times as many, or None")  # fmt: skip
        rows = (top, top.ceil().minimum(bottom), bottom)
        columns = (left, left.ceil().minimum(right), right)
        values = torch.stack([_bilinear(x, row, column, self.fill) for row in rows for column in columns])
        return values.amin(0), values.amax(0)


@dataclass(frozen=True)
class Rotation(Moved):
    """Turns the image counterclockwise about its middle by θ degrees.

    Args:
        subdivisions: parts of an interval on each of which pixels are bounded; None takes as many as keep a source
            point within half a pixel.
        fill: the value outside of the image.
    """

    subdivisions: int | None = None
    fill: float = 0.0
    names = ("degrees",)
    valid = ((-180.0, 180.0),)
    widest = (360.0,)

    def needed(self, x: Tensor, low: Tensor, high: Tensor) -> int:
        """As in :class:`Moved`: the outermost pixel moves most."""
        reach = math.hypot(x.shape[2] - 1, x.shape[3] - 1) / 2
        width = float((high - low).max()) if len(x) else 0.0
        return max(1, math.ceil(2 * reach * math.radians(width)))

    def source(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As in :class:`Moved`."""
        row, column = self._arms(x)
        turn = torch.deg2rad(-theta)[:, :, None]
        back = (turn.cos() * row - turn.sin() * column, turn.sin() * row + turn.cos() * column)
        return back[0] + (x.shape[2] - 1) / 2, back[1] + (x.shape[3] - 1) / 2

    def rectangle(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A coordinate is arm·cos(angle + start): extremes at the ends, and ±arm where a multiple of π lies between."""
        row, column = self._arms(x)
        arm = torch.hypot(row, column)
        found = []
        for start, side in ((torch.atan2(column, row), x.shape[2]), (torch.atan2(-row, column), x.shape[3])):
            begin, end = (torch.deg2rad(angle)[:, :, None] + start for angle in (-high, -low))
            spare = 8 * torch.finfo(x.dtype).eps * (1 + begin.abs() + end.abs())
            ends = torch.stack([begin.cos(), end.cos()])
            first, last = (begin - spare) / (2 * math.pi), (end + spare) / (2 * math.pi)
            most = torch.where(last.floor() >= first.ceil(), 1.0, ends.amax(0) + spare)
            least = torch.where((last - 0.5).floor() >= (first - 0.5).ceil(), -1.0, ends.amin(0) - spare)
            found += [arm * least + (side - 1) / 2, arm * most + (side - 1) / 2]
        return found[0], found[1], found[2], found[3]

    @staticmethod
    def _arms(x: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of each pixel, counted from the middle, (H, W)."""
        height, width = x.shape[2:]
        row = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
        column = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
        return row[:, None].expand(height, width), column[None].expand(height, width)


@dataclass(frozen=True)
class Shift(Moved):
    """Moves the image by θ pixels down and to the right, whole or not.

    Args:
        subdivisions: parts of both intervals; None takes as many as keep a source point within half a pixel.
        fill: the value outside of the image.
    """

    subdivisions: int | None = None
    fill: float = 0.0
    names = ("down", "right")
    valid = ((-64.0, 64.0), (-64.0, 64.0))
    widest = (128.0, 128.0)

    def needed(self, x: Tensor, low: Tensor, high: Tensor) -> int:
        """As in :class:`Moved`."""
        return max(1, math.ceil(2 * float((high - low).max()))) if len(x) else 1

    def source(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """As in :class:`Moved`."""
        rows = torch.arange(x.shape[2], dtype=x.dtype, device=x.device)[None, :, None]
        columns = torch.arange(x.shape[3], dtype=x.dtype, device=x.device)[None, None]
        shape = (len(x), x.shape[2], x.shape[3])
        return (rows - theta[:, 0, None, None]).expand(shape), (columns - theta[:, 1, None, None]).expand(shape)

    def rectangle(self, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rectangle itself."""
        (bottom, right), (top, left) = self.source(x, low), self.source(x, high)
        return top, bottom, left, right


@dataclass(frozen=True)
class Translation(Listed):
    """Moves the image by whole pixels, at most ``pixels`` up, down, left and right, with ``fill`` outside."""

    pixels: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least("pixels", self.pixels, 0, integer=True)

    def parameters(self, x: Tensor) -> Tensor:
        """All pairs, that of no move first."""
        steps = torch.arange(-self.pixels, self.pixels + 1, device=x.device)
        pairs = torch.cartesian_prod(steps, steps).to(x.dtype)
        return pairs[pairs.abs().sum(1).argsort(stable=True)]

    def images(self, x: Tensor, theta: Tensor) -> Tensor:
        """As in :class:`Change`."""
        return Shift(fill=self.fill).images(x, theta)


@dataclass(frozen=True)
class Occlusion(Listed):
    """Covers a square of ``size`` pixels with ``value`` at any place inside the image, or nothing."""

    size: int
    value: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least("size", self.size, 1, integer=True)

    def check(self, x: Tensor) -> None:
        """Wants the square to fit."""
        super().check(x)
        if self.size > min(x.shape[2:]):
            raise ValueError(f"size: want at most {min(x.shape[2:])}, the image's side, got {self.size}")

    def parameters(self, x: Tensor) -> Tensor:
        """The upper left corners; (−size, −size), first, lies outside."""
        corners = [torch.arange(side - self.size + 1, device=x.device) for side in x.shape[2:]]
        nothing = torch.full((1, 2), -self.size, device=x.device)
        return torch.cat([nothing, torch.cartesian_prod(*corners)]).to(x.dtype)

    def images(self, x: Tensor, theta: Tensor) -> Tensor:
        """As in :class:`Change`."""
        inside = []
        for k, side in enumerate(x.shape[2:]):
            place = torch.arange(side, dtype=x.dtype, device=x.device) - theta[:, k : k + 1]
            inside.append((place >= 0) & (place < self.size))
        return torch.where((inside[0][:, :, None] & inside[1][:, None])[:, None], self.value, x)


def _bilinear(x: Tensor, row: Tensor, column: Tensor, fill: float) -> Tensor:
    """Images at the points (N, H, W), with ``fill`` on all pixels outside."""
    height, width = x.shape[2:]
    padded = torch.nn.functional.pad(x - fill, (1, 1, 1, 1))
    row, column = row.clamp(-1, height) + 1, column.clamp(-1, width) + 1
    top, left = row.floor().clamp_max(height), column.floor().clamp_max(width)
    down, along = (row - top)[:, None], (column - left)[:, None]
    at = (top * (width + 2) + left).long().flatten(1)[:, None].expand(-1, x.shape[1], -1)
    flat = padded.flatten(2)

    def corner(step: int) -> Tensor:
        return flat.gather(2, at + step).reshape(*x.shape[:2], *row.shape[1:])

    above = corner(0) + along * (corner(1) - corner(0))
    beneath = corner(width + 2) + along * (corner(width + 3) - corner(width + 2))
    return fill + above + down * (beneath - above)
