"""Gradients of convolutions in an image of few channels, as a network's first is, without waste on a CPU.

PyTorch's kernels for the gradient in the input handle channels by the vector: on a CPU one channel costs as much as
eight or sixteen, and a first layer more than all the others. Written as a product and a fold,

    ∇_x loss = fold(Wᵀ · ∇_out loss),   W: the weight as a matrix (outputs, inputs·kernel),

one channel costs what one channel should.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

MOST = 3  # channels; with more the kernels win


class FewChannels(TorchFunctionMode):
    """While entered, ``conv2d`` on at most three channels has its input gradient by product and fold.

    The output is ``conv2d``'s own. Convolutions whose weight wants a gradient, grouped ones and named paddings are
    left alone.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    learned = weight.requires_grad or (bias is not None and bias.requires_grad)
    plain = groups == 1 and not isinstance(padding, str) and input.dim() == 4
    if learned or not plain or not input.requires_grad or weight.shape[1] > MOST:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    out: Tensor = _Folded.apply(input, weight, bias, stride, padding, dilation)
    return out


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = {"output_size": x.shape[2:], "stride": stride, "padding": padding, "dilation": dilation}
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        columns = weight.flatten(1).t() @ grad.flatten(2)
        return F.fold(columns, kernel_size=weight.shape[2:], **ctx.geometry), None, None, None, None, None
