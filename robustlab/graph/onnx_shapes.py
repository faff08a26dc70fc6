"""The rules of ONNX operators that move or sum up values, for ``onnx_operators``. All keep the batch apart."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustlab.graph.affine import Concat, Rearrange, Reduce, Reshape, ScaleShift
from robustlab.graph.onnx_reader import OnnxReader, Reordered, name_of

if TYPE_CHECKING:
    from onnx import NodeProto


def flatten(reader: OnnxReader, node: NodeProto, given: list[Any], *, axis: int = 1) -> int:
    """All but the batch in one dimension."""
    if axis != 1 or not reader.batched:
        raise ValueError(f"model: want Flatten of all but the batch, got node {name_of(node)!r}")
    return reader.add(node, Reshape((prod(reader.shape(given[0])),)), given[0])


def reshape(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, allowzero: int = 0, axes: Sequence[int] | None = None
) -> int:
    """Reshape, Squeeze and Unsqueeze."""
    x, numbers = given[0], given[1].tolist() if len(given) > 1 and given[1] is not None else axes
    shape = ((1,) if reader.batched else ()) + reader.shape(x)
    if node.op_type != "Reshape":
        wish = _squeezed(node.op_type, list(shape), numbers)
    else:
        wish = [shape[i] if n == 0 and not allowzero else n for i, n in enumerate(numbers or ())]
        known = prod(n for n in wish if n != -1)
        if -1 in wish:
            wish[wish.index(-1)] = prod(shape) // known
    if reader.batched:
        if not wish or wish[0] != 1:
            raise ValueError(f"model: want shapes that keep the batch apart, got {wish} at node {name_of(node)!r}")
        wish = wish[1:]
    return reader.add(node, Reshape(tuple(wish)), x)


def _squeezed(kind: str, shape: list[int], axes: Sequence[int] | None) -> list[int]:
    if kind == "Unsqueeze":
        rank = len(shape) + len(axes or [])
        places = {a % rank for a in axes or []}
        rest = iter(shape)
        return [1 if i in places else next(rest) for i in range(rank)]
    places = {a % len(shape) for a in axes} if axes else {i for i, n in enumerate(shape) if n == 1}
    return [n for i, n in enumerate(shape) if i not in places]


def transpose(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, perm: Sequence[int] | None = None
) -> int | Reordered:
    """Dimensions in another order; the batch may leave its place until it comes back."""
    (x,) = given
    before = x if isinstance(x, Reordered) else None
    place = x.place if isinstance(x, Reordered) else x
    shape = reader.shape(place)
    rank = len(shape) + int(reader.batched)
    order = list(perm or range(rank)[::-1])
    order = order if reader.batched else [0, *(i + 1 for i in order)]
    if before is not None:
        order = [before.order[i] for i in order]
    if order[0] != 0:
        return Reordered(place, tuple(order), name_of(node))
    if order == list(range(len(order))):
        return int(place)
    return reader.add(node, Rearrange.of(lambda t: t.permute(order), shape), place)


def gather_nd(reader: OnnxReader, node: NodeProto, given: list[Any], *, batch_dims: int = 0) -> Reordered:
    """Numbers at constant places along the first dimensions, before which the batch was turned away."""
    x, places = given
    if not isinstance(x, Reordered) or not isinstance(places, Tensor) or batch_dims or 0 in x.order[: places.shape[-1]]:
        raise ValueError(f"model: want GatherND at constant places beside the batch, got node {name_of(node)!r}")
    shape, count = reader.shape(x.place), places.shape[-1]
    size = torch.tensor([shape[i - 1] for i in x.order[:count]])
    places = torch.where(places < 0, places + size, places)
    if not bool(((places >= 0) & (places < size)).all()):
        raise ValueError(f"model: want GatherND at places inside {size.tolist()}, got node {name_of(node)!r}")
    front = places.dim() - 1 + x.order[count:].index(0)  # the batch's place afterwards
    rank = places.dim() - 1 + len(x.order) - count
    reader.builder.room(name_of(node), (*places.shape[:-1], *(shape[i - 1] for i in x.order[count:] if i)))

    def take(t: Tensor) -> Tensor:
        return t.permute(x.order)[tuple(p.to(t.device) for p in places.unbind(-1))].movedim(front, 0)

    place = reader.add(node, Rearrange.of(take, shape), x.place)
    rest = iter(range(1, rank))
    return Reordered(place, tuple(0 if i == front else next(rest) for i in range(rank)), name_of(node))


def concat(reader: OnnxReader, node: NodeProto, given: list[Any], *, axis: int = 1) -> int:
    """Values, and constants beside them, along an axis."""
    first = next(place for place in given if isinstance(place, int))
    places = []
    for part in given:
        if isinstance(part, Tensor):  # a constant beside the values: 0·x + constant, of the right size
            shape = tuple(part.shape[1:] if reader.batched else part.shape)
            reader.builder.room(name_of(node), shape)
            flat = reader.add(node, Reshape((prod(reader.shape(first)),)), first)
            start = reader.add(node, Rearrange(torch.zeros(prod(shape), dtype=torch.int64), shape), flat)
            part = reader.beside(part, start).to(reader.dtype)
            part = reader.add(node, ScaleShift(torch.zeros_like(part), part), start)
        places.append(part)
    return reader.add(node, Concat(reader.dim(axis, first)), *places)


def reduce(
    reader: OnnxReader,
    node: NodeProto,
    given: list[Any],
    *,
    axes: Sequence[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> int:
    """ReduceMean and ReduceSum."""
    which = given[1].tolist() if len(given) > 1 and given[1] is not None else axes
    if not which and noop_with_empty_axes:
        return int(given[0])
    every = range(len(reader.shape(given[0])) + int(reader.batched))
    dims = tuple(sorted({reader.dim(a, given[0]) for a in which or every}))
    count = prod(reader.shape(given[0])[i - 1] for i in dims)
    factor = 1 / count if node.op_type == "ReduceMean" else 1.0
    return reader.add(node, Reduce(dims, bool(keepdims), factor), given[0])
