"""Converters of everything that changes the shape of a value, or leaves it as it is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.graph.affine import Concat, Pad, Rearrange, Reshape
from robustlab.graph.reader import Convert, Reader, Symbol


def _reshape_by(run: Callable[..., Tensor]) -> Convert:
    """Any function that gives the same numbers in another shape."""

    def convert(r: Reader, _: Any, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
        shape = run(torch.empty(1, *r.shape(x)), *args, **kwargs).shape
        if shape[:1] != (1,) or not len(shape) > 1:
            raise ValueError(f"model: node {r.name!r} loses the batch; want dimension 0 kept, got shape {shape}")
        return r.add(Reshape(tuple(shape[1:])), x)

    return convert


def _flatten_module(r: Reader, m: nn.Flatten, x: Symbol) -> Symbol:
    return _reshape_by(torch.flatten)(r, None, x, m.start_dim, m.end_dim)


def _unflatten_module(r: Reader, m: nn.Unflatten, x: Symbol) -> Symbol:
    return _reshape_by(lambda t: t.unflatten(m.dim, m.unflattened_size))(r, None, x)


def move(run: Callable[..., Tensor]) -> Convert:
    """Any function that only moves numbers within a sample."""

    def convert(r: Reader, _: Any, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
        op = Rearrange.of(lambda t: run(t, *args, **kwargs), r.shape(x), r.builder.like.device)
        moved = run(torch.empty(2, *r.shape(x)), *args, **kwargs)
        if moved.shape != (2, *op.shape):
            raise ValueError(f"model: node {r.name!r} moves the batch; want dimension 0 left alone")
        return r.add(op, x)

    return convert


def _concat(r: Reader, _: Any, tensors: Sequence[Any], dim: int = 0) -> Symbol:
    if not all(isinstance(t, Symbol) for t in tensors):
        raise ValueError(f"model: node {r.name!r} joins constants to the input; want tensors that depend on it")
    dim = dim % (len(r.shape(tensors[0])) + 1)
    if dim == 0:
        raise ValueError(f"model: node {r.name!r} joins along the batch; want dim=1 or later")
    return r.add(Concat(dim), *tensors)


def _getattr(r: Reader, _: Any, x: Symbol, name: str) -> Any:
    if name == "shape":
        return torch.Size((1, *r.shape(x)))
    if name in ("dtype", "device"):
        return getattr(r.builder.like, name)
    raise ValueError(f"model: node {r.name!r} asks for .{name}, which the verifiers do not know")


def _size(r: Reader, _: Any, x: Symbol, dim: int | None = None) -> Any:
    return torch.Size((1, *r.shape(x))) if dim is None else (1, *r.shape(x))[dim]


def _unchanged(r: Reader, _: Any, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    return x


def _cast(r: Reader, _: Any, x: Symbol, *args: Any, **kwargs: Any) -> Symbol:
    """Between float32 and float64, or devices; other types round."""
    for thing in (*args, *kwargs.values()):
        dtype = thing.dtype if isinstance(thing, Tensor) else thing
        if isinstance(dtype, torch.dtype) and dtype not in (torch.float32, torch.float64):
            raise ValueError(f"model: node {r.name!r} casts to {dtype}, which rounds; want float32 or float64")
    return x


def _f_dropout(r: Reader, _: Any, x: Symbol, p: float = 0.5, training: bool = True, inplace: bool = False) -> Symbol:
    if training and p > 0:
        raise ValueError(f"model: node {r.name!r} drops at random; want dropout with training=self.training")
    return x


MODULES: dict[type, Convert] = {
    nn.Flatten: _flatten_module,
    nn.Unflatten: _unflatten_module,
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), _unchanged),
}


def _method(name: str) -> Callable[..., Tensor]:
    return lambda t, *args, **kwargs: getattr(t, name)(*args, **kwargs)


METHODS: dict[str, Convert] = {
    "size": _size,
    **dict.fromkeys(("contiguous", "clone"), _unchanged),
    **dict.fromkeys(("float", "double", "to"), _cast),
    **{n: _reshape_by(_method(n)) for n in ("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten")},
    **{
        n: move(_method(n))
        for n in ("transpose", "permute", "flip", "expand", "repeat", "roll", "narrow", "select", "index_select")
    },
}


def _getitem(r: Reader, _: Any, x: Any, place: Any) -> Any:
    """Of a value, or of the several that a split has given."""
    return x[place] if isinstance(x, tuple | list) else move(operator.getitem)(r, None, x, place)


def _parts(run: Callable[..., Any]) -> Convert:
    """Any function that cuts a value into several."""

    def convert(r: Reader, _: Any, x: Symbol, *args: Any, **kwargs: Any) -> Any:
        count = len(run(torch.empty(1, *r.shape(x)), *args, **kwargs))
        return tuple(move(lambda t, k=k: run(t, *args, **kwargs)[k])(r, None, x) for k in range(count))

    return convert


def _pad(r: Reader, _: Any, x: Symbol, pad: Any, mode: str = "constant", value: float | None = None) -> Symbol:
    """Constants around a value; other modes only move numbers."""
    if mode != "constant":
        return move(lambda t: F.pad(t, tuple(pad), mode=mode))(r, None, x)
    return r.add(Pad(tuple(int(n) for n in pad), float(value or 0.0)), x)


def _pad_module(mode: str) -> Convert:
    """A module that pads by a constant or by its input's own numbers."""
    return lambda r, m, x: _pad(r, None, x, m.padding, mode, getattr(m, "value", 0.0))


_PADDING: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("constant", (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)),
    ("reflect", (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)),
    ("replicate", (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)),
    ("circular", (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)),
)
MODULES |= {kind: _pad_module(mode) for mode, kinds in _PADDING for kind in kinds}
METHODS |= {name: _parts(_method(name)) for name in ("split", "chunk", "unbind", "tensor_split")}

FUNCTIONS: dict[Any, Convert] = {
    operator.getitem: _getitem,
    F.pad: _pad,
    **{getattr(torch, n): METHODS[n] for n in ("split", "chunk", "unbind", "tensor_split")},
    getattr: _getattr,
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _f_dropout),
    **dict.fromkeys((torch.cat, torch.concat), _concat),
    **{
        getattr(torch, n): METHODS[n]
        for n in ("flatten", "reshape", "squeeze", "unsqueeze", "transpose", "permute", "flip", "roll", "index_select")
    },
}
