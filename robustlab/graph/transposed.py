"""Transposed convolutions, which go backward as convolutions; and a matrix along one dimension, such as a resize.

Source: Boopathy et al., "CNN-Cert: An efficient framework for certifying robustness of convolutional neural networks"
(2019), for linear bounds on convolutions as convolutions, here the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustlab.graph.conv import CONV, TRANSPOSED
from robustlab.graph.forms import Forms
from robustlab.graph.operators import Affine, Backward, Shape


@dataclass(frozen=True, eq=False)
class ConvTranspose(Affine):
    """Transposed convolution in one to three dimensions; ``weight`` (in, out / groups, *kernel).

    ``padding`` is cut off at both ends of the output, then ``output_padding`` is added at the far end.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def _spread(self, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        transposed = TRANSPOSED[self.weight.dim() - 2]
        return transposed(
            value, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def forward(self, *values: Tensor) -> Tensor:
        """The transposed convolution."""
        return self._spread(values[0], self.weight, self.bias)

    def magnitude(self, radius: Tensor) -> Tensor:
        """The transposed convolution of the radii with |weight|."""
        return self._spread(radius, self.weight.abs(), None)

    def absolute(self) -> ConvTranspose:
        """With |weight|."""
        return replace(self, weight=self.weight.abs())

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """The convolution with the same weights, and nothing from beyond the input's own places."""
        forms = forms.full(self.output_shape(shapes[0]))
        constant = 0.0 if self.bias is None else forms.coef.flatten(2).sum(dim=2) @ self.bias
        convolve = CONV[self.weight.dim() - 2]
        coef = convolve(forms.coef, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        for dim, n in enumerate(shapes[0][1:], 2):  # an output padding of a stride or more has places beyond
            coef = coef.narrow(dim, 0, n)
        return (forms.to(coef),), constant

    def output_shape(self, shape: Shape) -> Shape:
        """Of one sample, without the batch."""
        parts = zip(
            shape[1:], self.weight.shape[2:], self.stride, self.padding, self.output_padding, self.dilation, strict=True
        )
        size = ((n - 1) * s - 2 * p + d * (k - 1) + 1 + more for n, k, s, p, more, d in parts)
        return (self.weight.shape[1] * self.groups, *size)


@dataclass(frozen=True, eq=False)
class Along(Affine):
    """M·z along one dimension (counted with the batch); ``matrix`` (out, in).

    A bilinear resize of a map is one along its rows after one along its columns.
    """

    matrix: Tensor
    dim: int

    def _times(self, value: Tensor, matrix: Tensor) -> Tensor:
        return (value.movedim(self.dim, -1) @ matrix.T).movedim(-1, self.dim)

    def forward(self, *values: Tensor) -> Tensor:
        """M·z."""
        return self._times(values[0], self.matrix)

    def magnitude(self, radius: Tensor) -> Tensor:
        """|M|·radius."""
        return self._times(radius, self.matrix.abs())

    def absolute(self) -> Along:
        """With |M|."""
        return replace(self, matrix=self.matrix.abs())

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: None) -> Backward:
        """Mᵀ·a."""
        whole = list(shapes[0])
        whole[self.dim - 1] = self.matrix.shape[0]
        forms = forms.full(whole)
        return (forms.to(self._times(forms.coef, self.matrix.T)),), 0.0


def along_each(run: Callable[[Tensor], Tensor], shape: Shape) -> list[Along]:
    """A linear map of images that works along each dimension by itself, as one :class:`Along` for each.

    Args:
        run: from (N, 1, *size) to (N, 1, *new size), with weights that sum to one along every dimension, so that a
            constant stays as it is.
        shape: (C, *size) of one sample.

    Returns:
        For each dimension of the map, its matrix in float64, found from the images that are 1 on one of its places.
    """
    found = []
    for axis, n in enumerate(shape[1:]):
        beside = [1] * len(shape[1:])
        beside[axis] = n
        images = torch.eye(n, dtype=torch.float64).reshape(n, 1, *beside).expand(n, 1, *shape[1:])
        columns = run(images.contiguous())[:, 0].movedim(axis + 1, 1)
        found.append(Along(columns.reshape(*columns.shape[:2], -1)[..., 0].T.contiguous(), axis + 2))
    return found
