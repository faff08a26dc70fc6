"""From an ONNX file to a graph.

ONNX (https://onnx.ai) is the format in which networks go from one tool to another, and the one that the verification
competition uses. What does not depend on the input (weights, shapes, arithmetic on constants) is computed at once, by
the reference evaluator of the ``onnx`` package; what does becomes one of our operators.
"""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustlab.graph.files import named
from robustlab.graph.node import Graph
from robustlab.graph.onnx_file import load_onnx
from robustlab.graph.onnx_operators import RULES
from robustlab.graph.onnx_reader import Above, OnnxReader, Reordered, Value, attributes_of, name_of
from robustlab.graph.time_limit import tick

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OF_SEVERAL = {
    "Add",
    "Concat",
    "Div",
    "MatMul",
    "Mul",
    "Sub",
    "Where",
}  # in any input there may be what depends on the network's
OF_BATCHES = {
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "GlobalAveragePool", "MaxPool", "Resize", "Upsample"
}  # fmt: skip
OF_MARKS: dict[type, tuple[str, ...]] = {Reordered: ("GatherND", "Transpose"), Above: ("Where",)}
"""What is known only before these operators."""
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def read_onnx(model: str | Path | bytes | ModelProto, *, dtype: torch.dtype = torch.float64) -> Graph:
    """Read an ONNX network as a graph of operators.

    SiLU written as x·Sigmoid(x) is recognized, and so are GELU written with Erf, as exporters do below opset 20, and
    softplus written with its threshold.

    Args:
        model: a file, its bytes (either may be compressed with gzip), or the loaded model. Tensors that the file keeps
            in other files are looked up in its folder.
        dtype: of the graph's numbers (default float64, which holds float32 weights exactly).

    Returns:
        The graph. Its input has the shape of the network's without the batch; an input of one dimension has no batch
        and is taken as a sample.

    Raises:
        ValueError: naming file and node, if an operator is not known, or one of its attributes that is not at its
            default; if the file is broken, has weights that are NaN, or would take gigabytes.

    Source: the operators' semantics are those of the ONNX standard.
    """
    with named(Path(model).name) if isinstance(model, (str, Path)) else nullcontext():
        return _graph(load_onnx(model) if isinstance(model, (str, Path, bytes)) else model, dtype)


def _graph(proto: ModelProto, dtype: torch.dtype) -> Graph:
    reader = OnnxReader(proto, dtype)
    for node in proto.graph.node:
        tick()
        if not any(node.output):
            raise ValueError(f"model: want nodes with an output, got {node.op_type} {node.name!r} without")
        given = [_value(reader, name) if name else None for name in node.input]
        if all(isinstance(value, Tensor) for value in given if value is not None):
            _fold(reader, node)
        elif node.op_type in RULES and node.domain in ("", "ai.onnx"):
            found = _read(reader, node, given)
            places = found if isinstance(found, tuple) else (found,)
            reader.values.update((name, place) for name, place in zip(node.output, places, strict=False) if name)
        else:
            where = f" ({node.domain})" if node.domain else ""
            raise ValueError(
                f"model: operator {node.op_type}{where} of node {name_of(node)!r} is not known; want one of "
                f"{', '.join(sorted(RULES))}"
            )
    outputs = [value.name for value in proto.graph.output]
    if len(outputs) != 1:
        raise ValueError(f"model: want one output, got {outputs}")
    last = _value(reader, outputs[0])
    if isinstance(last, (Reordered, Above)):
        raise ValueError(f"model: want an output with the batch in front, got what node {last.name!r} gives")
    if not isinstance(last, int):
        raise ValueError("model: want an output that depends on the input, got a constant")
    _checked(proto)
    graph = reader.builder.finish(last)
    graph.require_finite()
    return graph


def _checked(proto: ModelProto) -> None:
    """ONNX's own check of every node, and that no name has two values; what we understood may still be broken."""
    from onnx import checker

    context = checker.C.CheckerContext()
    context.ir_version = proto.ir_version
    context.opset_imports = {o.domain: o.version for o in proto.opset_import} or {"": 1}
    names = [tensor.name for tensor in proto.graph.initializer]
    names += [value.name for value in proto.graph.input if value.name not in set(names)]
    names += [name for node in proto.graph.node for name in node.output if name]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"model: want one value for each name, got several for {twice[0]!r}")
    for node in proto.graph.node:
        tick()
        try:
            checker.check_node(node, context)
        except checker.ValidationError as error:
            raise ValueError(f"model: node {name_of(node)!r}: {str(error).strip()}") from error


def _value(reader: OnnxReader, name: str) -> Value:
    if name not in reader.values:
        raise ValueError(f"model: value {name!r} is not known; want one input, constants, and nodes' first outputs")
    return reader.values[name]


def _read(reader: OnnxReader, node: NodeProto, given: list[Value | None]) -> Value | tuple[int, ...]:
    """Apply a node's rule."""
    rule, reader.reading = RULES[node.op_type], name_of(node)
    arguments = attributes_of(reader, node, rule)
    for value in given:
        if isinstance(value, (Reordered, Above)) and node.op_type not in OF_MARKS[type(value)]:
            wish = " and ".join(OF_MARKS[type(value)])
            raise ValueError(
                f"model: want {wish} alone behind node {value.name!r}, got {node.op_type} of node {name_of(node)!r}"
            )
    varies = [i for i, value in enumerate(given) if value is not None and not isinstance(value, Tensor)]
    if node.op_type not in OF_SEVERAL and varies != [0]:
        raise ValueError(
            f"model: want {node.op_type} with inputs that are constants but for the first, got node {name_of(node)!r}"
        )
    if node.op_type in OF_BATCHES and not reader.batched:
        raise ValueError(f"model: want {node.op_type} in a network whose input has a batch, got node {name_of(node)!r}")
    try:
        return rule(reader, node, given, **arguments)
    except (RuntimeError, TypeError, AttributeError, IndexError, StopIteration, ZeroDivisionError) as error:
        raise ValueError(f"model: {node.op_type} of node {name_of(node)!r} does not fit its inputs: {error}") from error


def _fold(reader: OnnxReader, node: NodeProto) -> None:
    """Compute a node that depends on constants alone."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if node.op_type in RANDOM or any(attribute.HasField("g") for attribute in node.attribute):
        kind = "random" if node.op_type in RANDOM else "a graph of its own"
        raise ValueError(f"model: {node.op_type} of node {name_of(node)!r} is {kind}; want constants")
    names = [name for name in node.input if name]
    arrays = {name: np.asarray(reader.values[name]) for name in names}
    kinds = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in arrays.items()]  # fmt: skip
    outputs = [helper.make_value_info(name, helper.make_tensor_type_proto(1, None)) for name in node.output if name]
    alone = helper.make_model(
        helper.make_graph([node], "constant", kinds, outputs), opset_imports=reader.proto.opset_import
    )
    if node.op_type != "Constant":  # those are in the file itself
        reader.computed += 8 * _numbers(alone, arrays)
    if reader.computed > reader.most:
        raise ValueError(
            f"model: want computed constants of at most {reader.most:,} bytes, got more at {name_of(node)!r}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = ReferenceEvaluator(alone).run(None, arrays)
        except MemoryError:
            raise
        except Exception as error:  # errors of any kind: its operators are written in NumPy
            raise ValueError(f"model: {node.op_type} of node {name_of(node)!r} cannot be computed: {error}") from error
    reader.values.update(
        (name, reader.constant(value)) for name, value in zip(filter(None, node.output), found, strict=False)
    )


def _numbers(alone: ModelProto, arrays: dict[str, NDArray[Any]]) -> int:
    """How many numbers a node will make, as ONNX infers from its inputs; refused where it cannot say."""
    from onnx import ModelProto, numpy_helper, shape_inference

    (node,) = alone.graph.node
    told = ModelProto()
    told.CopyFrom(alone)
    told.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items() if a.size <= 1024)
    del told.graph.output[:]
    told.graph.output.extend(type(value)(name=value.name) for value in alone.graph.output)
    try:
        inferred = shape_inference.infer_shapes(told, strict_mode=True, data_prop=True).graph.output
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ValueError(f"model: {node.op_type} of node {name_of(node)!r} does not fit: {error}") from error
    total = 0
    for value in inferred:
        kind = value.type.tensor_type
        if not kind.HasField("shape") or not all(d.HasField("dim_value") and d.dim_value >= 0 for d in kind.shape.dim):
            raise ValueError(
                f"model: operator {node.op_type} of node {name_of(node)!r} is not known: ONNX cannot say how large its "
                "constant is"
            )
        total += prod(d.dim_value for d in kind.shape.dim)
    return total
