"""Affine operators: dense layers, scales and shifts, sums, and everything that only moves or sums numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds
from robustlab.graph.operators import Affine, Backward, Operator, Shape


@dataclass(frozen=True, eq=False)
class Linear(Affine):
    """W·x + b on the last dimension; ``weight`` (out, in), ``bias`` (out,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def forward(self, *values: Tensor) -> Tensor:
        """W·x + b."""
        return F.linear(values[0], self.weight, self.bias)

    def magnitude(self, radius: Tensor) -> Tensor:
        """|W|·radius."""
        return F.linear(radius, self.weight.abs())

    def interval(self, *inputs: Bounds) -> Bounds:
        """W·center + b ∓ |W|·radius, with the halves of both in W."""
        (x,), half = inputs, self.weight / 2
        center, radius = F.linear(x.lower + x.upper, half, self.bias), F.linear(x.upper - x.lower, half.abs())
        return Bounds(center - radius, center + radius)

    def absolute(self) -> Linear:
        """With |W|."""
        return replace(self, weight=self.weight.abs())

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """⟨a, W·x + b⟩ = ⟨Wᵀa, x⟩ + ⟨a, b⟩."""
        forms = forms.full((*shapes[0][:-1], self.weight.shape[0]))
        constant = 0.0 if self.bias is None else forms.dot(self.bias)
        return (forms.to(forms.coef @ self.weight),), constant


@dataclass(frozen=True, eq=False)
class ScaleShift(Affine):
    """scale·x + shift, both tensors that broadcast against (N, *shape): normalization, batch norm, constants."""

    scale: Tensor
    shift: Tensor

    def forward(self, *values: Tensor) -> Tensor:
        """scale·x + shift."""
        return values[0] * self.scale + self.shift

    def magnitude(self, radius: Tensor) -> Tensor:
        """|scale|·radius."""
        return radius * self.scale.abs()

    def absolute(self) -> ScaleShift:
        """With |scale|."""
        return replace(self, scale=self.scale.abs())

    def terms(self, *largest: Tensor) -> Tensor:
        """(|scale|·largest + |shift|) / 8."""
        return (self.magnitude(largest[0]) + self.shift.abs()) / 8

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """⟨a, s·x + t⟩ = ⟨s·a, x⟩ + ⟨a, t⟩."""

        def beside(number: Tensor) -> Tensor:
            if number[0].numel() == number.shape[1 : 2 if number.dim() > 1 else 1].numel():
                return number  # one per channel, or one for all: the same in every window
            return forms.pick(number.expand(1, *shapes[0]))

        scale, shift = (n.reshape((1,) * (len(shapes[0]) + 1 - n.dim()) + n.shape) for n in (self.scale, self.shift))
        shift = beside(shift)
        if shift.dim() > 2 and shift.shape[0] == 1 and shift[0, 0].numel() == 1:  # one per channel: sums first
            constant = forms.coef.flatten(2).sum(dim=2) @ shift.flatten().expand(forms.coef.shape[1])
        else:
            constant = forms.dot(shift)
        return (forms.to(forms.coef * beside(scale)),), constant


@dataclass(frozen=True)
class Add(Operator):
    """x + y, of the same shape."""

    def forward(self, *values: Tensor) -> Tensor:
        """x + y."""
        return values[0] + values[1]

    def interval(self, *inputs: Bounds) -> Bounds:
        """Sums of the bounds."""
        return Bounds(inputs[0].lower + inputs[1].lower, inputs[0].upper + inputs[1].upper)

    def absolute(self) -> Add:
        """Itself."""
        return self

    def terms(self, *largest: Tensor) -> Tensor:
        """(|x| + |y|) / 8."""
        return (largest[0] + largest[1]) / 8

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """The same form on both."""
        return (forms, forms), 0.0


@dataclass(frozen=True)
class Sub(Operator):
    """x − y, of the same shape."""

    def forward(self, *values: Tensor) -> Tensor:
        """x − y."""
        return values[0] - values[1]

    def interval(self, *inputs: Bounds) -> Bounds:
        """Differences of opposite bounds."""
        return Bounds(inputs[0].lower - inputs[1].upper, inputs[0].upper - inputs[1].lower)

    def absolute(self) -> Add:
        """x + y."""
        return Add()

    def terms(self, *largest: Tensor) -> Tensor:
        """(|x| + |y|) / 8."""
        return (largest[0] + largest[1]) / 8

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """The form on x, its negative on y."""
        return (forms, forms.to(-forms.coef)), 0.0


@dataclass(frozen=True)
class Concat(Operator):
    """Values one after the other along ``dim`` (counted with the batch, so at least 1)."""

    dim: int

    def forward(self, *values: Tensor) -> Tensor:
        """Joined values."""
        return torch.cat(values, dim=self.dim)

    def interval(self, *inputs: Bounds) -> Bounds:
        """Joined bounds."""
        return Bounds(self.forward(*(b.lower for b in inputs)), self.forward(*(b.upper for b in inputs)))

    def absolute(self) -> Concat:
        """Itself."""
        return self

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """Each input gets its part of the coefficients."""
        lengths = [shape[self.dim - 1] for shape in shapes]
        if self.dim != 1:
            whole = list(shapes[0])
            whole[self.dim - 1] = sum(lengths)
            forms = forms.full(whole)
        return tuple(forms.to(part) for part in forms.coef.split(lengths, dim=self.dim)), 0.0


class Moves(Operator):
    """An operator that keeps every number that it is given as it is."""

    def interval(self, *inputs: Bounds) -> Bounds:
        """Moved bounds."""
        return Bounds(self.forward(inputs[0].lower), self.forward(inputs[0].upper))

    def absolute(self) -> Operator:
        """Itself."""
        return self


@dataclass(frozen=True)
class Reshape(Moves):
    """The numbers of each sample in another shape, without the batch."""

    shape: Shape

    def forward(self, *values: Tensor) -> Tensor:
        """The same numbers in ``shape``."""
        return values[0].reshape(-1, *self.shape)

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """The form in the shape of the input."""
        forms = forms.full(self.shape)
        return (forms.to(forms.coef.reshape(-1, *shapes[0])),), 0.0


@dataclass(frozen=True, eq=False)
class Rearrange(Moves):
    """Numbers in another order, some left out or repeated: permute, slice, flip, expand.

    ``index`` (numel of ``shape``,) says which element of the flattened input stands at each place of the output.
    """

    index: Tensor
    shape: Shape

    @classmethod
    def of(cls, move: Callable[[Tensor], Tensor], shape: Shape, device: torch.device | None = None) -> Rearrange:
        """The operator of a function that only moves numbers, found by moving the numbers 0, 1, 2, …"""
        places = move(torch.arange(prod(shape), device=device).reshape(1, *shape))
        return cls(places.flatten(), tuple(places.shape[1:]))

    def forward(self, *values: Tensor) -> Tensor:
        """The moved numbers."""
        return values[0].flatten(1)[:, self.index].reshape(-1, *self.shape)

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """Every coefficient goes back to the number it belongs to; those of repeated numbers add up."""
        forms = forms.full(self.shape)
        back = forms.coef.new_zeros(forms.coef.shape[0], prod(shapes[0]))
        back = back.index_add(1, self.index, forms.coef.flatten(1))
        return (forms.to(back.reshape(-1, *shapes[0])),), 0.0


@dataclass(frozen=True)
class Pad(Moves):
    """A constant around each value; ``pad`` as in ``torch.nn.functional.pad``, of the last dimension first."""

    pad: tuple[int, ...]
    value: float = 0.0

    def forward(self, *values: Tensor) -> Tensor:
        """The padded value."""
        return F.pad(values[0], self.pad, value=self.value)

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """Coefficients inside go back; those outside meet the constant. Windows of a map stay windows."""
        if forms.window is not None and not any(self.pad[4:]):
            left, top = self.pad[0], (*self.pad, 0, 0)[2]
            moved = replace(forms, window=forms.window.moved((1, 1), (-top, -left)))
            own = moved.pick(forms.coef.new_ones(1, 1, *shapes[0][1:]))
            constant = self.value * (forms.coef * (1 - own)).flatten(1).sum(1)
            return (moved.to(forms.coef * own),), constant
        inside = F.pad(forms.coef.new_ones(1, *shapes[0]), self.pad)
        forms = forms.full(inside.shape[1:])
        constant = self.value * (forms.coef * (1 - inside)).flatten(1).sum(1)
        return (forms.to(F.pad(forms.coef, tuple(-n for n in self.pad))),), constant


@dataclass(frozen=True)
class Reduce(Affine):
    """factor · sum over ``dims`` (counted with the batch): sums and means."""

    dims: tuple[int, ...]
    keepdim: bool
    factor: float = 1.0

    def forward(self, *values: Tensor) -> Tensor:
        """The scaled sum."""
        return values[0].sum(self.dims, keepdim=self.keepdim) * self.factor

    def magnitude(self, radius: Tensor) -> Tensor:
        """|factor| · sum of the radii."""
        return radius.sum(self.dims, keepdim=self.keepdim) * abs(self.factor)

    def absolute(self) -> Reduce:
        """With |factor|."""
        return replace(self, factor=abs(self.factor))

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """Every summand gets the coefficient of its sum."""
        kept = [1 if i + 1 in self.dims else n for i, n in enumerate(shapes[0])]
        short = kept if self.keepdim else [n for i, n in enumerate(shapes[0]) if i + 1 not in self.dims]
        forms = forms.full(short)
        return (forms.to(forms.coef.reshape(-1, *kept).expand(-1, *shapes[0]) * self.factor),), 0.0
