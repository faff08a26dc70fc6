"""How ONNX operators become ours: one rule for each, ``rule(reader, node, inputs, attributes)`` → place in the graph.

An input is the place of a node, a constant tensor, or None where it was left out. To make another operator known, add a
rule to ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustlab.verification.graph.affine import Add, Concat, Linear, Rearrange, Reduce, Reshape, ScaleShift, Sub
from robustlab.verification.graph.conv import Conv, average_pool
from robustlab.verification.graph.hinge import Clamp, Hinge
from robustlab.verification.graph.onnx_reader import OnnxReader, name_of
from robustlab.verification.graph.operator import Operator
from robustlab.verification.graph.pool import MaxPool
from robustlab.verification.graph.product import Product
from robustlab.verification.graph.smooth import Smooth

if TYPE_CHECKING:
    from onnx import NodeProto


def _gemm(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    x, weight = given[0], given[1]
    bias = given[2] if len(given) > 2 else None
    if not isinstance(x, int) or not isinstance(weight, Tensor) or isinstance(bias, int) or attributes.get("transA"):
        raise ValueError(f"model: want Gemm with constant weights on the right, got node {name_of(node)!r}")
    weight = (weight if attributes.get("transB") else weight.T) * attributes.get("alpha", 1.0)
    if bias is not None:
        bias = (bias.flatten() * attributes.get("beta", 1.0)).expand(weight.shape[0])
    return reader.add(node, Linear(weight.contiguous(), bias), x)


def _matmul(reader: OnnxReader, node: NodeProto, given: list[Any], _: dict[str, Any]) -> int:
    left, right = given
    if isinstance(left, int) and isinstance(right, Tensor) and right.dim() <= 2:
        weight = right.T if right.dim() == 2 else right[None]
        place = reader.add(node, Linear(weight.contiguous(), None), left)
        return place if right.dim() == 2 else reader.add(node, Reshape(reader.shape(place)[:-1]), place)
    if isinstance(right, int) and isinstance(left, Tensor) and left.dim() == 2:
        shape = reader.shape(right)
        if len(shape) == 1 and not reader.batched:  # W·x for a vector
            return reader.add(node, Linear(left, None), right)
        if len(shape) >= 2:  # W·x for a matrix: on the last but one dimension
            turned = reader.add(node, Rearrange.of(lambda x: x.transpose(-1, -2), shape), right)
            done = reader.add(node, Linear(left, None), turned)
            return reader.add(node, Rearrange.of(lambda x: x.transpose(-1, -2), reader.shape(done)), done)
    raise ValueError(f"model: want MatMul with a constant matrix, got node {name_of(node)!r}")


def _arithmetic(reader: OnnxReader, node: NodeProto, given: list[Any], _: dict[str, Any]) -> int:
    left, right = given
    kind = node.op_type
    if isinstance(left, int) and isinstance(right, int):
        if kind == "Div":
            raise ValueError(f"model: want Div by a constant, got node {name_of(node)!r}")
        shape = torch.broadcast_shapes((1, *reader.shape(left)), (1, *reader.shape(right)))
        both = (reader.expanded(node, left, shape), reader.expanded(node, right, shape))
        return reader.add(node, {"Add": Add(), "Sub": Sub(), "Mul": Product()}[kind], *both)
    place = left if isinstance(left, int) else right
    number = reader.beside(right if isinstance(left, int) else left, place).to(reader.dtype)
    if kind == "Div" and not isinstance(left, int):
        raise ValueError(f"model: want Div by a constant, got node {name_of(node)!r}")
    place = reader.expanded(node, place, torch.broadcast_shapes(number.shape, (1, *reader.shape(place))))
    one, zero = torch.ones_like(number), torch.zeros_like(number)
    if kind in ("Mul", "Div"):
        return reader.add(node, ScaleShift(number if kind == "Mul" else 1 / number, zero), place)
    if kind == "Sub" and not isinstance(left, int):
        return reader.add(node, ScaleShift(-one, number), place)
    return reader.add(node, ScaleShift(one, number if kind == "Add" else -number), place)


def _conv(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    x, weight = given[0], given[1]
    bias = given[2] if len(given) > 2 else None
    if not isinstance(x, int) or not isinstance(weight, Tensor):
        raise ValueError(f"model: want Conv with constant weights, got node {name_of(node)!r}")
    rank = weight.dim() - 2
    x, padding = _padded(reader, node, x, attributes, tuple(weight.shape[2:]))
    return reader.add(
        node,
        Conv(
            weight, bias, tuple(attributes.get("strides", [1] * rank)), padding,
            tuple(attributes.get("dilations", [1] * rank)), attributes.get("group", 1),
        ),
        x,
    )  # fmt: skip


def _padded(
    reader: OnnxReader, node: NodeProto, x: int, attributes: dict[str, Any], kernel: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """The padding that is the same at both ends."""
    rank = len(kernel)
    auto = attributes.get("auto_pad", b"NOTSET")
    pads = attributes.get("pads", [0] * (2 * rank))
    if auto not in (b"NOTSET", b"VALID") or list(pads[:rank]) != list(pads[rank:]) or attributes.get("ceil_mode"):
        raise ValueError(
            f"model: want the same explicit padding at both ends and no ceil_mode, got pads {pads}, auto_pad "
            f"{auto.decode()} at node {name_of(node)!r}"
        )
    return x, tuple(pads[:rank])


def _batch_norm(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    x, gain, offset, mean, variance = given[:5]
    scale = gain / (variance + attributes.get("epsilon", 1e-5)).sqrt()
    shape = (1, -1, *(1,) * (len(reader.shape(x)) - 1))
    return reader.add(node, ScaleShift(scale.reshape(shape), (offset - mean * scale).reshape(shape)), x)


def _max_pool(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    kernel = tuple(attributes["kernel_shape"])
    if len(kernel) != 2:
        raise ValueError(f"model: want two-dimensional MaxPool, got kernel {kernel} at node {name_of(node)!r}")
    x, padding = _padded(reader, node, given[0], attributes, kernel)
    strides, dilations = (tuple(attributes.get(name, [1, 1])) for name in ("strides", "dilations"))
    return reader.add(node, MaxPool(kernel, strides, padding, dilations), x)


def _average_pool(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    kernel = tuple(attributes["kernel_shape"])
    x, padding = _padded(reader, node, given[0], attributes, kernel)
    if any(padding) and not attributes.get("count_include_pad"):
        raise ValueError(f"model: want AveragePool that counts its padding, got node {name_of(node)!r}")
    strides = tuple(attributes.get("strides", [1] * len(kernel)))
    like = torch.empty(0, dtype=reader.dtype)
    return reader.add(node, average_pool(reader.shape(x)[0], kernel, strides, padding, like), x)


def _global_average(reader: OnnxReader, node: NodeProto, given: list[Any], _: dict[str, Any]) -> int:
    shape = reader.shape(given[0])
    dims = tuple(range(2, len(shape) + 1))
    return reader.add(node, Reduce(dims, True, 1 / prod(shape[1:])), given[0])


def _flatten(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    if attributes.get("axis", 1) != 1 or not reader.batched:
        raise ValueError(f"model: want Flatten of all but the batch, got node {name_of(node)!r}")
    return reader.add(node, Reshape((prod(reader.shape(given[0])),)), given[0])


def _reshape(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    x, wish = given[0], given[1].tolist() if node.op_type == "Reshape" else None
    shape = ((1,) if reader.batched else ()) + reader.shape(x)
    if wish is None:
        axes = given[1].tolist() if len(given) > 1 else attributes.get("axes")
        wish = _squeezed(node.op_type, list(shape), axes)
    else:
        wish = [shape[i] if n == 0 and not attributes.get("allowzero") else n for i, n in enumerate(wish)]
        known = prod(n for n in wish if n != -1)
        if -1 in wish:
            wish[wish.index(-1)] = prod(shape) // known
    if reader.batched:
        if not wish or wish[0] != 1:
            raise ValueError(f"model: want shapes that keep the batch apart, got {wish} at node {name_of(node)!r}")
        wish = wish[1:]
    return reader.add(node, Reshape(tuple(wish)), x)


def _squeezed(kind: str, shape: list[int], axes: list[int] | None) -> list[int]:
    if kind == "Unsqueeze":
        rank = len(shape) + len(axes or [])
        places = {a % rank for a in axes or []}
        rest = iter(shape)
        return [1 if i in places else next(rest) for i in range(rank)]
    places = {a % len(shape) for a in axes} if axes else {i for i, n in enumerate(shape) if n == 1 and i}
    return [n for i, n in enumerate(shape) if i not in places]


def _transpose(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    shape = reader.shape(given[0])
    order = list(attributes.get("perm", range(len(shape) + int(reader.batched))[::-1]))
    if reader.batched and order[0] != 0:
        raise ValueError(f"model: want Transpose that keeps the batch in front, got {order} at node {name_of(node)!r}")
    order = order if reader.batched else [0, *(i + 1 for i in order)]
    return reader.add(node, Rearrange.of(lambda x: x.permute(order), shape), given[0])


def _concat(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    first = next(place for place in given if isinstance(place, int))
    places = []
    for part in given:
        if isinstance(part, Tensor):  # a constant beside the values: 0·x + constant, of the right size
            size = part[0].numel() if reader.batched else part.numel()
            start = reader.add(node, Linear(part.new_zeros(size, prod(reader.shape(first))).to(reader.dtype)),
                               reader.add(node, Reshape((prod(reader.shape(first)),)), first))  # fmt: skip
            start = reader.add(node, Reshape(tuple(part.shape[1:] if reader.batched else part.shape)), start)
            part = reader.add(node, ScaleShift(*(reader.beside(v, start).to(reader.dtype)
                                                 for v in (torch.ones_like(part), part))), start)  # fmt: skip
        places.append(part)
    return reader.add(node, Concat(reader.dim(attributes["axis"], first)), *places)


def _clip(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    ends = [attributes.get("min", -torch.inf), attributes.get("max", torch.inf)]
    for i, end in enumerate(given[1:3]):
        if end is not None:
            ends[i] = float(end)
    return reader.add(node, Clamp(*ends), given[0])


def _mean(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    axes = given[1].tolist() if len(given) > 1 else attributes["axes"]
    dims = tuple(sorted(reader.dim(a, given[0]) for a in axes))
    count = prod(reader.shape(given[0])[i - 1] for i in dims)
    factor = 1 / count if node.op_type == "ReduceMean" else 1.0
    return reader.add(node, Reduce(dims, bool(attributes.get("keepdims", 1)), factor), given[0])


def _simple(make: Callable[[dict[str, Any]], Operator]) -> Callable[..., int]:
    return lambda reader, node, given, attributes: reader.add(node, make(attributes), given[0])


def _same(reader: OnnxReader, node: NodeProto, given: list[Any], attributes: dict[str, Any]) -> int:
    return int(given[0])


RULES: dict[str, Callable[..., int]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    "Neg": _simple(lambda a: ScaleShift(torch.tensor([-1.0]), torch.tensor([0.0]))),
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Relu": _simple(lambda a: Hinge(0.0, 1.0)),
    "LeakyRelu": _simple(lambda a: Hinge(a.get("alpha", 0.01), 1.0)),
    "Abs": _simple(lambda a: Hinge(-1.0, 1.0)),
    "Sigmoid": _simple(lambda a: Smooth("sigmoid")),
    "Tanh": _simple(lambda a: Smooth("tanh")),
    "Softplus": _simple(lambda a: Smooth("softplus")),
    "Clip": _clip,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "ReduceMean": _mean,
    "ReduceSum": _mean,
    "Flatten": _flatten,
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    **dict.fromkeys(("Identity", "Dropout", "Cast"), _same),
}
