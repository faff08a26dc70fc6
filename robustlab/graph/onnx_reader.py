"""What the rules of ONNX operators work with: values by name, shapes with and without the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustlab.graph.affine import Rearrange
from robustlab.graph.node import Builder
from robustlab.graph.onnx_file import size
from robustlab.graph.operators import Operator

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


@dataclass(frozen=True)
class Reordered:
    """A value with its dimensions in another order, the batch not in front: what stands before an index.

    Attributes:
        place: of the node with the batch in front.
        order: which of its dimensions, the batch as 0, stands at each place.
        name: of the node of the file that turned it.
    """

    place: int
    order: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Above:
    """Where the value of a node is above a number.

    Attributes:
        place: of the node.
        limit: the number.
        name: of the comparison in the file.
    """

    place: int
    limit: float
    name: str


Value = int | Tensor | Reordered | Above
"""The place of a node in the graph, a constant, or what only the next node of the file can make sense of."""

HARMLESS = {"broadcast", "consumed_inputs", "momentum", "ratio", "round_mode", "saturate", "seed", "storage_order"}
"""Attributes that change nothing in a network at rest: of training, memory, 8-bit numbers, outputs that we refuse."""

_ROOM = 2**28  # bytes of computed constants, beside four times those of the file


def network_input(proto: ModelProto) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the network's input as the file has them, a free batch dimension as 1."""
    from onnx import TensorProto

    known = {tensor.name for tensor in proto.graph.initializer}
    free = [value for value in proto.graph.input if value.name not in known]
    if len(free) != 1:
        raise ValueError(f"model: want one input, got {[value.name for value in free]}")
    if (kind := free[0].type.tensor_type.elem_type) not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        raise ValueError(f"model: want an input of float32 or float64, got {TensorProto.DataType.Name(kind)}")
    dims = free[0].type.tensor_type.shape.dim
    shape = [d.dim_value for d in dims]
    if any(n < 1 for n in shape[1:]) or not shape:
        raise ValueError(f"model: want an input of fixed shape but for the batch, got {shape}")
    return free[0].name, (max(shape[0], 1), *shape[1:])


class OnnxReader:
    """Values by name. With a batch the graph's shapes are the file's without the first dimension."""

    def __init__(self, proto: ModelProto, dtype: torch.dtype) -> None:
        name, shape = network_input(proto)
        self.proto, self.dtype, self.batched = proto, dtype, len(shape) > 1
        if self.batched and shape[0] != 1:
            raise ValueError(f"model: want a batch of 1 or a free one, got an input of shape {shape}")
        self.opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.builder = Builder(shape[1:] if self.batched else shape, dtype=dtype)
        self.reading = ""  # the node whose rule is being applied
        self.computed = 0  # bytes of constants that are computed from others, and the most that they may be
        self.most = _ROOM + 4 * sum(size(tensor) for tensor in proto.graph.initializer)
        if proto.graph.sparse_initializer:
            raise ValueError("model: want dense initializers, got a sparse one")
        self.values: dict[str, Value] = {tensor.name: self._initial(tensor) for tensor in proto.graph.initializer}
        self.values[name] = 0

    def _initial(self, tensor: TensorProto) -> Tensor:
        """A constant of the file itself."""
        from onnx import TensorProto, numpy_helper

        if tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError(f"model: tensor {tensor.name!r} is in another file: want its data loaded, or a path")
        size(tensor)
        try:
            return self.constant(numpy_helper.to_array(tensor))
        except (ValueError, TypeError) as error:
            raise ValueError(f"model: tensor {tensor.name!r} cannot be read: {error}") from error

    def add(self, node: NodeProto, op: Operator, *inputs: int) -> int:
        return self.builder.add(op, *inputs, name=name_of(node))

    def shape(self, place: int) -> tuple[int, ...]:
        """Of a node, without the batch."""
        return self.builder.nodes[place].shape

    def dim(self, axis: int, place: int) -> int:
        """An axis of the file, counted as our operators do, with a batch in front."""
        rank = len(self.shape(place)) + (1 if self.batched else 0)
        axis = axis + rank if axis < 0 else axis
        axis += 0 if self.batched else 1
        if axis == 0:
            raise ValueError(f"model: want operators that keep the batch apart, got axis 0 at node {self.reading!r}")
        return axis

    def beside(self, constant: Tensor, place: int) -> Tensor:
        """A constant in a shape that broadcasts against (1, *shape)."""
        rank = len(self.shape(place)) + 1
        if self.batched and constant.dim() >= rank and constant.shape[0] != 1:
            raise ValueError(
                f"model: want constants that are the same for a whole batch, got {tuple(constant.shape)} beside node "
                f"{self.builder.nodes[place].name!r}"
            )
        ahead = rank - constant.dim()
        return constant.reshape((1,) * (ahead if self.batched else max(ahead, 1)) + constant.shape)

    def expanded(self, node: NodeProto, place: int, shape: torch.Size) -> int:
        """A node's value broadcast to ``shape`` (with the batch)."""
        here = self.shape(place)
        if here == tuple(shape[1:]):
            return place
        self.builder.room(name_of(node), shape[1:])
        return self.add(node, Rearrange.of(lambda x: x.reshape(1, *(1,) * (len(shape) - 1 - len(here)), *here)
                                           .expand(shape), here), place)  # fmt: skip

    def numbers(self, *values: float) -> tuple[Tensor, ...]:
        """Each as a tensor of one number."""
        return tuple(torch.tensor([value], dtype=self.dtype) for value in values)

    def constant(self, array: Any) -> Tensor:
        value = torch.from_numpy(np.array(array))
        if value.is_complex():
            raise ValueError(f"model: want constants of real numbers, got {value.dtype}")
        return value.to(self.dtype) if value.is_floating_point() else value


def name_of(node: NodeProto) -> str:
    """A node's name for messages: its own or that of its output."""
    return node.name or node.output[0]


@cache
def _keywords(rule: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(p.name for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY)


def attributes_of(reader: OnnxReader, node: NodeProto, rule: Callable[..., Any]) -> dict[str, Any]:
    """The attributes that a rule reads, which are its keyword arguments.

    Raises:
        ValueError: if the node has another, unless it has its default there or it changes nothing.
    """
    from onnx import defs, helper

    read = _keywords(rule)
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    # An operator newer than the file's version has no list there: then only what the rule reads is known.
    known = defs.get_schema(node.op_type, reader.opset).attributes if defs.has(node.op_type, reader.opset) else None
    for name, value in given.items():
        listed = known is None or name in known
        if listed and (name in read or name in HARMLESS):
            continue
        default = known[name].default_value if known is not None and name in known else None
        wanted = helper.get_attribute_value(default) if default is not None and default.name else None
        if wanted is None or value != wanted:
            raise ValueError(
                f"model: attribute {name} of node {name_of(node)!r} ({node.op_type}) is not known: want "
                f"{'it left out' if wanted is None else wanted}, got {value}"
            )
    return {name: value for name, value in given.items() if name in read}
