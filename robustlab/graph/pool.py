"""Max-pooling, relaxed by one plane below and one above each window.

For numbers z_i in [l_i, u_i] and any γ ≥ max l_i, with a_i = max(u_i − γ, 0) / (u_i − l_i),

    max z_i  ≤  γ + Σ a_i (z_i − l_i)

since for each i the right side is at least z_i at both ends of its interval. CNN-Cert's γ makes Σ a_i = 1 where that is
possible. Where one lower bound passes all other upper bounds, that input is the maximum and both planes are exact.

Source: Boopathy et al., "CNN-Cert: An efficient framework for certifying robustness of convolutional neural networks"
(2019), table 4 and appendix; the limits of γ are widened here, so that intervals without a common point are covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds
from robustlab.graph.operators import Backward, Operator, Priced, Rule, Shape


@dataclass(frozen=True, eq=False)
class Planes:
    """Slopes (N, C, k, L) on the k elements of the L windows of each channel, intercepts (N, C, H', W')."""

    lower_slope: Tensor
    upper_slope: Tensor
    lower_bias: Tensor
    upper_bias: Tensor


@dataclass(frozen=True)
class MaxPool(Operator):
    """Max-pooling of images (C, H, W). ``ends`` is the padding at the far ends, where it is not ``padding``."""

    affine: ClassVar[bool] = False

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ends: tuple[int, int] | None = None

    @property
    def _around(self) -> tuple[int, int, int, int]:
        """Left, right, top and bottom."""
        (top, left), (bottom, right) = self.padding, self.ends or self.padding
        return left, right, top, bottom

    def forward(self, *values: Tensor) -> Tensor:
        """The maximum of each window."""
        if self.ends is None:
            return F.max_pool2d(values[0], self.kernel, self.stride, self.padding, self.dilation)
        padded = F.pad(values[0], self._around, value=-torch.inf)
        return F.max_pool2d(padded, self.kernel, self.stride, 0, self.dilation)

    def interval(self, *inputs: Bounds) -> Bounds:
        """The maxima of the bounds."""
        return Bounds(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def windows(self, values: Tensor, outside: float) -> Tensor:
        """(N, C, k, L): the elements of each window, those of the padding as ``outside``."""
        padded = F.pad(values, self._around, value=outside)
        n, c = values.shape[:2]
        unfolded = F.unfold(padded, self.kernel, dilation=self.dilation, stride=self.stride)
        return unfolded.reshape(n, c, -1, unfolded.shape[-1])

    def relax(self, rule: Rule, *inputs: Bounds) -> Planes:
        """CNN-Cert's plane above; below, the input with the largest lower bound, or the plane above moved down."""
        shape = self.forward(inputs[0].lower).shape
        # Padding never wins: its interval is a point below all others.
        least = float(inputs[0].lower.detach().min()) - 1.0
        l, u = self.windows(inputs[0].lower, least), self.windows(inputs[0].upper, least)
        best, at = l.max(dim=2, keepdim=True)
        width = (u - l).clamp_min(torch.finfo(l.dtype).tiny)
        alive = (u > best).to(l.dtype)  # those that can still be the maximum
        weight = alive / width.clamp_min(1e-12)
        gamma = ((u * weight).sum(2, keepdim=True) - 1) / weight.sum(2, keepdim=True).clamp_min(1e-12)
        gamma = torch.maximum(gamma, best)
        slope = ((u - gamma).clamp_min(0.0) / width) * (u > l)
        others = torch.where(torch.zeros_like(u, dtype=torch.bool).scatter(2, at, True), -torch.inf, u)
        sure = others.amax(dim=2, keepdim=True) <= best
        winner = torch.zeros_like(l).scatter(2, at, 1.0)
        upper_slope = torch.where(sure, winner, slope)
        above = torch.where(sure, torch.zeros_like(gamma), gamma - (slope * l).sum(2, keepdim=True))
        lower_slope, below = winner, torch.zeros_like(gamma)
        if rule.pool == "parallel":
            total = slope.sum(2, keepdim=True)
            top = torch.where(total < 1, best, u.amax(dim=2, keepdim=True))
            lower_slope = upper_slope
            below = torch.where(sure, below, top * (1 - total))
        return Planes(lower_slope, upper_slope, below.reshape(shape), above.reshape(shape))

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: Planes) -> Backward:
        """Coefficients spread over the windows by the slopes, overlaps summed."""
        forms = forms.full(lines.lower_bias.shape[1:])
        positive, negative = forms.coef.clamp_min(0.0), forms.coef.clamp_max(0.0)
        constant = (positive * forms.pick(lines.lower_bias) + negative * forms.pick(lines.upper_bias)).flatten(1).sum(1)
        spread = positive.flatten(2).unsqueeze(2) * forms.pick(lines.lower_slope)
        spread = spread + negative.flatten(2).unsqueeze(2) * forms.pick(lines.upper_slope)
        return (forms.to(self._folded(spread, shapes[0])),), constant

    def _folded(self, spread: Tensor, shape: Shape) -> Tensor:
        """Coefficients on the elements of windows (R, C, k, L) as coefficients on the image, overlaps summed."""
        (_, height, width), (left, right, top, bottom) = shape, self._around
        size = height + top + bottom, width + left + right
        whole = F.fold(spread.flatten(1, 2), size, self.kernel, self.dilation, 0, self.stride)
        return whole[..., top : top + height, left : left + width]

    def secants(self, forms: Forms, lines: Planes) -> tuple[Tensor, ...]:
        """The slopes of the plane below where a ≥ 0, of the plane above where a < 0; 0 on the padding."""
        a = forms.full(lines.lower_bias.shape[1:]).coef.flatten(2).unsqueeze(2)
        return (torch.where(a >= 0, forms.pick(lines.lower_slope), forms.pick(lines.upper_slope)),)

    def priced(
        self, forms: Forms, shapes: Sequence[Shape], secants: Sequence[Tensor], extra: Sequence[Tensor],
        inputs: Sequence[Bounds],
    ) -> Priced:  # fmt: skip
        """min {a·max z_i − Σ μ_i·z_i} over the box of each window.

        For a < 0, the least over j of what z_j as the maximum gives, each z_i on its own. For a ≥ 0 the maximum t is
        fixed first, then z_i ≤ t; as a function of t the least is linear between max l and the u_i beyond it.
        """
        box, inside = inputs[0], self.windows(torch.ones_like(inputs[0].lower[:1]), 0.0)
        forms = forms.full(self.forward(box.lower).shape[1:])
        a, outside = forms.coef.flatten(2).unsqueeze(2), float(box.lower.detach().min()) - 1.0
        mu = (secants[0] * a + extra[0]) * inside
        l, u = (forms.pick(self.windows(end, outside)) for end in (box.lower, box.upper))
        alone = torch.maximum(mu * l, mu * u)
        with_max = torch.minimum((a - mu) * l, (a - mu) * u) + alone
        least, best = with_max.amin(dim=2, keepdim=True) - alone.sum(2, keepdim=True), l.amax(dim=2, keepdim=True)
        ends = [best, *torch.maximum(u, best).split(1, dim=2)]
        bent = [a * t - torch.maximum(mu * l, mu * torch.minimum(u, t)).sum(2, keepdim=True) for t in ends]
        least = torch.where(a >= 0, torch.stack(bent).amin(dim=0), least)
        most = torch.maximum(l.abs(), u.abs())
        terms = (mu.abs() * most).sum(2) + (a.abs() * most.amax(dim=2, keepdim=True)).sum(2)
        return Priced((forms.to(self._folded(mu, shapes[0])),), least.flatten(1).sum(1), terms.flatten(1).sum(1))
