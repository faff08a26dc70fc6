"""Convolutions, which go backward as transposed convolutions: no weight matrix is ever written out.

Average pooling is a convolution of each channel with a constant kernel.

Source: Boopathy et al., "CNN-Cert: An efficient framework for certifying robustness of convolutional neural networks"
(2019), for linear bounds on convolutions as convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.graph.affine import Pad, ScaleShift
from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds
from robustlab.graph.operators import Affine, Backward, Operator, Shape

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class Conv(Affine):
    """Convolution in one to three dimensions with zero padding; ``weight`` (out, in / groups, *kernel)."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @property
    def _rank(self) -> int:
        return self.weight.dim() - 2

    def _convolve(self, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return CONV[self._rank](value, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _transpose(self, coef: Tensor, padding: tuple[int, ...], size: Sequence[int]) -> Tensor:
        """The transposed convolution onto maps of ``size``, in whichever of three ways is the fastest on a CPU."""
        rows, grid = coef.shape[0], coef.shape[2:]
        plain = self._rank == 2 and self.groups == 1
        if plain and grid.numel() == 1 and not any(padding) and tuple(size) == tuple(self.weight.shape[2:]):
            return (coef.flatten(1) @ self.weight.flatten(1)).reshape(rows, *self.weight.shape[1:])
        if plain and self.weight.shape[1] <= 4:
            spread = self.weight.flatten(1).T @ coef.flatten(2)
            return F.fold(spread, tuple(size), self.weight.shape[2:], self.dilation, padding, self.stride)
        geometry = zip(size, grid, self.stride, padding, self.reach, strict=True)
        extra = [n - ((m - 1) * s - 2 * p + r + 1) for n, m, s, p, r in geometry]
        if self._rank == 2:
            coef = coef.contiguous(memory_format=torch.channels_last)
        transposed = TRANSPOSED[self._rank]
        found = transposed(coef, self.weight, None, self.stride, padding, extra, self.groups, self.dilation)
        return found.contiguous()

    @property
    def reach(self) -> list[int]:
        """Last minus first of what an output sees, in each dimension."""
        return [d * (k - 1) for d, k in zip(self.dilation, self.weight.shape[2:], strict=True)]

    def forward(self, *values: Tensor) -> Tensor:
        """The convolution."""
        return self._convolve(values[0], self.weight, self.bias)

    def magnitude(self, radius: Tensor) -> Tensor:
        """The convolution of the radii with |weight|."""
        return self._convolve(radius, self.weight.abs(), None)

    def interval(self, *inputs: Bounds) -> Bounds:
        """W·center + b ∓ |W|·radius; a weight is halved in less time than center and radius are."""
        (x,), half = inputs, self.weight / 2
        center = self._convolve(x.lower + x.upper, half, self.bias)
        radius = self._convolve(x.upper - x.lower, half.abs(), None)
        return Bounds(center - radius, center + radius)

    def absolute(self) -> Conv:
        """With |weight|."""
        return replace(self, weight=self.weight.abs())

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """The transposed convolution, of whole maps or of windows."""
        constant: Tensor | float = 0.0
        if self.bias is not None:
            constant = forms.coef.flatten(2).sum(dim=2) @ self.bias
        if forms.window is not None:
            moved = self._moved(forms, shapes[0])
            if moved is not None:
                return (moved,), constant
            forms = forms.full(self.output_shape(shapes[0]))
        return (forms.to(self._transpose(forms.coef, self.padding, shapes[0][1:])),), constant

    def output_shape(self, shape: Shape) -> Shape:
        """Of one sample, without the batch."""
        parts = zip(shape[1:], self.stride, self.padding, self.reach, strict=True)
        return (self.weight.shape[0], *((n + 2 * p - r - 1) // s + 1 for n, s, p, r in parts))

    def _moved(self, forms: Forms, shape: Shape) -> Forms | None:
        """The receptive fields of windows; None where they are no smaller than the map."""
        window = forms.window
        assert window is not None
        size = [(k - 1) * s + r + 1 for k, s, r in zip(forms.coef.shape[2:], self.stride, self.reach, strict=True)]
        if size[0] >= shape[1] or size[1] >= shape[2]:
            return None
        here = window.moved(self.stride, [-p for p in self.padding])
        coef = self._transpose(forms.coef, (0, 0), size)
        return replace(forms, coef=coef, window=here, loose=any(here.margins(size, shape)))  # padding lies beyond

    def scaled(self, after: ScaleShift) -> Conv | None:
        """The convolution and a scale and shift of its channels, as one; None where they vary within a channel."""
        scale, shift = (_by_channel(number, self.weight.dim(), self.weight.shape[0]) for number in
                        (after.scale, after.shift))  # fmt: skip
        if scale is None or shift is None:
            return None
        bias = shift if self.bias is None else scale * self.bias + shift
        return replace(self, weight=self.weight * scale.reshape(-1, *(1,) * (self.weight.dim() - 1)), bias=bias)


def _by_channel(number: Tensor, rank: int, channels: int) -> Tensor | None:
    """A number that broadcasts against (N, channels, …), as one per channel; None where it varies within a channel."""
    whole = number.reshape((1,) * (rank - number.dim()) + number.shape)
    if whole.shape[0] > 1 or any(n > 1 for n in whole.shape[2:]):
        return None
    return whole.flatten().expand(channels)


def average_pool(
    shape: Shape, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], like: Tensor, *,
    ends: tuple[int, ...] | None = None, dilation: tuple[int, ...] | None = None, ceil_mode: bool = False,
    counts: bool = True, divisor: int | None = None,
) -> list[Operator]:  # fmt: skip
    """Average pooling of values of ``shape``, (C, *size): padding, a convolution and a scale, as far as it needs them.

    Args:
        shape, kernel, stride, padding: of the pooling; the padding at the beginning of each dimension.
        like: a tensor of the dtype and device.
        ends: padding at the far end of each dimension; None is ``padding``.
        dilation: of the kernel; None is 1.
        ceil_mode: whether a window that reaches beyond the padding, but begins before it, is one too.
        counts: whether padding counts as numbers of the window; what lies beyond the padding never does.
        divisor: of every window, in place of how many numbers it has.
    """
    channels, *size = shape
    ends, dilation, count = ends or padding, dilation or (1,) * len(kernel), prod(kernel)
    beyond = far_ends(size, kernel, stride, padding, ends, dilation) if ceil_mode else ends
    weight = like.new_full((channels, 1, *kernel), 1 / count)
    bare = Conv(weight, None, stride, (0,) * len(kernel), dilation, channels)
    found: list[Operator] = (
        [replace(bare, padding=padding)] if beyond == padding else [Pad(around(padding, beyond)), bare]
    )
    if divisor is not None:
        share = like.new_full((1, 1, *[1] * len(size)), count / divisor)
    else:
        whole = like.new_ones(1, channels, *size)
        if counts:  # what lies within the padding counts, at the far end up to ``ends``
            whole = F.pad(whole, around(padding, tuple(map(min, ends, beyond))), value=1.0)
            whole = F.pad(
                whole, around((0,) * len(ends), tuple(max(0, b - e) for b, e in zip(beyond, ends, strict=True)))
            )
        else:
            whole = F.pad(whole, around(padding, beyond))
        share = 1 / bare.forward(whole)
    if bool(((share - 1).abs() > 1e-6).any()):
        found.append(ScaleShift(share, torch.zeros_like(share)))
    return found


def around(begins: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Padding as ``torch.nn.functional.pad`` takes it: of the last dimension first."""
    return tuple(n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair)


def far_ends(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ends: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:  # fmt: skip
    """How much padding at the far end makes the windows of ``ceil_mode``: all that begin before the padding there."""
    found = []
    for n, k, s, p, e, d in zip(size, kernel, stride, padding, ends, dilation, strict=True):
        reach = d * (k - 1) + 1
        windows = -((n + p + e - reach) // -s) + 1
        if (windows - 1) * s >= n + p:
            windows -= 1
        found.append(max(0, (windows - 1) * s + reach - n - p))
    return tuple(found)
