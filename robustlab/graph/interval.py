"""Bounds of the values of a node: what every method takes in and gives back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bounds:
    """lower ≤ value ≤ upper, element by element.

    Attributes:
        lower, upper: (N, ...).
    """

    lower: Tensor
    upper: Tensor

    @property
    def center(self) -> Tensor:
        """(lower + upper) / 2."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """(upper − lower) / 2."""
        return (self.upper - self.lower) / 2

    @property
    def largest(self) -> Tensor:
        """max(|lower|, |upper|), the largest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def width(self) -> Tensor:
        """upper − lower."""
        return self.upper - self.lower

    def select(self, rows: Tensor) -> Bounds:
        """The bounds of some samples; ``rows`` is an index or a mask."""
        return Bounds(self.lower[rows], self.upper[rows])
