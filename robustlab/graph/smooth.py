"""Curved activations: tanh, sigmoid, softplus, GELU, SiLU, ELU, SELU, HardSwish, relaxed by tangents and chords.

Of all lines below f on [l, u] the one with the least area between is highest at the middle of the interval: it touches
the convex envelope of f there. It is either the tangent at the middle or a chord between two points of contact on
either side. Both are found by bisection of the slope m: the point where f(x) − m·x is smallest moves to the right as m
grows, and the envelope's slope is the m at which it passes the middle. For m itself the points of contact are ends of
the interval or points with f′(x) = m, found by bisection on each piece where f is convex, since f′ increases there.

The slope needs no precision to be sound. For whatever slope was found, the intercept is the least value of f(x) − m·x
over the same few candidates, less a few units of rounding. The line above f is the line below −f.

Source: Zhang et al., "Efficient neural network robustness certification with general activation functions" (2018),
section 3.3 and table 2, whose tangents this finds for the sigmoid and the hyperbolic tangent; for functions with more
than one inflection the search is worked out here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Elementwise, Lines
from robustlab.graph.interval import Bounds
from robustlab.graph.operators import Priced, Rule, Shape
from robustlab.graph.time_limit import tick

_INF = math.inf
_SLOPE_STEPS, _SEARCH_STEPS, _POINT_STEPS = 24, 24, 48


@dataclass(frozen=True)
class _Curve:
    """f, its derivative, the pieces where f is convex and where it is concave, and where f is smallest if inside.

    A bend between two pieces belongs to the side to which it opens, as a piece of one point. All slopes lie
    between −``steepest`` and ``steepest``.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    convex: tuple[tuple[float, float], ...]
    concave: tuple[tuple[float, float], ...]
    lowest: float | None = None
    steepest: float = 1.2


def _d_gelu(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _d_silu(x: Tensor) -> Tensor:
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


def _gelu_by_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _d_gelu_by_tanh(x: Tensor) -> Tensor:
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t.square()) * c * (1 + 3 * 0.044715 * x.square())


def _d_selu(x: Tensor) -> Tensor:
    return _SELU * torch.where(x > 0, 1.0, 1.6732632423543772 * x.clamp_max(0).exp())


def _d_hardswish(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2 * x + 3) / 6))


_G, _S, _T = math.sqrt(2.0), 2.3993572805154676, 1.4185040087908284  # inflections of GELU, SiLU and GELU by tanh
_SELU = 1.0507009873554805
CURVES = {
    "tanh": _Curve(torch.tanh, lambda x: 1 - torch.tanh(x).square(), ((-_INF, 0.0),), ((0.0, _INF),)),
    "sigmoid": _Curve(
        torch.sigmoid, lambda x: x.sigmoid() * (1 - x.sigmoid()), ((-_INF, 0.0),), ((0.0, _INF),)
    ),
    "erf": _Curve(torch.erf, lambda x: torch.exp(-x * x) * (2 / math.sqrt(math.pi)), ((-_INF, 0.0),), ((0.0, _INF),)),
    "softplus": _Curve(lambda x: torch.logaddexp(x, torch.zeros_like(x)), torch.sigmoid, ((-_INF, _INF),), ()),
    "gelu": _Curve(F.gelu, _d_gelu, ((-_G, _G),), ((-_INF, -_G), (_G, _INF)), -0.7517915247),
    "gelu_by_tanh": _Curve(
        _gelu_by_tanh, _d_gelu_by_tanh, ((-_T, _T),), ((-_INF, -_T), (_T, _INF)), -0.7524614220710162
    ),
    "silu": _Curve(F.silu, _d_silu, ((-_S, _S),), ((-_INF, -_S), (_S, _INF)), -1.2784645427610738),
    "elu": _Curve(F.elu, lambda x: x.clamp_max(0).exp(), ((-_INF, _INF),), ()),
    "selu": _Curve(F.selu, _d_selu, ((-_INF, 0.0), (0.0, _INF)), ((0.0, 0.0),), steepest=1.8),
    "hardswish": _Curve(F.hardswish, _d_hardswish, ((-3.0, 3.0),), ((-3.0, -3.0), (3.0, 3.0)), -1.5, 1.6),
}  # fmt: skip


@dataclass(frozen=True)
class Smooth(Elementwise):
    """A smooth activation, one of ``CURVES`` by name."""

    name: str

    def forward(self, *values: Tensor) -> Tensor:
        """The activation."""
        return CURVES[self.name].value(values[0])

    def interval(self, *inputs: Bounds) -> Bounds:
        """The values at the ends and, for GELU and SiLU, at their lowest point."""
        curve, (l, u) = CURVES[self.name], (inputs[0].lower, inputs[0].upper)
        low, high = curve.value(l), curve.value(u)
        if curve.lowest is None:
            return Bounds(low, high)
        bottom = curve.value(torch.full_like(l, curve.lowest).clamp(l, u))
        bottom = bottom - 8 * torch.finfo(l.dtype).eps  # the lowest point is known to that precision
        return Bounds(torch.minimum(bottom, torch.minimum(low, high)), torch.maximum(low, high))

    def relax(self, rule: Rule, *inputs: Bounds) -> Lines:
        """Tangents or chords, whichever touches the envelope at the middle."""
        curve, (l, u) = CURVES[self.name], (inputs[0].lower, inputs[0].upper)
        steep = curve.steepest
        lower_slope, lower_bias = line_below(curve.value, curve.slope, curve.convex, l, u, steep)
        upper_slope, upper_bias = line_below(
            lambda x: -curve.value(x), lambda x: -curve.slope(x), curve.concave, l, u, steep
        )
        return Lines(lower_slope, -upper_slope, -upper_bias, lower_bias)

    def priced(
        self, forms: Forms, shapes: Sequence[Shape], secants: Sequence[Tensor], extra: Sequence[Tensor],
        inputs: Sequence[Bounds],
    ) -> Priced:  # fmt: skip
        """As of all functions of one number, less what the points of contact may be off."""
        found = super().priced(forms, shapes, secants, extra, inputs)
        return found._replace(least=found.least - forms.to(forms.coef.abs()).against(_rounding(inputs[0])))

    def turns(self, a: Tensor, mu: Tensor, l: Tensor, u: Tensor) -> list[Tensor]:
        """Where f′(z) = μ/a, on every piece where f is convex (for a > 0) or concave (for a < 0)."""
        curve, m = CURVES[self.name], mu / torch.where(a == 0, torch.ones_like(a), a)
        pieces = [(curve.slope, m, piece) for piece in curve.convex]
        pieces += [(lambda z: -curve.slope(z), -m, piece) for piece in curve.concave]
        with torch.no_grad():
            return [_solve(df, s, l.clamp(*piece), u.clamp(*piece), _POINT_STEPS) for df, s, piece in pieces]


def _rounding(box: Bounds) -> Tensor:
    """How far the least value of f(x) − m·x may lie below that at a computed point of contact, |m| at most 1.8."""
    return 4 * torch.finfo(box.lower.dtype).eps * (1 + box.lower.abs() + box.upper.abs())


def line_below(
    f: Callable[[Tensor], Tensor],
    df: Callable[[Tensor], Tensor],
    convex: tuple[tuple[float, float], ...],
    l: Tensor,
    u: Tensor,
    steepest: float = 1.2,
) -> tuple[Tensor, Tensor]:
    """The line below f on [l, u] that is highest at the middle.

    Args:
        f, df: the function and its derivative, which lies in [−steepest, steepest].
        convex: the pieces where f is convex.
        l, u: the interval, of any shape, l ≤ u.
        steepest: the largest slope that is looked for.

    Returns:
        Slope and intercept, of the same shape, differentiable in l and u (points of tangency are held fixed, which is
        exact to first order for a line through a point of contact).
    """
    low, high = l.detach(), u.detach()
    middle = (low + high) / 2

    def contacts(m: Tensor, steps: int) -> Tensor:
        """Where f(x) − m·x may be smallest, stacked: both ends, and f′(x) = m on every convex piece."""
        with torch.no_grad():
            points = [_solve(df, m, low.clamp(*piece), high.clamp(*piece), steps) for piece in convex]
        return torch.stack([low, high, *(p.clamp(low, high) for p in points)])

    def moving(points: Tensor) -> Tensor:
        """The same points, where an end of the interval moves with what it depends on; a point of tangency stays."""
        return torch.where(points == low, l, torch.where(points == high, u, points))

    with torch.no_grad():
        flat, steep = torch.full_like(low, -steepest), torch.full_like(low, steepest)
        left, right = low, high
        for _ in range(_SLOPE_STEPS):
            tick()
            m = (flat + steep) / 2
            points = contacts(m, _SEARCH_STEPS)
            lowest = points.gather(0, (f(points) - m * points).argmin(dim=0, keepdim=True))[0]
            before = lowest <= middle
            left, flat = torch.where(before, lowest, left), torch.where(before, m, flat)
            right, steep = torch.where(before, right, lowest), torch.where(before, steep, m)
        apart = right - left > 1e-3 * (high - low) + 1e-6
    ends = moving(torch.stack([left, right]))
    gap = torch.where(apart, ends[1] - ends[0], torch.ones_like(l))
    slope = torch.where(apart, (f(ends[1]) - f(ends[0])) / gap, df((l + u) / 2))
    points = moving(contacts(slope.detach(), _POINT_STEPS))
    return slope, (f(points) - slope * points).amin(dim=0) - _rounding(Bounds(low, high))


def _solve(df: Callable[[Tensor], Tensor], m: Tensor, a: Tensor, b: Tensor, steps: int) -> Tensor:
    """f′(x) = m on [a, b], where f′ increases; the nearer end if there is no such x."""
    for _ in range(steps):
        x = (a + b) / 2
        below = df(x) < m
        a, b = torch.where(below, x, a), torch.where(below, b, x)
    return (a + b) / 2
