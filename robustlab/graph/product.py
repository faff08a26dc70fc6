"""The product of two nodes, relaxed by McCormick's planes.

    y_l·x + x_l·y − x_l·y_l  ≤  x·y  ≤  y_l·x + x_u·y − x_u·y_l

The other corner gives another plane below and above; both pass through the same value at the center of the box, and the
choice is LiRPA's.

Source: Xu et al., "Automatic perturbation analysis for scalable certified robustness and beyond" (2020), appendix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds
from robustlab.graph.operators import Backward, Operator, Priced, Rule, Shape


@dataclass(frozen=True)
class Product(Operator):
    """x·y, element by element, of the same shape."""

    affine: ClassVar[bool] = False

    def forward(self, *values: Tensor) -> Tensor:
        """x·y."""
        return values[0] * values[1]

    def interval(self, *inputs: Bounds) -> Bounds:
        """The least and the greatest of the four corners."""
        x, y = inputs
        corners = torch.stack([x.lower * y.lower, x.lower * y.upper, x.upper * y.lower, x.upper * y.upper])
        return Bounds(corners.amin(dim=0), corners.amax(dim=0))

    def terms(self, *largest: Tensor) -> Tensor:
        """|x|·|y| / 8."""
        return largest[0] * largest[1] / 8

    def relax(self, rule: Rule, *inputs: Bounds) -> tuple[Bounds, ...]:
        """The bounds themselves, from which the planes are made."""
        return inputs

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: tuple[Bounds, ...]) -> Backward:
        """a·x·y ≥ a·(plane below) where a ≥ 0, a·(plane above) where a < 0."""
        (x_l, x_u), y_l = (forms.pick(b) for b in (lines[0].lower, lines[0].upper)), forms.pick(lines[1].lower)
        x_at = torch.where(forms.coef >= 0, x_l, x_u)
        constant = -(forms.coef * x_at * y_l).flatten(1).sum(dim=1)
        return (forms.to(forms.coef * y_l), forms.to(forms.coef * x_at)), constant

    def secants(self, forms: Forms, lines: tuple[Bounds, ...]) -> tuple[Tensor, ...]:
        """y_l on x; the end of x on y."""
        x_l, x_u = forms.pick(lines[0].lower), forms.pick(lines[0].upper)
        return forms.pick(lines[1].lower).expand_as(forms.coef), torch.where(forms.coef >= 0, x_l, x_u)

    def priced(
        self, forms: Forms, shapes: Sequence[Shape], secants: Sequence[Tensor], extra: Sequence[Tensor],
        inputs: Sequence[Bounds],
    ) -> Priced:  # fmt: skip
        """min {a·x·y − μ·x − ν·y}, at one of the four corners."""
        a, (mu, nu) = forms.coef, (s * forms.coef + more for s, more in zip(secants, extra, strict=True))
        x = torch.stack([forms.pick(end) for end in (inputs[0].lower, inputs[0].upper)])[:, None]
        y = torch.stack([forms.pick(end) for end in (inputs[1].lower, inputs[1].upper)])
        value = a * x * y - mu * x - nu * y
        terms = (a * x * y).abs() + (mu * x).abs() + (nu * y).abs()
        least, most = value.flatten(0, 1).amin(dim=0), terms.flatten(0, 1).amax(dim=0)
        return Priced((forms.to(mu), forms.to(nu)), least.flatten(1).sum(1), most.flatten(1).sum(1))
