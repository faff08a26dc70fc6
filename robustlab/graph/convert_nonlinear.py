"""Converters of nonlinear modules, functions and methods."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.graph.affine import Add, Linear, Reduce, Reshape, Sub
from robustlab.graph.conv import far_ends
from robustlab.graph.convert_affine import matmul
from robustlab.graph.convert_shape import move
from robustlab.graph.convex import Convex
from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.operators import Operator
from robustlab.graph.pool import MaxPool
from robustlab.graph.product import Product
from robustlab.graph.reader import Convert, Reader, Symbol, as_pair, as_tuple
from robustlab.graph.smooth import Smooth


def _fixed(op: Operator) -> Convert:
    return lambda r, m, x, *args, **kwargs: r.add(op, x)


def _leaky(r: Reader, m: Any, x: Symbol, negative_slope: float | None = None, inplace: bool = False) -> Symbol:
    slope = getattr(m, "negative_slope", 0.01) if negative_slope is None else negative_slope
    if not 0 <= slope <= 1:
        raise ValueError(f"model: node {r.name!r}: want a negative slope in [0, 1], got {slope}")
    return r.add(Hinge(float(slope), 1.0), x)


def _gelu(r: Reader, m: Any, x: Symbol, approximate: str | None = None) -> Symbol:
    exact = (approximate or getattr(m, "approximate", "none")) == "none"
    return r.add(Smooth("gelu" if exact else "gelu_by_tanh"), x)


def _elu(r: Reader, m: Any, x: Symbol, alpha: float | None = None, inplace: bool = False) -> Symbol:
    """α·ELU_1 + (1 − α)·ReLU."""
    alpha = getattr(m, "alpha", 1.0) if alpha is None else alpha
    curve = r.add(Smooth("elu"), x)
    if alpha == 1:
        return curve
    line = r.scale_shift(r.add(Hinge(0.0, 1.0), x), 1.0 - alpha, 0.0)
    return r.add(Add(), r.scale_shift(curve, alpha, 0.0), line)


def _prelu(r: Reader, m: Any, x: Symbol, weight: Any = None) -> Symbol:
    """a·z + (1 − a)·ReLU(z) with one a, or one per channel."""
    weight = m.weight if weight is None else weight
    if isinstance(weight, Symbol):
        raise ValueError(f"model: node {r.name!r}: want a constant weight of PReLU")
    slope = weight.reshape(1, -1, *[1] * (len(r.shape(x)) - 1)) if weight.numel() > 1 else weight.reshape(())
    bent = r.add(Hinge(0.0, 1.0), x)
    return r.add(Add(), r.scale_shift(x, slope, 0.0), r.scale_shift(bent, 1.0 - slope, 0.0))


def _hardsigmoid(r: Reader, _: Any, x: Symbol, inplace: bool = False) -> Symbol:
    return r.add(Clamp(0.0, 1.0), r.scale_shift(x, 1 / 6, 0.5))


def _power(r: Reader, _: Any, x: Any, exponent: Any) -> Symbol:
    if not isinstance(x, Symbol) or isinstance(exponent, Symbol) or float(exponent) not in (1.0, 2.0):
        raise ValueError(f"model: node {r.name!r}: of powers only z to the 2 is known, got {exponent}")
    return x if float(exponent) == 1 else r.add(Convex("square"), x)


def _softmax_module(r: Reader, m: nn.Softmax, x: Symbol) -> Symbol:
    return _softmax(r, None, x, m.dim)


def _softmax(r: Reader, _: Any, x: Symbol, dim: int | None = None, dtype: Any = None, **kwargs: Any) -> Symbol:
    """1 / (1 + Σ_{j≠k} exp(z_j − z_k)) along one dimension."""
    shape = r.shape(x)
    rank = len(shape) + 1
    if dim is None or dtype is not None or dim % rank == 0:
        raise ValueError(f"model: node {r.name!r}: want softmax along dim=1 or later, in the input's own dtype")
    dim, size = dim % rank, shape[dim % rank - 1]
    r.builder.room(r.name, (*shape, size))
    others = torch.tensor([[j for j in range(size) if j != k] for k in range(size)], dtype=torch.int64)

    def rest(t: Tensor) -> Tensor:  # (…, K, K − 1): the others, for each class
        return t.movedim(dim, -1)[..., others.to(t.device)]

    def own(t: Tensor) -> Tensor:
        return t.movedim(dim, -1).unsqueeze(-1).expand(*[-1] * rank, size - 1)

    differences = r.add(Sub(), move(rest)(r, None, x), move(own)(r, None, x))
    total = r.add(Reduce((rank,), False), r.add(Convex("exp"), differences))
    shares = r.add(Convex("reciprocal"), r.scale_shift(total, 1.0, 1.0))
    return shares if dim == rank - 1 else move(lambda t: t.movedim(-1, dim))(r, None, shares)


def _layer_norm_module(r: Reader, m: nn.LayerNorm, x: Symbol) -> Symbol:
    return _layer_norm(r, None, x, m.normalized_shape, m.weight, m.bias, m.eps)


def _layer_norm(
    r: Reader, _: Any, x: Symbol, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Symbol:  # fmt: skip
    """(z − mean) · 1/√(var + ε), over the last dimensions."""
    shape, count = r.shape(x), len(tuple(normalized_shape))
    if not 1 <= count <= len(shape) or tuple(normalized_shape) != shape[-count:]:
        raise ValueError(f"model: node {r.name!r}: want layer norm over the last of {shape}, got {normalized_shape}")
    dims = tuple(range(len(shape) + 1 - count, len(shape) + 1))
    share = 1 / math.prod(shape[-count:])
    grown = move(lambda t: t.expand(-1, *shape))
    centered = r.add(Sub(), x, grown(r, None, r.add(Reduce(dims, True, share), x)))
    variance = r.add(Reduce(dims, True, share), r.add(Convex("square"), centered))
    scale = grown(r, None, r.add(Convex("rsqrt"), r.scale_shift(variance, 1.0, eps)))
    found = r.add(Product(), centered, scale)
    if weight is None and bias is None:
        return found
    return r.scale_shift(found, 1.0 if weight is None else weight, 0.0 if bias is None else bias)


def _attention(
    r: Reader, _: Any, query: Symbol, key: Symbol, value: Symbol, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Symbol:  # fmt: skip
    """softmax(q·kᵀ·scale)·v."""
    if attn_mask is not None or is_causal or enable_gqa:
        raise ValueError(f"model: node {r.name!r}: want attention without a mask, causal order and grouped queries")
    if dropout_p:
        raise ValueError(f"model: node {r.name!r} drops at random; want dropout_p=0 in evaluation, got {dropout_p}")
    scale = r.shape(query)[-1] ** -0.5 if scale is None else scale
    scores = matmul(r, None, query, move(lambda t: t.transpose(-1, -2))(r, None, key))
    return matmul(r, None, _softmax(r, None, r.scale_shift(scores, scale, 0.0), -1), value)


def _multihead(
    r: Reader, m: nn.MultiheadAttention, query: Symbol, key: Symbol, value: Symbol, key_padding_mask: Any = None,
    need_weights: bool = True, attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Symbol, None]:  # fmt: skip
    """Attention of several heads between two linear layers; the weights are not given."""
    odd = m.bias_k is not None or m.add_zero_attn or m.in_proj_weight is None or key_padding_mask is not None
    if not m.batch_first or odd or attn_mask is not None or is_causal:
        raise ValueError(f"model: node {r.name!r}: want MultiheadAttention with batch_first=True and without a mask")
    heads, wide = m.num_heads, m.embed_dim
    biases = [None] * 3 if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    parts = []
    for x, weight, bias in zip((query, key, value), m.in_proj_weight.chunk(3), biases, strict=True):
        long = r.shape(x)[0]
        part = r.add(Reshape((long, heads, wide // heads)), r.add(Linear(weight, bias), x))
        parts.append(move(lambda t: t.transpose(1, 2))(r, None, part))
    found = move(lambda t: t.transpose(1, 2))(r, None, _attention(r, None, *parts))
    found = r.add(Reshape((r.shape(query)[0], wide)), found)
    return r.add(Linear(m.out_proj.weight, m.out_proj.bias), found), None


def _max_pool_1d(r: Reader, m: nn.MaxPool1d, x: Symbol) -> Symbol:
    return _f_max_pool_1d(r, None, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _f_max_pool_1d(
    r: Reader, _: Any, x: Symbol, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Symbol:  # fmt: skip
    """As images of one row."""

    def row(number: Any, beside: int) -> tuple[int, int]:
        return beside, as_tuple(number, 1)[0]

    channels, length = r.shape(x)
    image = r.add(Reshape((channels, 1, length)), x)
    kernel = row(kernel_size, 1)
    found = _f_max_pool(
        r, None, image, kernel, row(stride, 1) if stride else kernel, row(padding, 0), row(dilation, 1), ceil_mode,
        return_indices,
    )  # fmt: skip
    return r.add(Reshape((channels, r.shape(found)[2])), found)


def _softplus(r: Reader, m: Any, x: Symbol, beta: float | None = None, threshold: float | None = None) -> Symbol:
    beta = getattr(m, "beta", 1.0) if beta is None else beta  # softplus(βx) / β
    threshold = getattr(m, "threshold", 20.0) if threshold is None else threshold
    if threshold < 20:  # above it PyTorch returns x itself, which changes 2e-9 at 20
        raise ValueError(f"model: node {r.name!r}: want softplus with a threshold of at least 20, got {threshold}")
    return r.scale_shift(r.add(Smooth("softplus"), r.scale_shift(x, beta, 0.0)), 1 / beta, 0.0)


def _clamp(r: Reader, _: Any, x: Symbol, min: Any = None, max: Any = None, **kwargs: Any) -> Symbol:
    low, high = kwargs.get("min_val", min), kwargs.get("max_val", max)
    ends = -math.inf if low is None else low, math.inf if high is None else high
    if not all(isinstance(end, (int, float)) for end in ends) or ends[0] > ends[1]:
        raise ValueError(f"model: node {r.name!r}: want numbers min ≤ max to clamp between, got {low} and {high}")
    return r.add(Clamp(float(ends[0]), float(ends[1])), x)


def _max_pool(r: Reader, m: nn.MaxPool2d, x: Symbol) -> Symbol:
    return _f_max_pool(r, None, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


def _f_max_pool(
    r: Reader, _: Any, x: Symbol, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Symbol:  # fmt: skip
    if return_indices:
        raise ValueError(f"model: node {r.name!r}: want max-pooling without return_indices")
    kernel, padding, dilation = as_pair(kernel_size), as_pair(padding), as_pair(dilation)
    stride = as_pair(stride or kernel)
    ends = as_pair(far_ends(r.shape(x)[1:], kernel, stride, padding, padding, dilation)) if ceil_mode else padding
    return r.add(MaxPool(kernel, stride, padding, dilation, None if ends == padding else ends), x)


MODULES: dict[type, Convert] = {
    nn.ReLU: _fixed(Hinge(0.0, 1.0)),
    nn.ReLU6: _fixed(Clamp(0.0, 6.0)),
    nn.LeakyReLU: _leaky,
    nn.Hardtanh: lambda r, m, x: r.add(Clamp(float(m.min_val), float(m.max_val)), x),
    nn.Tanh: _fixed(Smooth("tanh")),
    nn.Sigmoid: _fixed(Smooth("sigmoid")),
    nn.Softplus: _softplus,
    nn.GELU: _gelu,
    nn.SiLU: _fixed(Smooth("silu")),
    nn.MaxPool2d: _max_pool,
    nn.MaxPool1d: _max_pool_1d,
    nn.ELU: _elu,
    nn.SELU: _fixed(Smooth("selu")),
    nn.Hardswish: _fixed(Smooth("hardswish")),
    nn.Hardsigmoid: _hardsigmoid,
    nn.PReLU: _prelu,
    nn.Softmax: _softmax_module,
    nn.LayerNorm: _layer_norm_module,
    nn.MultiheadAttention: _multihead,
}

METHODS: dict[str, Convert] = {
    "relu": _fixed(Hinge(0.0, 1.0)),
    "abs": _fixed(Hinge(-1.0, 1.0)),
    "tanh": _fixed(Smooth("tanh")),
    "sigmoid": _fixed(Smooth("sigmoid")),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda r, _, x, min: _clamp(r, None, x, min),
    "clamp_max": lambda r, _, x, max: _clamp(r, None, x, None, max),
    "softmax": _softmax,
    "pow": _power,
    "square": _fixed(Convex("square")),
    "exp": _fixed(Convex("exp")),
}

FUNCTIONS: dict[Any, Convert] = {
    **dict.fromkeys((F.relu, torch.relu), METHODS["relu"]),
    F.relu6: _fixed(Clamp(0.0, 6.0)),
    F.leaky_relu: _leaky,
    F.hardtanh: lambda r, _, x, min_val=-1.0, max_val=1.0, inplace=False: r.add(Clamp(min_val, max_val), x),
    **dict.fromkeys((torch.tanh, F.tanh), METHODS["tanh"]),
    **dict.fromkeys((torch.sigmoid, F.sigmoid), METHODS["sigmoid"]),
    F.softplus: _softplus,
    F.gelu: _gelu,
    F.silu: _fixed(Smooth("silu")),
    **dict.fromkeys((torch.abs, operator.abs), METHODS["abs"]),
    **dict.fromkeys((torch.clamp, torch.clip), _clamp),
    F.max_pool2d: _f_max_pool,
    F.max_pool1d: _f_max_pool_1d,
    F.elu: _elu,
    F.selu: _fixed(Smooth("selu")),
    F.hardswish: _fixed(Smooth("hardswish")),
    F.hardsigmoid: _hardsigmoid,
    F.prelu: _prelu,
    **dict.fromkeys((torch.softmax, F.softmax), _softmax),
    F.layer_norm: _layer_norm,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((torch.pow, operator.pow), _power),
    torch.square: METHODS["square"],
    torch.exp: METHODS["exp"],
}
