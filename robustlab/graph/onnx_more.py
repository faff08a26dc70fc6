"""The rules of ONNX operators that PyTorch's converters read too: curved functions, softmax, layer norm, slices.

Each is handed to the converter, so that both readers make the same nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.graph import convert_nonlinear
from robustlab.graph.affine import Rearrange, ScaleShift
from robustlab.graph.convert_affine import matmul
from robustlab.graph.convex import Convex
from robustlab.graph.node import Node
from robustlab.graph.onnx_reader import Above, OnnxReader, name_of
from robustlab.graph.product import Product
from robustlab.graph.reader import Reader, Symbol
from robustlab.graph.smooth import Smooth

if TYPE_CHECKING:
    from onnx import NodeProto


def shared(reader: OnnxReader, node: NodeProto, convert: Callable[..., Any], *given: Any, **how: Any) -> int:
    """The converter's node; places of the graph are handed to it as symbols."""
    to = Reader(reader.builder)
    to.name = name_of(node)
    return int(convert(to, None, *(Symbol(one) if isinstance(one, int) else one for one in given), **how).index)


def elu(reader: OnnxReader, node: NodeProto, given: list[Any], *, alpha: float = 1.0) -> int:
    """α(e^z − 1) below 0."""
    return shared(reader, node, convert_nonlinear.FUNCTIONS[F.elu], given[0], alpha=alpha)


def selu(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, alpha: float = 1.6732632, gamma: float = 1.0507010
) -> int:
    """With its own two numbers."""
    if abs(alpha - 1.6732632) > 1e-5 or abs(gamma - 1.0507010) > 1e-5:
        raise ValueError(f"model: want Selu with its own alpha and gamma, got {alpha}, {gamma} at {name_of(node)!r}")
    return reader.add(node, Smooth("selu"), given[0])


def hard_sigmoid(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, alpha: float = 0.2, beta: float = 0.5
) -> int:
    """clip(α·z + β, 0, 1)."""

    def convert(r: Reader, _: Any, x: Symbol) -> Symbol:
        clamp: Symbol = convert_nonlinear.METHODS["clamp"](r, None, r.scale_shift(x, alpha, beta), 0.0, 1.0)
        return clamp

    return shared(reader, node, convert, given[0])


def prelu(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    """With constant slopes, one for all or one per channel."""
    slope = given[1]
    if not isinstance(slope, Tensor) or slope.numel() not in (1, reader.shape(given[0])[0]):
        raise ValueError(f"model: want PRelu with one constant slope, or one per channel, got node {name_of(node)!r}")
    return shared(reader, node, convert_nonlinear.FUNCTIONS[F.prelu], given[0], slope.flatten())


def power(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    """The square; other powers are refused."""
    if not isinstance(given[1], Tensor) or given[1].numel() != 1:
        raise ValueError(f"model: of powers only z to the 2 is known, got node {name_of(node)!r}")
    return shared(reader, node, convert_nonlinear.METHODS["pow"], given[0], float(given[1]))


def gelu(reader: OnnxReader, node: NodeProto, given: list[Any], *, approximate: bytes = b"none") -> int:
    """Both forms."""
    kind = approximate.decode()
    if kind not in ("none", "tanh"):
        raise ValueError(f"model: of Gelu approximate='none' and 'tanh' are known, got {kind!r} at {name_of(node)!r}")
    return reader.add(node, Smooth("gelu" if kind == "none" else "gelu_by_tanh"), given[0])


def erf_of_gelu(reader: OnnxReader, gate: Node, x: int) -> bool:
    """Whether a node is 1 + erf(x/√2)."""
    curve = _scaled(reader, gate, 1.0, 1.0)
    if curve is None or curve.op != Smooth("erf"):
        return False
    inner = _scaled(reader, reader.builder.nodes[curve.inputs[0]], 0.5**0.5, 0.0)
    return inner is not None and inner.index == x


def _scaled(reader: OnnxReader, node: Node, scale: float, shift: float) -> Node | None:
    """The node whose value this one is scaled and shifted by these two numbers, to float32's precision; else None."""
    if not isinstance(node.op, ScaleShift):
        return None
    here = torch.stack(torch.broadcast_tensors(node.op.scale, node.op.shift)).double()
    wanted = torch.tensor([scale, shift], dtype=torch.float64).reshape(2, *[1] * (here.dim() - 1))
    near = bool(((here - wanted).abs() <= 1e-7).all())
    return reader.builder.nodes[node.inputs[0]] if near else None


def greater(reader: OnnxReader, node: NodeProto, given: list[Any]) -> Above:
    """Above one number."""
    x, limit = given
    if not isinstance(limit, Tensor) or limit.numel() != 1:
        raise ValueError(f"model: want Greater than one number, got node {name_of(node)!r}")
    return Above(x, float(limit), name_of(node))


def where(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    """Softplus as exporters write it: softplus(βx)/β, or x itself where βx is above the threshold.

    That changes 2·10⁻⁹/β at a threshold of 20.
    """
    condition, x, curve = given
    if isinstance(condition, Above) and isinstance(x, int) and isinstance(curve, int) and condition.limit >= 20:
        bent: Node | None = reader.builder.nodes[curve]
        inner: Node | None = reader.builder.nodes[condition.place]
        assert inner is not None and bent is not None
        if inner.index != x and isinstance(inner.op, ScaleShift) and inner.op.scale.numel() == 1:
            beta = float(inner.op.scale)
            inner, bent = _scaled(reader, inner, beta, 0.0), _scaled(reader, bent, 1 / beta, 0.0) if beta > 0 else None
        same = inner is not None and inner.index == x and bent is not None and bent.inputs == (condition.place,)
        if same and bent is not None and bent.op == Smooth("softplus"):
            return curve
    raise ValueError(f"model: want Where as in a softplus with its threshold of 20, got node {name_of(node)!r}")


def softmax(reader: OnnxReader, node: NodeProto, given: list[Any], *, axis: int | None = None) -> int:
    """Along one axis; before opset 13 along all from the axis on, which is the same for the last."""
    x, later = given[0], reader.opset >= 13
    dim = reader.dim((-1 if later else 1) if axis is None else axis, x)
    if not later and dim != len(reader.shape(x)):
        raise ValueError(f"model: want Softmax along the last axis before opset 13, got node {name_of(node)!r}")
    return shared(reader, node, convert_nonlinear.FUNCTIONS[F.softmax], x, dim=dim)


def layer_norm(reader: OnnxReader, node: NodeProto, given: list[Any], *, axis: int = -1, epsilon: float = 1e-5) -> int:
    """Over the last axes, with scale and bias."""
    first = reader.dim(axis, given[0]) - 1
    constants = [one.to(reader.dtype) for one in given[1:3] if one is not None]
    return shared(
        reader, node, convert_nonlinear.FUNCTIONS[F.layer_norm], given[0], reader.shape(given[0])[first:], *constants,
        eps=epsilon,
    )  # fmt: skip


def product_of_matrices(reader: OnnxReader, node: NodeProto, left: int, right: int) -> int:
    """Two matrices that both depend on the input."""
    return shared(reader, node, matmul, left, right)


def square_root(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    """z · 1/√z, of which a division takes the second part."""
    x = given[0]
    return reader.add(node, Product(), x, reader.add(node, Convex("rsqrt"), x))


def quotient(reader: OnnxReader, node: NodeProto, left: int, right: int, shape: torch.Size) -> int:
    """x / z = x · 1/z; where z is a square root, as in layer norm, x · 1/√."""
    divisor = reader.builder.nodes[right]
    factor = None
    if isinstance(divisor.op, Product):
        below = reader.builder.nodes[divisor.inputs[1]]
        if below.op == Convex("rsqrt") and below.inputs == divisor.inputs[:1]:
            factor = divisor.inputs[1]
    if factor is None:
        factor = reader.add(node, Convex("reciprocal"), right)
    return reader.add(node, Product(), reader.expanded(node, left, shape), reader.expanded(node, factor, shape))


def slices(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, starts: Sequence[int] | None = None,
    ends: Sequence[int] | None = None, axes: Sequence[int] | None = None,
) -> int:  # fmt: skip
    """Every so manieth number from a start to an end, backward too."""
    x, *rest = given
    lists = [None if one is None else [int(n) for n in one.tolist()] for one in [*rest, None, None, None, None][:4]]
    first, last = lists[0] or list(starts or ()), lists[1] or list(ends or ())
    along = lists[2] or list(axes if axes is not None else range(len(first)))
    steps = lists[3] or [1] * len(first)
    if not len(first) == len(last) == len(along) == len(steps) or 0 in steps:
        raise ValueError(f"model: want Slice with a start, an end and a step per axis, got node {name_of(node)!r}")

    def cut(t: Tensor) -> Tensor:
        for a, b, axis, step in zip(first, last, along, steps, strict=True):
            dim = reader.dim(axis, x)
            places = torch.arange(t.shape[dim], device=t.device)[_clamped(a, b, step, t.shape[dim])]
            t = t.index_select(dim, places if step > 0 else places.flip(0))
        return t

    return reader.add(node, Rearrange.of(cut, reader.shape(x)), x)


def _clamped(first: int, last: int, step: int, size: int) -> slice:
    """The places from first to last, in rising order."""
    start, stop, step = slice(first, last, step).indices(size)
    found = range(start, stop, step)
    if not len(found):
        return slice(0, 0)
    low, high = min(found), max(found)
    return slice(low, high + 1, abs(step))


def gather(reader: OnnxReader, node: NodeProto, given: list[Any], *, axis: int = 0) -> int:
    """Numbers at constant places along an axis."""
    x, places = given
    if not isinstance(x, int) or not isinstance(places, Tensor) or places.dim() > 1:
        raise ValueError(f"model: want Gather at constant places in one dimension, got node {name_of(node)!r}")
    dim = reader.dim(axis, x)
    size = reader.shape(x)[dim - 1]
    wrapped = torch.where(places < 0, places + size, places)
    if places.numel() and not bool(((wrapped >= 0) & (wrapped < size)).all()):
        raise ValueError(f"model: want Gather at places in [-{size}, {size}), got node {name_of(node)!r}")

    def take(t: Tensor) -> Tensor:
        found = t.index_select(dim, wrapped.flatten().to(t.device))
        return found if places.dim() else found.squeeze(dim)

    return reader.add(node, Rearrange.of(take, reader.shape(x)), x)


def shape_of(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, start: int = 0, end: int | None = None
) -> Tensor:
    """A constant: the batch counts as 1."""
    whole = ((1,) if reader.batched else ()) + reader.shape(given[0])
    return torch.tensor(whole[start:end], dtype=torch.int64)


def split(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, axis: int = 0, split: Sequence[int] | None = None,
    num_outputs: int | None = None,
) -> tuple[int, ...]:  # fmt: skip
    """Several parts, one after the other."""
    x = given[0]
    dim, count = reader.dim(axis, x), len(node.output)
    size = reader.shape(x)[dim - 1]
    lengths = [int(n) for n in (given[1].tolist() if len(given) > 1 and given[1] is not None else split or ())]
    share = math.ceil(size / count)
    lengths = lengths or [min(share, size - share * k) for k in range(count)]
    if len(lengths) != count or sum(lengths) != size or min(lengths) < 0:
        raise ValueError(f"model: want Split into parts that add up to {size}, got {lengths} at {name_of(node)!r}")
    parts = []
    for k, length in enumerate(lengths):
        places = torch.arange(math.prod(reader.shape(x))).reshape(1, *reader.shape(x))
        places = places.narrow(dim, sum(lengths[:k]), length)
        parts.append(reader.add(node, Rearrange(places.flatten(), tuple(places.shape[1:])), x))
    return tuple(parts)
