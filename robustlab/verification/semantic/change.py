"""What a semantic change of images is: few parameters, images, and the tube that encloses them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from robustlab.verification.semantic.tube import Tube


class Change(ABC):
    """A change of images by the parameters θ; θ = 0 changes nothing."""

    @abstractmethod
    def images(self, x: Tensor, theta: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] and (N, d) parameters → the changed images."""

    def check(self, x: Tensor) -> None:
        """Raises ValueError where the images cannot be changed so."""
        if x.dim() != 4:
            raise ValueError(f"x: want images (N, C, H, W), got shape {tuple(x.shape)}")


class Enclosed(Change):
    """A change by real numbers, whose images between two parameters are enclosed by a tube.

    Attributes:
        names: of the parameters.
        valid: the range of each, (lowest, highest).
        widest: the longest interval of each.
    """

    names: tuple[str, ...]
    valid: tuple[tuple[float, float], ...]
    widest: tuple[float, ...]

    @abstractmethod
    def tube(self, x: Tensor, low: Tensor, high: Tensor) -> Tube:
        """Encloses all images for parameters between ``low`` and ``high``, (N, d)."""


class Listed(Change):
    """A change with finitely many parameters: all images are tried, so the answer is exact."""

    @abstractmethod
    def parameters(self, x: Tensor) -> Tensor:
        """(P, d) all parameters."""


def beside_axes(numbers: Tensor, x: Tensor, kept: int = 1) -> Tensor:
    """(N, …) with as many axes as ``x``: the first ``kept`` of its own, then ones."""
    return numbers.reshape(*numbers.shape[:kept], *[1] * (x.dim() - kept))


def rounded_tube(
    low: Tensor, high: Tensor, slope: Tensor, below: Tensor, above: Tensor, lower: Tensor, upper: Tensor
) -> Tube:
    """The tube, moved outward by what rounding may have cost: pixels near 0 are differences of numbers near 1."""
    size = torch.maximum(low.abs(), high.abs())[:, :, None, None, None]
    spare = 16 * torch.finfo(below.dtype).eps
    wide = spare * (1 + (slope.abs() * size).sum(1))
    return Tube(low, high, slope, below - wide, above + wide, lower - spare, upper + spare)


def as_box(change: Enclosed, low: float | Sequence[float], high: float | Sequence[float]) -> list[tuple[float, float]]:
    """The interval of each parameter; raises ValueError where it leaves the valid range."""
    ends = [[float(end)] if isinstance(end, int | float) else [float(e) for e in end] for end in (low, high)]
    for name, end in zip(("low", "high"), ends, strict=True):
        if len(end) != len(change.names):
            raise ValueError(f"{name}: want one number for each of {', '.join(change.names)}, got {len(end)}")
    for what, least, most, (first, last), widest in zip(change.names, *ends, change.valid, change.widest, strict=True):
        if not (math.isfinite(least) and math.isfinite(most) and least <= most):
            raise ValueError(f"low, high: want finite numbers with low ≤ high for {what}, got {least} and {most}")
        if least < first or most > last:
            raise ValueError(f"low, high: want {what} in [{first}, {last}], where it is defined, got [{least}, {most}]")
        if most - least > widest:
            raise ValueError(f"low, high: want at most {widest} of {what} between them, got {most - least}")
    return list(zip(*ends, strict=True))
