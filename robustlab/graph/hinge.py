"""Functions with a bend: ReLU, leaky ReLU, absolute value, clamp.

On l < 0 < u a function that is convex with one bend at 0 lies below its chord and above any line through the bend with
a slope between its own two. For the ReLU,

    α·z  ≤  max(z, 0)  ≤  u·(z − l) / (u − l),   0 ≤ α ≤ 1

which is the triangle of Ehlers (2017) but for the choice of one α. The choice is the ``Rule``: it is all that tells
Fast-Lin from CROWN. Where l ≥ 0 or u ≤ 0 the neuron is stable and both lines are the function.

Source: Weng et al., "Towards fast computation of certified robustness for ReLU networks" (2018), section 3.3 (parallel
lines); Zhang et al., "Efficient neural network robustness certification with general activation functions" (2018),
table 2 (adaptive).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from robustlab.geometry.portions import fits, portions
from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds
from robustlab.graph.operators import Backward, Operator, Priced, Rule, Shape


@dataclass(frozen=True, eq=False)
class Lines:
    """lower_slope·z + lower_bias ≤ f(z) ≤ upper_slope·z + upper_bias, element by element.

    Attributes:
        lower_slope, upper_slope, upper_bias: (N, *shape); ``lower_slope`` may be one per form instead, (R, *shape).
        lower_bias: the same; None for 0.
        per_form: whether ``lower_slope`` has a value for each form instead of one for each sample.
    """

    lower_slope: Tensor
    upper_slope: Tensor
    upper_bias: Tensor
    lower_bias: Tensor | None = None
    per_form: bool = False


class Elementwise(Operator):
    """A nonlinear function of each element, monotone or not, that is relaxed by two lines."""

    affine: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True

    @property
    def bends(self) -> tuple[float, ...] | None:
        """Where a function is bent that is linear elsewhere; None for others."""
        return None

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: Lines) -> Backward:
        """a·f(z) ≥ a·(line below) where a ≥ 0, a·(line above) where a < 0.

        Slopes and constants are 0 outside the map, so that loose forms are so no more.
        """
        coef, above = forms.by_sample(lines.upper_slope)
        below = lines.lower_slope.reshape(coef.shape) if lines.per_form else forms.by_sample(lines.lower_slope)[1]
        negative, positive = coef.clamp_max(0.0), coef.clamp_min(0.0)
        constant = forms.to(negative.reshape(forms.coef.shape)).against(lines.upper_bias)
        if lines.lower_bias is not None:
            constant = constant + forms.to(positive.reshape(forms.coef.shape)).against(lines.lower_bias)
        if torch.is_grad_enabled():
            coef = torch.addcmul(positive * below, negative, above)
        else:  # the same where the numbers lie
            coef = positive.mul_(below).addcmul_(negative, above)
        return (replace(forms, coef=coef.reshape(forms.coef.shape), loose=False),), constant

    def secants(self, forms: Forms, lines: Lines) -> tuple[Tensor, ...]:
        """The slope of the line below where a ≥ 0, of the line above where a < 0."""
        return (torch.where(forms.coef >= 0, forms.pick(lines.lower_slope), forms.pick(lines.upper_slope)),)

    def priced(
        self, forms: Forms, shapes: Sequence[Shape], secants: Sequence[Tensor], extra: Sequence[Tensor],
        inputs: Sequence[Bounds],
    ) -> Priced:  # fmt: skip
        """min {a·f(z) − μ·z : l ≤ z ≤ u}, element by element: at an end, or where the difference may turn.

        Its slope is f in a and −z in μ at the point where it is attained, and their mean where several attain it; so
        the candidates need no gradient of their own.
        """
        a, mu = forms.coef, secants[0] * forms.coef + extra[0]
        if self.bends is not None and not fits((2 + len(self.bends)) * a.numel()):  # few are done sooner as below
            l, u = inputs[0].lower, inputs[0].upper
            z = torch.stack([l, u, *(torch.full_like(l, bend).clamp(l, u) for bend in self.bends)], dim=1)
            least, terms = _Least.apply(a, mu, *(forms.by_sample(point)[1] for point in (z, self.forward(z))))
            return Priced((forms.to(mu),), least, terms)
        with torch.no_grad():
            l, u = (forms.pick(end).expand_as(a) for end in (inputs[0].lower, inputs[0].upper))
            z = torch.stack([l, u, *(point.clamp(l, u) for point in self.turns(a.detach(), mu.detach(), l, u))])
            f = self.forward(z)
            gain, cost = a * f, mu * z
            terms = (gain.abs() + cost.abs()).amax(dim=0).flatten(1).sum(1)
            worth = gain - cost
            least = worth.amin(dim=0)
            share = (worth == least).to(z.dtype)
            share /= share.sum(dim=0)
            f, z = (share * f).sum(dim=0), (share * z).sum(dim=0)
        least = least + (a - a.detach()) * f - (mu - mu.detach()) * z
        return Priced((forms.to(mu),), least.flatten(1).sum(1), terms)

    def turns(self, a: Tensor, mu: Tensor, l: Tensor, u: Tensor) -> list[Tensor]:
        """Where a·f(z) − μ·z may be smallest between l and u: of a function that is made of lines, at its bends."""
        return [torch.full_like(l, bend) for bend in self.bends or ()]


class _Least(torch.autograd.Function):
    """Σ min {a·f(z) − μ·z : z in some points}, (R,), and the sum of the largest absolute terms, (R,).

    Its slope in a is the mean of f, in μ the mean of −z, over the points where the minimum is attained. Elements are
    done in parts that fit a cache.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, mu: Tensor, z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and ``f`` (n, 1, points, *shape) of forms in groups, else (R or 1, points, *shape)."""
        samples, count = (len(z), z.shape[2]) if z.dim() > a.dim() + 1 else (len(a), z.shape[1])
        coef, slope = (t.detach().reshape(samples, -1, 1, a[:1].numel()) for t in (a, mu))
        z, f = (t.reshape(len(t), 1, count, -1) for t in (z, f))
        value, terms = (coef.new_empty(coef.shape[:2]) for _ in range(2))
        mean_f, mean_z = (torch.empty_like(coef[:, :, 0]) for _ in range(2))
        for part in portions(coef.expand(-1, -1, count, -1)):
            z_here, f_here = (t if len(t) == 1 else t[part] for t in (z, f))
            gain, cost = coef[part] * f_here, slope[part] * z_here
            worth = gain - cost
            least = worth.amin(dim=2)
            value[part] = least.sum(2)
            terms[part] = gain.abs_().add_(cost.abs_()).amax(dim=2).sum(2)
            share = torch.eq(worth, least.unsqueeze(2), out=worth)
            share /= share.sum(dim=2, keepdim=True)
            torch.sum(share * f_here, dim=2, out=mean_f[part])
            torch.sum(share.mul_(z_here), dim=2, out=mean_z[part])
        ctx.save_for_backward(mean_f.reshape(a.shape), mean_z.reshape(a.shape))
        ctx.mark_non_differentiable(terms)
        return value.flatten(), terms.flatten()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The means, times what arrives."""
        mean_f, mean_z = ctx.saved_tensors
        up = grads[0].reshape(-1, *(1,) * (mean_f.dim() - 1))
        return up * mean_f, -up * mean_z, None, None


@dataclass(frozen=True)
class Hinge(Elementwise):
    """left·z for z < 0 and right·z for z ≥ 0, with left ≤ right: ReLU (0, 1), leaky ReLU (a, 1), |z| (−1, 1)."""

    left: float
    right: float

    def forward(self, *values: Tensor) -> Tensor:
        """left·min(z, 0) + right·max(z, 0)."""
        (z,) = values
        if (self.left, self.right) == (0.0, 1.0):
            return z.relu()
        return self.left * z.clamp_max(0.0) + self.right * z.clamp_min(0.0)

    def interval(self, *inputs: Bounds) -> Bounds:
        """The values at the ends; the lower one is 0 if the function turns at the bend inside."""
        low, high = self.forward(inputs[0].lower), self.forward(inputs[0].upper)
        if self.left >= 0:
            return Bounds(low, high)
        crosses = (inputs[0].lower < 0) & (inputs[0].upper > 0)
        return Bounds(torch.where(crosses, 0.0, torch.minimum(low, high)), torch.maximum(low, high))

    @property
    def bends(self) -> tuple[float, ...]:
        """At 0."""
        return (0.0,)

    def unstable(self, *inputs: Bounds) -> tuple[Tensor, ...]:
        """Where the bend lies inside."""
        return ((inputs[0].lower < 0) & (inputs[0].upper > 0),)

    def relax(self, rule: Rule, *inputs: Bounds) -> Lines:
        """The chord above; below, the line through the bend whose slope the rule chooses."""
        low, high = inputs[0].lower.clamp_max(0.0), inputs[0].upper.clamp_min(0.0)
        chord = high / (high - low).clamp_min(torch.finfo(low.dtype).tiny)
        alpha = {
            "adaptive": lambda: (high >= -low).to(low.dtype),
            "parallel": lambda: chord,
            "zero": lambda: (low == 0).to(low.dtype),
            "one": lambda: (high > 0).to(low.dtype),
        }[rule.relu]()
        if (self.left, self.right) == (0.0, 1.0):
            return Lines(alpha, chord, -low * chord)
        bend = self.right - self.left  # f(z) = left·z + bend·max(z, 0)
        return Lines(self.left + bend * alpha, self.left + bend * chord, -bend * low * chord)


@dataclass(frozen=True)
class Clamp(Elementwise):
    """min(max(z, low), high); ReLU6 and hardtanh are clamps. Either end may be infinite."""

    low: float
    high: float

    def forward(self, *values: Tensor) -> Tensor:
        """Clamped values."""
        return values[0].clamp(self.low, self.high)

    def interval(self, *inputs: Bounds) -> Bounds:
        """The values at the ends."""
        return Bounds(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    @property
    def bends(self) -> tuple[float, ...]:
        """At both ends."""
        return (self.low, self.high)

    def unstable(self, *inputs: Bounds) -> tuple[Tensor, ...]:
        """Where a bend lies inside."""
        l, u = inputs[0].lower, inputs[0].upper
        return (((l < self.low) & (u > self.low)) | ((l < self.high) & (u > self.high)),)

    def relax(self, rule: Rule, *inputs: Bounds) -> Lines:
        """Above, the chord as far as the function is convex there, else the line from the lower end to the upper bend.

        Below, the same turned by 180 degrees: −clamp(−z, −high, −low).
        """
        l, u = inputs[0].lower, inputs[0].upper
        upper_slope, upper_bias = _above_clamp(l, u, self.low, self.high)
        lower_slope, turned_bias = _above_clamp(-u, -l, -self.high, -self.low)
        return Lines(lower_slope, upper_slope, upper_bias, -turned_bias)


def _above_clamp(l: Tensor, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line above clamp(z, low, high) on [l, u].

    Of all such lines, the one that is lowest at the middle: flat where the middle is beyond the upper bend, else from
    (l, clamp(l)) to the upper bend or, if that is not reached, to the function's value at u.
    """
    f_l = l.clamp(low, high)
    end = torch.minimum(u, torch.full_like(u, high))  # the upper bend, or u where it is not reached
    end = torch.maximum(end, l)
    f_end = end.clamp(low, high)
    slope = (f_end - f_l) / (end - l).clamp_min(torch.finfo(l.dtype).tiny)
    flat = (l + u >= 2 * high) | (u <= low)
    slope = torch.where(flat, torch.zeros_like(slope), torch.where(l >= low, torch.ones_like(slope), slope))
    through = torch.where(flat, u, l)
    return slope, through.clamp(low, high) - slope * through
