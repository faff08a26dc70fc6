"""From an ONNX file to a graph.

ONNX (https://onnx.ai) is the format in which networks go from one tool to another, and the one that the verification
competition uses. What does not depend on the input (weights, shapes, arithmetic on constants) is computed at once, by
the reference evaluator of the ``onnx`` package; what does becomes one of our operators.
"""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from robustlab.graph.node import Graph
from robustlab.graph.onnx_operators import RULES
from robustlab.graph.onnx_reader import OnnxReader, Value, attributes_of, name_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

OF_SEVERAL = {"Add", "Concat", "Div", "MatMul", "Mul", "Sub"}  # in any input there may be what depends on the network's
OF_BATCHES = {"AveragePool", "BatchNormalization", "Conv", "GlobalAveragePool", "MaxPool"}
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def load_onnx(path: str | Path) -> ModelProto:
    """The ONNX model of a file, which may be compressed with gzip (``.gz``).

    Raises:
        ImportError: if the package ``onnx`` is not installed.
        ValueError: if the file is no ONNX model.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("ONNX files are read by the package onnx: python -m pip install onnx") from error
    from google.protobuf.message import DecodeError

    path = Path(path)
    try:
        return onnx.load_from_string(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"path: want an ONNX model, got {path.name}, which is none") from error


def read_onnx(model: str | Path | ModelProto, *, dtype: torch.dtype = torch.float64) -> Graph:
    """Read an ONNX network as a graph of operators.

    SiLU written as x·Sigmoid(x) is recognized. GELU is one operator from opset 20 on; written with Erf, as exporters do
    below, it is not known: export with opset 20 or later.

    Args:
        model: a file (``.onnx``, or compressed, ``.onnx.gz``), or the loaded model.
        dtype: of the graph's numbers (default float64, which holds float32 weights exactly).

    Returns:
        The graph. Its input has the shape of the network's without the batch; an input of one dimension has no batch
        and is taken as a sample.

    Raises:
        ValueError: naming the node, if an operator is not known, or one of its attributes that is not at its default.

    Source: the operators' semantics are those of the ONNX standard.
    """
    proto = load_onnx(model) if isinstance(model, (str, Path)) else model
    reader = OnnxReader(proto, dtype)
    for node in proto.graph.node:
        given = [_value(reader, name) if name else None for name in node.input]
        if all(isinstance(value, Tensor) for value in given if value is not None):
            _fold(reader, node)
        elif node.op_type in RULES and node.domain in ("", "ai.onnx"):
            reader.values[node.output[0]] = _read(reader, node, given)
        else:
            where = f" ({node.domain})" if node.domain else ""
            hint = " (a GELU, if exported with opset 20 or later, is one operator)" if node.op_type == "Erf" else ""
            raise ValueError(
                f"model: operator {node.op_type}{where} of node {name_of(node)!r} is not known; want one of "
                f"{', '.join(sorted(RULES))}{hint}"
            )
    outputs = [value.name for value in proto.graph.output]
    if len(outputs) != 1:
        raise ValueError(f"model: want one output, got {outputs}")
    found = _value(reader, outputs[0])
    if not isinstance(found, int):
        raise ValueError("model: want an output that depends on the input, got a constant")
    return reader.builder.finish(found)


def _value(reader: OnnxReader, name: str) -> Value:
    if name not in reader.values:
        raise ValueError(f"model: value {name!r} is not known; want one input, constants, and nodes' first outputs")
    return reader.values[name]


def _read(reader: OnnxReader, node: NodeProto, given: list[Value | None]) -> int:
    """Apply a node's rule."""
    rule = RULES[node.op_type]
    arguments = attributes_of(reader, node, rule)
    if node.op_type not in OF_SEVERAL and [i for i, value in enumerate(given) if isinstance(value, int)] != [0]:
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ReferenceEvaluator(alone).run(None, arrays)
    reader.values.update(
        (name, reader.constant(value)) for name, value in zip(filter(None, node.output), found, strict=False)
    )
