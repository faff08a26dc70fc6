"""How ONNX operators become ours: one rule for each, ``rule(reader, node, inputs, **attributes)`` → place in the graph.

An input is the place of a node, a constant tensor, or None where it was left out. The keyword arguments of a rule are
the attributes that it reads; a node that has another, at other than its default, is refused. To make another operator
known, add a rule to ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustlab.graph import onnx_maps, onnx_more
from robustlab.graph.affine import Add, Linear, Rearrange, Reshape, ScaleShift, Sub
from robustlab.graph.convex import Convex
from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.onnx_reader import OnnxReader, Value, name_of
from robustlab.graph.onnx_shapes import concat, flatten, gather_nd, reduce, reshape, transpose
from robustlab.graph.operators import Operator, broadcast_shape
from robustlab.graph.product import Product
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
        shape = broadcast_shape((1, *reader.shape(left)), (1, *reader.shape(right)))
        if kind == "Div":
            return onnx_more.quotient(reader, node, left, right, shape)
        both = (reader.expanded(node, left, shape), reader.expanded(node, right, shape))
        if kind == "Mul":
            for x, other in (both, both[::-1]):
                gate = reader.builder.nodes[other]
                if gate.op == Smooth("sigmoid") and gate.inputs == (x,):  # x·sigmoid(x), as exporters write SiLU
                    return reader.add(node, Smooth("silu"), x)
                if onnx_more.erf_of_gelu(reader, gate, x):  # x·(1 + erf(x/√2)), as exporters write GELU, twice
                    return reader.add(node, ScaleShift(*reader.numbers(2.0, 0.0)), reader.add(node, Smooth("gelu"), x))
        return reader.add(node, {"Add": Add(), "Sub": Sub(), "Mul": Product()}[kind], *both)
    place = left if isinstance(left, int) else right
    number = reader.beside(right if isinstance(left, int) else left, place).to(reader.dtype)
    if kind == "Div" and not isinstance(left, int):
        place = reader.add(node, Convex("reciprocal"), place)
        kind = "Mul"
    place = reader.expanded(node, place, broadcast_shape(number.shape, (1, *reader.shape(place))))
    one, zero = torch.ones_like(number), torch.zeros_like(number)
    if kind in ("Mul", "Div"):
        return reader.add(node, ScaleShift(number if kind == "Mul" else 1 / number, zero), place)
    if kind == "Sub" and not isinstance(left, int):
        return reader.add(node, ScaleShift(-one, number), place)
    return reader.add(node, ScaleShift(one, number if kind == "Add" else -number), place)


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
    return reader.add(node, ScaleShift(*reader.numbers(-1.0, 0.0)), given[0])


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


RULES: dict[str, Callable[..., Value | tuple[int, ...]]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    "Neg": _neg,
    "Conv": onnx_maps.conv,
    "ConvTranspose": onnx_maps.conv_transpose,
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
    "Pad": onnx_maps.pad,
    **dict.fromkeys(("Resize", "Upsample"), onnx_maps.resize),
    "Slice": onnx_more.slices,
    "Gather": onnx_more.gather,
    "GatherND": gather_nd,
    "Greater": onnx_more.greater,
    "Where": onnx_more.where,
    "Erf": _fixed(Smooth("erf")),
    "Split": onnx_more.split,
    "Shape": onnx_more.shape_of,
    "Swish": _swish,
    "Clip": _clip,
    "MaxPool": onnx_maps.max_pool,
    "AveragePool": onnx_maps.average,
    "GlobalAveragePool": onnx_maps.global_average,
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
