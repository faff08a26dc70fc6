"""Converters of nonlinear modules, functions and methods."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.operator import Operator
from robustlab.graph.pool import MaxPool
from robustlab.graph.reader import Convert, Reader, Symbol, as_pair
from robustlab.graph.smooth import Smooth


def _fixed(op: Operator) -> Convert:
    return lambda r, m, x, *args, **kwargs: r.add(op, x)


def _leaky(r: Reader, m: Any, x: Symbol, negative_slope: float | None = None, inplace: bool = False) -> Symbol:
    slope = getattr(m, "negative_slope", 0.01) if negative_slope is None else negative_slope
    if not 0 <= slope <= 1:
        raise ValueError(f"model: node {r.name!r}: want a negative slope in [0, 1], got {slope}")
    return r.add(Hinge(float(slope), 1.0), x)


def _gelu(r: Reader, m: Any, x: Symbol, approximate: str | None = None) -> Symbol:
    if (approximate or getattr(m, "approximate", "none")) != "none":
        raise ValueError(f"model: node {r.name!r}: of GELU only approximate='none' is known")
    return r.add(Smooth("gelu"), x)


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
    if ceil_mode or return_indices:
        raise ValueError(f"model: node {r.name!r}: want max-pooling without ceil_mode and return_indices")
    kernel = as_pair(kernel_size)
    return r.add(MaxPool(kernel, as_pair(stride or kernel), as_pair(padding), as_pair(dilation)), x)


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
}
