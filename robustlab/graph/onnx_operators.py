"""How ONNX operators become ours: one rule for each, ``rule(reader, node, inputs, **attributes)`` → place in the graph.

An input is the place of a node, a constant tensor, or None where it was left out. The keyword arguments of a rule are
the attributes that it reads; a node that has another, at other than its default, is refused. To make another operator
known, add a rule to ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustlab.graph import onnx_more
from robustlab.graph.affine import Add, Linear, Rearrange, Reduce, Reshape, ScaleShift, Sub
from robustlab.graph.conv import Conv, average_pool, counted
from robustlab.graph.convex import Convex
from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.onnx_reader import OnnxReader, name_of
from robustlab.graph.onnx_shapes import concat, flatten, reduce, reshape, transpose
from robustlab.graph.operator import Operator
from robustlab.graph.pool import MaxPool
from robustlab.graph.product import Product
from robustlab.graph.reader import as_pair
from robustlab.graph.smooth import Smooth

if TYPE_CHECKING:
    from onnx import NodeProto


def _gemm(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, alpha: float = 1.0, beta: float = 1.0, transB: int = 0
) -> int:
    x, weight = given[0], given[1]
    bias = given[2] if len(given) > 2 else None
    matrices = len(reader.shape(x)) + reader.batched == 2 and weight.dim() == 2
    if not matrices or (bias is not None and prod(bias.shape[:-1]) != 1):
        raise ValueError(f"model: want Gemm of rows, constant weights and one bias, got node {name_of(node)!r}")
    weight = (weight if transB else weight.T) * alpha
    if bias is not None:
        bias = (bias.flatten() * beta).expand(weight.shape[0])
    return reader.add(node, Linear(weight.contiguous(), bias), x)


def _matmul(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    left, right = given
    if isinstance(left, int) and isinstance(right, int):
        return onnx_more.product_of_matrices(reader, node, left, right)
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


def _arithmetic(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    left, right = given
    kind = node.op_type
    if isinstance(left, int) and isinstance(right, int):
        shape = torch.broadcast_shapes((1, *reader.shape(left)), (1, *reader.shape(right)))
        if kind == "Div":
            return onnx_more.quotient(reader, node, left, right, shape)
        both = (reader.expanded(node, left, shape), reader.expanded(node, right, shape))
        if kind == "Mul":
            for x, other in (both, both[::-1]):
                gate = reader.builder.nodes[other]
                if gate.op == Smooth("sigmoid") and gate.inputs == (x,):  # x·sigmoid(x), as exporters write SiLU
                    return reader.add(node, Smooth("silu"), x)
        return reader.add(node, {"Add": Add(), "Sub": Sub(), "Mul": Product()}[kind], *both)
    place = left if isinstance(left, int) else right
    number = reader.beside(right if isinstance(left, int) else left, place).to(reader.dtype)
    if kind == "Div" and not isinstance(left, int):
        place = reader.add(node, Convex("reciprocal"), place)
        kind = "Mul"
    place = reader.expanded(node, place, torch.broadcast_shapes(number.shape, (1, *reader.shape(place))))
    one, zero = torch.ones_like(number), torch.zeros_like(number)
    if kind in ("Mul", "Div"):
        return reader.add(node, ScaleShift(number if kind == "Mul" else 1 / number, zero), place)
    if kind == "Sub" and not isinstance(left, int):
        return reader.add(node, ScaleShift(-one, number), place)
    return reader.add(node, ScaleShift(one, number if kind == "Add" else -number), place)


def _conv(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, group: int = 1,
    kernel_shape: Sequence[int] | None = None, strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None, auto_pad: bytes = b"NOTSET", pads: Sequence[int] | None = None,
) -> int:  # fmt: skip
    x, weight = given[0], given[1]
    bias = given[2] if len(given) > 2 else None
    kernel, ones = list(weight.shape[2:]), (1,) * (weight.dim() - 2)
    if kernel_shape is not None and list(kernel_shape) != kernel:
        raise ValueError(
            f"model: want Conv with the kernel_shape {kernel} of its weights, got {list(kernel_shape)} at node "
            f"{name_of(node)!r}"
        )
    at_ends = _padding(node, len(kernel), auto_pad, pads)
    return reader.add(node, Conv(weight, bias, tuple(strides or ones), at_ends, tuple(dilations or ones), group), x)


def _padding(
    node: NodeProto, rank: int, auto_pad: bytes, pads: Sequence[int] | None, ceil_mode: int = 0
) -> tuple[int, ...]:
    """The padding that is the same at both ends."""
    given = list(pads or [0] * (2 * rank))
    # VALID is no padding: pads beside it contradict it.
    unclear = auto_pad not in (b"NOTSET", b"VALID") or (auto_pad == b"VALID" and any(given))
    if unclear or given[:rank] != given[rank:] or min(given) < 0 or ceil_mode:
        raise ValueError(
            f"model: want the same explicit padding at both ends and no ceil_mode, got pads {given}, auto_pad "
            f"{auto_pad.decode()}, ceil_mode {ceil_mode} at node {name_of(node)!r}"
        )
    return tuple(given[:rank])


def _batch_norm(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, epsilon: float = 1e-5, is_test: int = 0
) -> int:
    x, gain, offset, mean, variance = given[:5]
    _no_training(reader, node, is_test)
    if reader.opset < 14 and len([name for name in node.output if name]) > 1:  # the sign of training in that time
        raise ValueError(f"model: want BatchNormalization with one output, got {len(node.output)} at {name_of(node)!r}")
    scale = gain / (variance + epsilon).sqrt()
    shape = (1, -1, *(1,) * (len(reader.shape(x)) - 1))
    return reader.add(node, ScaleShift(scale.reshape(shape), (offset - mean * scale).reshape(shape)), x)


def _max_pool(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1), dilations: Sequence[int] = (1, 1), auto_pad: bytes = b"NOTSET",
    pads: Sequence[int] | None = None, ceil_mode: int = 0,
) -> int:  # fmt: skip
    kernel = tuple(kernel_shape)
    if len(kernel) != 2:
        raise ValueError(f"model: want two-dimensional MaxPool, got kernel {kernel} at node {name_of(node)!r}")
    padding = _padding(node, 2, auto_pad, pads, ceil_mode)
    return reader.add(node, MaxPool(kernel, as_pair(strides), as_pair(padding), as_pair(dilations)), given[0])


def _average_pool(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None, dilations: Sequence[int] = (), auto_pad: bytes = b"NOTSET",
    pads: Sequence[int] | None = None, ceil_mode: int = 0, count_include_pad: int = 0,
) -> int:  # fmt: skip
    kernel = tuple(kernel_shape)
    padding = _padding(node, len(kernel), auto_pad, pads, ceil_mode)
    if any(d != 1 for d in dilations):
        raise ValueError(f"model: want AveragePool without dilations, got {list(dilations)} at node {name_of(node)!r}")
    step, like = tuple(strides or [1] * len(kernel)), torch.empty(0, dtype=reader.dtype)
    channels, *size = reader.shape(given[0])
    reader.builder.room(name_of(node), (channels, *kernel))
    pool = average_pool(channels, kernel, step, padding, like)
    place = reader.add(node, pool, given[0])
    if not any(padding) or count_include_pad:
        return place
    inside = counted(pool, channels, size)
    return reader.add(node, ScaleShift(inside, torch.zeros_like(inside)), place)


def _global_average(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    shape = reader.shape(given[0])
    dims = tuple(range(2, len(shape) + 1))
    return reader.add(node, Reduce(dims, True, 1 / prod(shape[1:])), given[0])


def _clip(
    reader: OnnxReader, node: NodeProto, given: list[Any], *, min: float = -torch.inf, max: float = torch.inf
) -> int:
    ends = [min, max]
    for i, end in enumerate(given[1:3]):
        if end is not None:
            ends[i] = float(end)
    if not ends[0] <= ends[1]:
        raise ValueError(f"model: want Clip with min <= max, got {ends[0]:g} and {ends[1]:g} at node {name_of(node)!r}")
    return reader.add(node, Clamp(*ends), given[0])


def _leaky(reader: OnnxReader, node: NodeProto, given: list[Any], *, alpha: float = 0.01) -> int:
    if not 0 <= alpha <= 1:  # outside the function is not the larger of two lines, or it turns
        raise ValueError(f"model: want LeakyRelu with alpha in [0, 1], got {alpha} at node {name_of(node)!r}")
    return reader.add(node, Hinge(alpha, 1.0), given[0])


def _swish(reader: OnnxReader, node: NodeProto, given: list[Any], *, alpha: float = 1.0) -> int:
    if alpha != 1.0:
        raise ValueError(f"model: of Swish only alpha=1, SiLU, is known, got {alpha} at node {name_of(node)!r}")
    return reader.add(node, Smooth("silu"), given[0])


def _fixed(op: Operator) -> Callable[..., int]:
    return lambda reader, node, given: reader.add(node, op, given[0])


def _neg(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    number = torch.tensor([-1.0, 0.0], dtype=reader.dtype)
    return reader.add(node, ScaleShift(number[:1], number[1:]), given[0])


def _same(reader: OnnxReader, node: NodeProto, given: list[Any]) -> int:
    return int(given[0])


def _dropout(reader: OnnxReader, node: NodeProto, given: list[Any], *, is_test: int = 0) -> int:
    _no_training(reader, node, is_test)
    if len(given) > 2 and given[2] is not None and bool(given[2]):
        raise ValueError(f"model: node {name_of(node)!r} drops at random; want Dropout with training_mode false")
    return int(given[0])


def _no_training(reader: OnnxReader, node: NodeProto, is_test: int) -> None:
    if reader.opset < 7 and not is_test:  # the default in that time
        raise ValueError(f"model: want {node.op_type} with is_test=1, got node {name_of(node)!r}, which trains")


def _cast(reader: OnnxReader, node: NodeProto, given: list[Any], *, to: int) -> int:
    from onnx import TensorProto

    if to not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        kind = TensorProto.DataType.Name(to)
        raise ValueError(f"model: node {name_of(node)!r} casts to {kind}, which rounds; want FLOAT or DOUBLE")
    return int(given[0])


RULES: dict[str, Callable[..., int | tuple[int, ...] | Tensor]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    "Neg": _neg,
    "Conv": _conv,
    "BatchNormalization": _batch_norm,
    "Relu": _fixed(Hinge(0.0, 1.0)),
    "LeakyRelu": _leaky,
    "Abs": _fixed(Hinge(-1.0, 1.0)),
    "Sigmoid": _fixed(Smooth("sigmoid")),
    "Tanh": _fixed(Smooth("tanh")),
    "Softplus": _fixed(Smooth("softplus")),
    "Gelu": onnx_more.gelu,
    "Elu": onnx_more.elu,
    "Selu": onnx_more.selu,
    "HardSwish": _fixed(Smooth("hardswish")),
    "HardSigmoid": onnx_more.hard_sigmoid,
    "PRelu": onnx_more.prelu,
    "Exp": _fixed(Convex("exp")),
    "Reciprocal": _fixed(Convex("reciprocal")),
    "Pow": onnx_more.power,
    "Sqrt": onnx_more.square_root,
    "Softmax": onnx_more.softmax,
    "LayerNormalization": onnx_more.layer_norm,
    "Pad": onnx_more.pad,
    "Slice": onnx_more.slices,
    "Gather": onnx_more.gather,
    "Split": onnx_more.split,
    "Shape": onnx_more.shape_of,
    "Swish": _swish,
    "Clip": _clip,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "ReduceMean": reduce,
    "ReduceSum": reduce,
    "Flatten": flatten,
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze"), reshape),
    "Transpose": transpose,
    "Concat": concat,
    "Identity": _same,
    "Dropout": _dropout,
    "Cast": _cast,
}
