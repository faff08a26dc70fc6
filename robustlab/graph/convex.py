"""Convex functions of one number: square, exponential, and on positive numbers 1/z and 1/√z.

A convex function lies below its chord and above its tangents. The tangent at the middle of the interval is the line
below with the least area between; for the exponential it moves left where it would fall far below zero.

Softmax and layer normalization are made of these and of products:

    softmax(z)_k = 1 / (1 + Σ_{j≠k} exp(z_j − z_k))        (z − mean z) / √(var z + ε)

Source: Shi et al., "Robustness verification for transformers" (2020), for the parts of attention and their lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab.graph.hinge import Elementwise, Lines
from robustlab.graph.interval import Bounds
from robustlab.graph.operators import Rule


@dataclass(frozen=True)
class _Function:
    """f, f′, where f′(z) = m, and whether z must be positive."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    at_slope: Callable[[Tensor], Tensor]
    positive: bool = False


FUNCTIONS = {
    "square": _Function(torch.square, lambda z: 2 * z, lambda m: m / 2),
    "exp": _Function(torch.exp, torch.exp, lambda m: m.clamp_min(1e-300 if m.dtype == torch.float64 else 1e-38).log()),
    "reciprocal": _Function(torch.reciprocal, lambda z: -z.pow(-2), lambda m: (-m).clamp_min(0).pow(-0.5), True),
    "rsqrt": _Function(torch.rsqrt, lambda z: -z.pow(-1.5) / 2, lambda m: (-2 * m).clamp_min(0).pow(-2 / 3), True),
}


@dataclass(frozen=True)
class Convex(Elementwise):
    """A convex function, one of ``FUNCTIONS`` by name. Where it needs positive numbers, others give no bound."""

    name: str

    def forward(self, *values: Tensor) -> Tensor:
        """The function."""
        return FUNCTIONS[self.name].value(values[0])

    def interval(self, *inputs: Bounds) -> Bounds:
        """The values at the ends; for the square 0 where it lies between."""
        (l, u), function = (inputs[0].lower, inputs[0].upper), FUNCTIONS[self.name]
        ends = torch.stack([function.value(l), function.value(u)])
        low, high = ends.amin(0), ends.amax(0)
        if self.name == "square":
            low = torch.where((l < 0) & (u > 0), 0.0, low)
        if function.positive:
            low, high = torch.where(l > 0, low, -torch.inf), torch.where(l > 0, high, torch.inf)
        spare = 2 * torch.finfo(l.dtype).eps
        return Bounds(low - spare * low.abs(), high + spare * high.abs())

    def relax(self, rule: Rule, *inputs: Bounds) -> Lines:
        """The chord above; below, the tangent at the middle. What has no finite bound gives no number."""
        function, (l, u) = FUNCTIONS[self.name], (inputs[0].lower, inputs[0].upper)
        at = (l + u) / 2
        if self.name == "exp":
            at = torch.minimum(at, l + 1)  # the tangent of a point farther right is below 0 at l
        width = u - l
        flat = width <= 1e-6 * (1 + l.abs() + u.abs())
        slope = function.slope(at)
        first, last = function.value(l), function.value(u)
        chord = torch.where(flat, slope, (last - first) / torch.where(flat, 1.0, width))
        size = first.abs() + last.abs() + (slope.abs() + chord.abs()) * (l.abs() + u.abs())
        spare = 8 * torch.finfo(l.dtype).eps * size
        below = function.value(at) - slope * at - spare
        above = torch.maximum(first - chord * l, last - chord * u) + spare
        if function.positive:
            below = torch.where(l > 0, below, torch.nan)
        return Lines(slope, chord, above, below)

    def turns(self, a: Tensor, mu: Tensor, l: Tensor, u: Tensor) -> list[Tensor]:
        """Where f′(z) = μ/a."""
        return [FUNCTIONS[self.name].at_slope(mu / torch.where(a == 0, torch.ones_like(a), a)).nan_to_num(0.0)]
