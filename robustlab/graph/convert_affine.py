"""Converters of affine modules, functions and methods."""

from __future__ import annotations

import math
import operator
import warnings
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.graph.affine import Add, Linear, Pad, Reduce, ScaleShift, Sub
from robustlab.graph.conv import Conv, around, average_pool
from robustlab.graph.convert_shape import move
from robustlab.graph.operators import broadcast_shape
from robustlab.graph.product import Product
from robustlab.graph.reader import Convert, Reader, Symbol, as_tuple
from robustlab.graph.transposed import ConvTranspose, along_each
from robustlab.models import Normalize


def _linear(r: Reader, m: nn.Linear, x: Symbol) -> Symbol:
    return r.add(Linear(m.weight, m.bias), x)


def _conv(r: Reader, m: nn.Conv2d, x: Symbol) -> Symbol:
    if m.padding_mode == "zeros":
        return _f_conv(r, None, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    both = tuple(m._reversed_padding_repeated_twice)
    x = move(lambda t: F.pad(t, both, mode=m.padding_mode))(r, None, x)
    return _f_conv(r, None, x, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


def _f_conv(
    r: Reader, _: Any, x: Symbol, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Symbol:  # fmt: skip
    rank = weight.dim() - 2
    stride, dilation = as_tuple(stride, rank), as_tuple(dilation, rank)
    if padding == "valid":
        padding = 0
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = tuple(n // 2 for n in reach)
        if any(n % 2 for n in reach):  # one more behind
            ends = [n - p for n, p in zip(reach, padding, strict=True)]
            x, padding = r.add(Pad(around(padding, ends)), x), 0
    return r.add(Conv(weight, bias, stride, as_tuple(padding, rank), dilation, groups), x)


def _conv_transpose(r: Reader, m: nn.ConvTranspose2d, x: Symbol, output_size: Any = None) -> Symbol:
    if output_size is not None:
        raise ValueError(f"model: node {r.name!r}: want transposed convolution by output_padding, not by output_size")
    return _f_conv_transpose(r, None, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)


def _f_conv_transpose(
    r: Reader, _: Any, x: Symbol, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Symbol:  # fmt: skip
    stride, padding, more, dilation = (
        as_tuple(number, weight.dim() - 2) for number in (stride, padding, output_padding, dilation)
    )
    return r.add(ConvTranspose(weight, bias, stride, padding, more, dilation, groups), x)


def _interpolate(
    r: Reader, _: Any, x: Symbol, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Symbol:  # fmt: skip
    """Nearest numbers are moved; averages of near ones are a matrix along each dimension."""

    def run(t: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return F.interpolate(
                t, size, scale_factor, mode, align_corners, recompute_scale_factor=recompute_scale_factor,
                antialias=antialias,
            )  # fmt: skip

    if mode in ("nearest", "nearest-exact"):
        return move(lambda t: run(t.double()).to(t.dtype))(r, None, x)
    for op in along_each(run, r.shape(x)):
        x = r.add(replace(op, matrix=op.matrix.to(r.builder.like)), x)
    return x


def _upsample(r: Reader, m: nn.Upsample, x: Symbol) -> Symbol:
    return _interpolate(r, None, x, m.size, m.scale_factor, m.mode, m.align_corners, m.recompute_scale_factor)


def _batch_norm(r: Reader, m: nn.BatchNorm2d, x: Symbol) -> Symbol:
    if m.running_mean is None or m.running_var is None:
        raise ValueError(f"model: node {r.name!r} has no running statistics; want track_running_stats=True")
    return _f_batch_norm(r, None, x, m.running_mean, m.running_var, m.weight, m.bias, eps=m.eps)


def _f_batch_norm(
    r: Reader, _: Any, x: Symbol, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Symbol:  # fmt: skip
    if training:
        raise ValueError(f"model: node {r.name!r} normalizes by the batch; want batch norm with training=False")
    scale = (var + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    beside = (-1, *[1] * (len(r.shape(x)) - 1))
    return r.add(ScaleShift(scale.reshape(1, *beside), shift.reshape(1, *beside)), x)


def _normalize(r: Reader, m: Normalize, x: Symbol) -> Symbol:
    scale = 1 / m.std.reshape(-1, *[1] * (len(r.shape(x)) - 1))
    return r.add(ScaleShift(scale[None], -m.mean.reshape(scale.shape)[None] * scale[None]), x)


def _same(r: Reader, a: Symbol, b: Symbol) -> tuple[Symbol, Symbol]:
    """Both symbols in one shape."""
    shape = broadcast_shape((1, *r.shape(a)), (1, *r.shape(b)))

    def grown(s: Symbol) -> Symbol:
        return s if r.shape(s) == tuple(shape[1:]) else move(lambda t: t.expand(-1, *shape[1:]))(r, None, s)

    return grown(a), grown(b)


def _add(r: Reader, _: Any, a: Any, b: Any, *, alpha: float = 1.0) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if alpha != 1:
            b = r.scale_shift(b, alpha, 0.0)
        return r.add(Add(), *_same(r, a, b))
    return r.scale_shift(a, 1.0, alpha * b) if isinstance(a, Symbol) else r.scale_shift(b, alpha, a)


def _sub(r: Reader, _: Any, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        return r.add(Sub(), *_same(r, a, b))
    return r.scale_shift(a, 1.0, -b) if isinstance(a, Symbol) else r.scale_shift(b, -1.0, a)


def _mul(r: Reader, _: Any, a: Any, b: Any) -> Symbol:
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        return r.add(Product(), *_same(r, a, b))
    return r.scale_shift(a, b, 0.0) if isinstance(a, Symbol) else r.scale_shift(b, a, 0.0)


def _div(r: Reader, _: Any, a: Any, b: Any) -> Symbol:
    if isinstance(b, Symbol):
        raise ValueError(f"model: node {r.name!r} divides by what depends on the input; want a constant divisor")
    return r.scale_shift(a, 1.0 / r.tensor(b), 0.0)


def matmul(r: Reader, _: Any, a: Any, b: Any) -> Symbol:
    """Input @ matrix, or the product of two matrices that both depend on the input: all products, then sums."""
    if isinstance(a, Symbol) and isinstance(b, Symbol):
        if len(r.shape(a)) < 2 or len(r.shape(a)) != len(r.shape(b)):
            raise ValueError(f"model: node {r.name!r}: want matrices of one rank, got {r.shape(a)} and {r.shape(b)}")
        (*_, n, inner), (*_, m) = r.shape(a), r.shape(b)
        r.builder.room(r.name, (*r.shape(a)[:-1], m, inner))
        left = move(lambda t: t.unsqueeze(-2).expand(*[-1] * (t.dim() - 1), m, -1))(r, None, a)
        right = move(lambda t: t.transpose(-1, -2).unsqueeze(-3).expand(*[-1] * (t.dim() - 2), n, -1, -1))(r, None, b)
        return r.add(Reduce((len(r.shape(left)),), False), r.add(Product(), left, right))
    if not isinstance(a, Symbol) or b.dim() != 2:
        raise ValueError(f"model: node {r.name!r}: of products with constants only input @ matrix is known")
    return r.add(Linear(b.T), a)


def _reduce(mean: bool) -> Convert:
    def convert(r: Reader, _: Any, x: Symbol, dim: Any = None, keepdim: bool = False) -> Symbol:
        shape = r.shape(x)
        dims = (
            range(1, len(shape) + 1)
            if dim is None
            else [d % (len(shape) + 1) for d in (dim if isinstance(dim, (tuple, list)) else [dim])]
        )
        if dim is None or 0 in dims:
            raise ValueError(f"model: node {r.name!r} sums over the batch; want dim=1 or later")
        return r.add(Reduce(tuple(dims), keepdim, 1 / math.prod(shape[d - 1] for d in dims) if mean else 1.0), x)

    return convert


def _average(r: Reader, m: Any, x: Symbol) -> Symbol:
    return _f_average(
        r, None, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad,
        getattr(m, "divisor_override", None),
    )  # fmt: skip


def _f_average(
    r: Reader, _: Any, x: Symbol, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: Any = None,
) -> Symbol:  # fmt: skip
    rank = len(r.shape(x)) - 1
    kernel = as_tuple(kernel_size, rank)
    for op in average_pool(
        r.shape(x), kernel, as_tuple(stride or kernel, rank), as_tuple(padding, rank), r.builder.like,
        ceil_mode=ceil_mode, counts=count_include_pad, divisor=divisor_override,
    ):  # fmt: skip
        x = r.add(op, x)
    return x


def _adaptive(r: Reader, m: Any, x: Symbol, output_size: Any = None) -> Symbol:
    wanted = m.output_size if output_size is None else output_size
    _, *size = r.shape(x)
    wanted = [n if w is None else w for n, w in zip(size, as_tuple(wanted, len(size)), strict=True)]
    if any(n % w for n, w in zip(size, wanted, strict=True)):  # windows of several sizes
        pool: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
        for op in along_each(lambda t: pool(t, wanted), r.shape(x)):
            x = r.add(replace(op, matrix=op.matrix.to(r.builder.like)), x)
        return x
    kernel = tuple(n // w for n, w in zip(size, wanted, strict=True))
    (whole,) = average_pool(r.shape(x), kernel, kernel, (0,) * len(size), r.builder.like)
    return r.add(whole, x)


MODULES: dict[type, Convert] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _upsample),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    Normalize: _normalize,
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive),
}

METHODS: dict[str, Convert] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "matmul": matmul,
    "neg": lambda r, _, x: r.scale_shift(x, -1.0, 0.0),
    "mean": _reduce(True),
    "sum": _reduce(False),
}

FUNCTIONS: dict[Any, Convert] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _sub),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _div),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.bmm), matmul),
    **dict.fromkeys((operator.neg, torch.neg), METHODS["neg"]),
    torch.mean: METHODS["mean"],
    torch.sum: METHODS["sum"],
    F.linear: lambda r, _, x, weight, bias=None: r.add(Linear(weight, bias), x),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _f_conv),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _f_conv_transpose),
    F.interpolate: _interpolate,
    F.batch_norm: _f_batch_norm,
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), _f_average),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d), _adaptive),
}
