"""ONNX files against ONNX's own reference evaluator, and whole instances of the verification competition."""

from __future__ import annotations

import gzip
import re
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustlab.graph.onnx_file import load_onnx
from robustlab.graph.onnx_operators import RULES
from robustlab.graph.product import Product
from robustlab.graph.read_onnx import read_onnx
from robustlab.graph.smooth import Smooth
from robustlab.verification.__main__ import main
from robustlab.verification.complete.competition import check
from robustlab.verification.complete.vnnlib import read_vnnlib
from tests.unit.relu_patterns import exact_minimum, tiny

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def network(
    nodes: list[Any],
    constants: dict[str, np.ndarray],
    shape: tuple[int, ...],
    *,
    listed: bool = False,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model from "x" to "y"; ``listed`` also lists the constants as inputs, as old files do."""
    kind = onnx.TensorProto.FLOAT
    made = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    if listed:
        inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in made] + inputs
    graph = helper.make_graph(nodes, "net", inputs, [helper.make_tensor_value_info("y", kind, None)], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def agree(model: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    from onnx.reference import ReferenceEvaluator

    graph, evaluator = read_onnx(model), ReferenceEvaluator(model)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.normal(size=shape).astype(np.float32)
        (wanted,) = evaluator.run(None, {"x": x})
        got = graph(torch.from_numpy(x).double().reshape(1, *graph.input_shape))
        np.testing.assert_allclose(got.detach().numpy().reshape(wanted.shape), wanted, atol=2e-5)


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


N = helper.make_node
IMAGE, FLAT = (1, 2, 6, 6), (1, 6)
ONE: dict[str, tuple[tuple[int, ...], list[Any], dict[str, np.ndarray]]] = {
    "gemm": (FLAT, [N("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)], {"w": rand(4, 6), "b": rand(4)}),
    "gemm, not transposed": (FLAT, [N("Gemm", ["x", "w"], ["y"])], {"w": rand(6, 4)}),
    "matmul": (FLAT, [N("MatMul", ["x", "w"], ["y"])], {"w": rand(6, 4)}),
    "matmul from the left": ((1, 6, 3), [N("MatMul", ["w", "x"], ["y"])], {"w": rand(4, 6)}),
    "matmul by a vector": ((1, 3, 6), [N("MatMul", ["x", "w"], ["y"])], {"w": rand(6)}),
    "one dimension, from the left": ((6,), [N("MatMul", ["w", "x"], ["y"])], {"w": rand(4, 6)}),
    "one dimension, from the right": ((6,), [N("MatMul", ["x", "w"], ["y"])], {"w": rand(6, 4)}),
    "add": (FLAT, [N("Add", ["x", "c"], ["y"])], {"c": rand(6)}),
    "constant minus": (FLAT, [N("Sub", ["c", "x"], ["y"])], {"c": rand(1)}),
    "minus constant": (FLAT, [N("Sub", ["x", "c"], ["y"])], {"c": rand(1, 6)}),
    "mul": (IMAGE, [N("Mul", ["x", "c"], ["y"])], {"c": rand(2, 1, 1)}),
    "div": (IMAGE, [N("Div", ["x", "c"], ["y"])], {"c": rand(1, 2, 1, 1)}),
    "a constant that is larger": ((1, 1, 6), [N("Add", ["x", "c"], ["y"])], {"c": rand(4, 6)}),
    "conv": (IMAGE, [N("Conv", ["x", "w", "b"], ["y"], strides=[2, 1], pads=[1, 0, 1, 0], dilations=[1, 2])],
             {"w": rand(3, 2, 3, 3), "b": rand(3)}),
    "grouped conv": (IMAGE, [N("Conv", ["x", "w"], ["y"], group=2)], {"w": rand(4, 1, 3, 3)}),
    "conv of sequences": ((1, 2, 9), [N("Conv", ["x", "w"], ["y"], strides=[2])], {"w": rand(3, 2, 3)}),
    "batch norm": (IMAGE, [N("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"], epsilon=1e-3)],
                   {"g": rand(2), "b": rand(2), "m": rand(2), "v": rand(2) ** 2}),
    "relu": (FLAT, [N("Relu", ["x"], ["y"])], {}),
    "leaky relu": (FLAT, [N("LeakyRelu", ["x"], ["y"], alpha=0.2)], {}),
    "abs": (FLAT, [N("Abs", ["x"], ["y"])], {}),
    "neg": (FLAT, [N("Neg", ["x"], ["y"])], {}),
    "sigmoid": (FLAT, [N("Sigmoid", ["x"], ["y"])], {}),
    "tanh": (FLAT, [N("Tanh", ["x"], ["y"])], {}),
    "softplus": (FLAT, [N("Softplus", ["x"], ["y"])], {}),
    "clip": (FLAT, [N("Clip", ["x", "l", "h"], ["y"])], {"l": np.float32(-0.3), "h": np.float32(0.4)}),
    "clip from above": (FLAT, [N("Clip", ["x", "", "h"], ["y"])], {"h": np.float32(0.4)}),
    "max pool": (IMAGE, [N("MaxPool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0])], {}),
    "average pool": (IMAGE, [N("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], strides=[3, 2])], {}),
    "global average": (IMAGE, [N("GlobalAveragePool", ["x"], ["y"])], {}),
    "mean": (IMAGE, [N("ReduceMean", ["x"], ["y"], axes=[2, -1], keepdims=0)], {}),
    "flatten": (IMAGE, [N("Flatten", ["x"], ["y"])], {}),
    "reshape": (IMAGE, [N("Reshape", ["x", "s"], ["y"])], {"s": np.array([0, 4, -1])}),
    "squeeze": ((1, 1, 6), [N("Squeeze", ["x", "a"], ["y"])], {"a": np.array([1])}),
    "unsqueeze": (FLAT, [N("Unsqueeze", ["x", "a"], ["y"])], {"a": np.array([1, -1])}),
    "transpose": (IMAGE, [N("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {}),
    "concat": (IMAGE, [N("Relu", ["x"], ["r"]), N("Concat", ["r", "x", "r"], ["y"], axis=-1)], {}),
    "concat with a constant": (FLAT, [N("Concat", ["c", "x"], ["y"], axis=1)], {"c": rand(1, 3)}),
    "sum of two": (IMAGE, [N("Relu", ["x"], ["r"]), N("Sub", ["r", "x"], ["y"])], {}),
    "product of two": (FLAT, [N("Relu", ["x"], ["r"]), N("Mul", ["r", "x"], ["y"])], {}),
    "identity and dropout": (FLAT, [N("Identity", ["x"], ["i"]), N("Dropout", ["i"], ["d"]), N("Neg", ["d"], ["y"])],
                             {}),
    "elu": (FLAT, [N("Elu", ["x"], ["y"], alpha=0.7)], {}),
    "selu": (FLAT, [N("Selu", ["x"], ["y"])], {}),
    "hard swish": (FLAT, [N("HardSwish", ["x"], ["y"])], {}),
    "hard sigmoid": (FLAT, [N("HardSigmoid", ["x"], ["y"], alpha=0.4)], {}),
    "prelu": (IMAGE, [N("PRelu", ["x", "a"], ["y"])], {"a": np.float32([[[0.2]], [[0.4]]])}),
    "power": (FLAT, [N("Pow", ["x", "e"], ["y"])], {"e": np.float32(2)}),
    "exp": (FLAT, [N("Exp", ["x"], ["y"])], {}),
    "softmax": (IMAGE, [N("Softmax", ["x"], ["y"], axis=1)], {}),
    "layer norm": (IMAGE, [N("LayerNormalization", ["x", "g", "b"], ["y"], epsilon=1e-3)],
                   {"g": rand(6), "b": rand(6)}),
    "layer norm in parts": ((1, 3, 4), [N("ReduceMean", ["x"], ["m"], axes=[-1]), N("Sub", ["x", "m"], ["c"]),
                                        N("Pow", ["c", "e"], ["s"]), N("ReduceMean", ["s"], ["v"], axes=[-1]),
                                        N("Add", ["v", "d"], ["w"]), N("Sqrt", ["w"], ["r"]),
                                        N("Div", ["c", "r"], ["y"])],
                            {"e": np.float32(2), "d": np.float32(1e-2)}),
    "erf": (FLAT, [N("Erf", ["x"], ["y"])], {}),
    "gelu of old files": (FLAT, [N("Div", ["x", "r"], ["d"]), N("Erf", ["d"], ["e"]), N("Add", ["e", "o"], ["f"]),
                                 N("Mul", ["x", "f"], ["g"]), N("Mul", ["g", "h"], ["y"])],
                          {"r": np.float32(2**0.5), "o": np.float32(1), "h": np.float32(0.5)}),
    "quotient of two": (FLAT, [N("Exp", ["x"], ["e"]), N("Div", ["x", "e"], ["y"])], {}),
    "number over": (FLAT, [N("Exp", ["x"], ["e"]), N("Div", ["c", "e"], ["y"])], {"c": rand(6)}),
    "two matrices": ((1, 3, 4), [N("Transpose", ["x"], ["t"], perm=[0, 2, 1]), N("MatMul", ["x", "t"], ["y"])], {}),
    "pad": (IMAGE, [N("Pad", ["x", "p", "v"], ["y"])], {"p": np.array([0, 1, 0, 2, 0, 0, 3, 1]), "v": np.float32(0.3)}),
    "slice": (IMAGE, [N("Slice", ["x", "s", "e", "a", "t"], ["y"])],
              {"s": np.array([0, 5]), "e": np.array([1, -9]), "a": np.array([1, -1]), "t": np.array([1, -2])}),
    "slice without axes": (IMAGE, [N("Slice", ["x", "s", "e", "a"], ["y"])],
                           {"s": np.array([-3]), "e": np.array([2**31]), "a": np.array([2])}),
    "gather": (IMAGE, [N("Gather", ["x", "i"], ["y"], axis=2)], {"i": np.array([3, -1, 3])}),
    "gather one": (IMAGE, [N("Gather", ["x", "i"], ["y"], axis=1)], {"i": np.array(1)}),
    "split": (IMAGE, [N("Split", ["x", "n"], ["a", "b"], axis=2), N("Concat", ["b", "a"], ["y"], axis=2)],
              {"n": np.array([2, 4])}),
    "average inside": (IMAGE, [N("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], pads=[1, 1, 1, 1])], {}),
    "constants are folded": (FLAT, [N("Constant", [], ["k"], value=numpy_helper.from_array(rand(6, 3))),
                                    N("Transpose", ["k"], ["t"]), N("Gemm", ["x", "t"], ["y"], transB=1)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_operator(name: str) -> None:
    shape, nodes, constants = ONE[name]
    agree(network(nodes, constants, shape), shape)


@pytest.mark.parametrize(("opset", "kind"), [(20, "Gelu"), (24, "Swish")])
def test_operators_of_later_opsets(opset: int, kind: str) -> None:
    model = network([N(kind, ["x"], ["y"])], {}, FLAT, opset=opset)
    if opset <= onnx.defs.onnx_opset_version():
        agree(model, FLAT)
    else:  # an old onnx, which does not know the operator, is asked what it should mean
        with pytest.raises(ValueError, match=f"node 'y': .*{kind}"):
            read_onnx(model)


@pytest.mark.parametrize("order", [["x", "s"], ["s", "x"]])
def test_silu_as_exporters_write_it(order: list[str]) -> None:
    """One curve instead of a product of two nodes; the sigmoid of something else stays a factor."""
    model = network([N("Sigmoid", ["x"], ["s"]), N("Mul", order, ["y"])], {}, FLAT)
    agree(model, FLAT)
    assert [node.op for node in read_onnx(model).nodes[1:]] == [Smooth("silu")]
    other = network([N("Neg", ["x"], ["n"]), N("Sigmoid", ["n"], ["s"]), N("Mul", order, ["y"])], {}, FLAT)
    agree(other, FLAT)
    assert read_onnx(other).nodes[-1].op == Product()


def test_gelu_as_exporters_write_it() -> None:
    """One curve; where a number is another, the product that the file has."""
    shape, nodes, constants = ONE["gelu of old files"]
    assert [type(n.op).__name__ for n in read_onnx(network(nodes, constants, shape)).nodes].count("Product") == 0
    for name, other in (("r", 1.4), ("o", 1.01)):
        model = network(nodes, constants | {name: np.float32(other)}, shape)
        agree(model, shape)
        assert Product() in [n.op for n in read_onnx(model).nodes]


SOFTPLUS = [N("Mul", ["x", "b"], ["s"]), N("Softplus", ["s"], ["p"]), N("Div", ["p", "b"], ["d"]),
            N("Greater", ["s", "t"], ["g"]), N("Where", ["g", "x", "d"], ["y"])]  # fmt: skip


def test_softplus_with_its_threshold() -> None:
    """What is left out matters less than rounding; another choice between two values is refused."""
    constants = {"b": np.float32(2), "t": np.float32(20)}
    agree(network(SOFTPLUS, constants, FLAT), FLAT)
    for change in ({"t": np.float32(2)}, {"b": np.float32(-2)}):
        with pytest.raises(ValueError, match="Where as in a softplus with its threshold of 20, got node 'y'"):
            read_onnx(network(SOFTPLUS, constants | change, FLAT))
    for last in (["g", "d", "x"], ["g", "x", "p"], ["g", "s", "d"]):
        with pytest.raises(ValueError, match="Where as in a softplus with its threshold of 20, got node 'y'"):
            read_onnx(network([*SOFTPLUS[:-1], N("Where", last, ["y"])], constants, FLAT))
    with pytest.raises(ValueError, match="want Where alone behind node 'g', got Neg of node 'y'"):
        read_onnx(network([*SOFTPLUS[:-1], N("Neg", ["g"], ["y"])], constants, FLAT))


def test_old_files_list_constants_as_inputs() -> None:
    agree(network([N("Gemm", ["x", "w"], ["y"])], {"w": rand(6, 4)}, FLAT, listed=True), FLAT)


def test_residual_network(tmp_path: Path) -> None:
    nodes = [
        N("Sub", ["x", "mean"], ["a"]), N("Conv", ["a", "w1", "b1"], ["c"], pads=[1, 1, 1, 1]), N("Relu", ["c"], ["r"]),
        N("Conv", ["r", "w2"], ["d"], pads=[1, 1, 1, 1]), N("Add", ["d", "a"], ["e"]), N("Relu", ["e"], ["f"]),
        N("AveragePool", ["f"], ["p"], kernel_shape=[2, 2], strides=[2, 2]), N("Flatten", ["p"], ["g"]),
        N("Gemm", ["g", "w3", "b3"], ["y"], transB=1),
    ]  # fmt: skip
    constants = {"mean": rand(2, 1, 1), "w1": rand(3, 2, 3, 3), "b1": rand(3), "w2": rand(2, 3, 3, 3),
                 "w3": rand(4, 18), "b3": rand(4)}  # fmt: skip
    model = network(nodes, constants, IMAGE)
    agree(model, IMAGE)
    path = tmp_path / "net.onnx.gz"
    path.write_bytes(gzip.compress(model.SerializeToString()))
    x = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(read_onnx(path)(x), read_onnx(model)(x))


@pytest.mark.parametrize(
    ("nodes", "shape", "message"),
    [
        ([N("Sin", ["x"], ["y"], name="strange")], FLAT, "operator Sin of node 'strange' is not known; want one of"),
        (
            [N("Transpose", ["x"], ["t"], name="turns", perm=[1, 0]), N("Relu", ["t"], ["y"])],
            FLAT,
            "want GatherND and Transpose alone behind node 'turns', got Relu of node 'y'",
        ),
        ([N("Transpose", ["x"], ["y"], name="turns", perm=[1, 0])], FLAT, "in front, got what node 'turns' gives"),
        ([N("Pow", ["x", "x"], ["y"])], FLAT, "constants but for the first"),
        ([N("Swish", ["x"], ["y"], alpha=2.0)], FLAT, "only alpha=1, SiLU, is known, got 2.0"),
        ([N("MatMul", ["x", "x"], ["y"])], FLAT, "want matrices of one rank"),
        ([N("Flatten", ["x"], ["y"], axis=0)], FLAT, "Flatten of all but the batch"),
        ([N("Relu", ["x"], ["y"])], (3, 6), "a batch of 1"),
    ],
)
def test_errors(nodes: list[Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_onnx(network(nodes, {}, shape))


# Attributes and inputs that say something else than what our operators do: node, constants, opset, message.
RUN = {"g": rand(2), "b": rand(2), "m": rand(2), "v": rand(2) ** 2}
BN, IN = ["x", "g", "b", "m", "v"], onnx.TensorProto
POOL: dict[str, Any] = {"kernel_shape": [2, 2]}
BAD: dict[str, tuple[Any, dict[str, Any], tuple[int, ...], int, str]] = {
    "cast to whole numbers": (N("Cast", ["x"], ["y"], to=IN.INT64), {}, FLAT, 17, "casts to INT64"),
    "cast to a byte": (N("Cast", ["x"], ["y"], to=IN.UINT8), {}, FLAT, 17, "casts to UINT8"),
    "cast to bool": (N("Cast", ["x"], ["y"], to=IN.BOOL), {}, FLAT, 17, "casts to BOOL"),
    "cast to half": (N("Cast", ["x"], ["y"], to=IN.FLOAT16), {}, FLAT, 17, "casts to FLOAT16"),
    "steep leaky relu": (N("LeakyRelu", ["x"], ["y"], alpha=2.0), {}, FLAT, 17, r"alpha in \[0, 1\], got 2.0"),
    "leaky relu upward": (N("LeakyRelu", ["x"], ["y"], alpha=-0.5), {}, FLAT, 17, r"alpha in \[0, 1\], got -0.5"),
    "batch norm that trains": (N("BatchNormalization", BN, ["y", "rm", "rv"], training_mode=1), RUN, IMAGE, 17,
                               "training_mode .*want 0, got 1"),
    "batch norm that trains, older": (N("BatchNormalization", BN, ["y", "rm", "rv"]), RUN, IMAGE, 9, "one output"),
    "batch norm that trains, oldest": (N("BatchNormalization", BN, ["y"]), RUN, IMAGE, 6, "is_test=1"),
    "batch norm for each pixel": (N("BatchNormalization", BN, ["y"], spatial=0), RUN, IMAGE, 7,
                                  "spatial .*want 1, got 0"),
    "clip with ends turned": (N("Clip", ["x", "l", "h"], ["y"]), {"l": np.float32(0.5), "h": np.float32(0.2)}, FLAT, 17,
                              "min <= max, got 0.5 and 0.2"),
    "clip by an input": (N("Clip", ["x", "x"], ["y"]), {}, FLAT, 17, "constants but for the first"),
    "dropout that trains": (N("Dropout", ["x", "r", "t"], ["y"]), {"r": np.float32(0.5), "t": np.array(True)}, FLAT, 17,
                            "drops at random"),
    "dropout that trains, oldest": (N("Dropout", ["x"], ["y"]), {}, FLAT, 6, "is_test=1"),
    "a cube": (N("Pow", ["x", "e"], ["y"]), {"e": np.float32(3)}, FLAT, 17, "z to the 2 is known, got 3.0"),
    "selu of others": (N("Selu", ["x"], ["y"], alpha=1.0), {}, FLAT, 17, "own alpha and gamma"),
    "slopes for each pixel": (N("PRelu", ["x", "a"], ["y"]), {"a": rand(6, 6)}, IMAGE, 17, "one per channel"),
    "padding of the batch": (N("Pad", ["x", "p"], ["y"]), {"p": np.array([1, 0, 0, 0])}, FLAT, 17, "leaves the batch"),
    "a place outside": (N("Gather", ["x", "i"], ["y"], axis=1), {"i": np.array([6])}, FLAT, 17, r"in \[-6, 6\)"),
    "gather of the batch": (N("Gather", ["x", "i"], ["y"], axis=0), {"i": np.array([0])}, FLAT, 17, "batch apart"),
    "softmax of old files": (N("Softmax", ["x"], ["y"], axis=1), {}, IMAGE, 11, "last axis before opset 13"),
    "place of the maximum": (N("MaxPool", ["x"], ["p", "y"], **POOL), {}, IMAGE, 17, "'y' is not known"),
    "maximum with gaps": (N("MaxPool", ["x"], ["y"], auto_pad="SAME_UPPER", strides=[4, 4], kernel_shape=[1, 1]), {},
                          IMAGE, 17, "explicit pads where strides leave gaps"),
    "dilated average, padded somehow": (N("AveragePool", ["x"], ["y"], auto_pad="SAME_LOWER", dilations=[2, 2], **POOL),
                                        {}, IMAGE, 19, "or pooling has dilations"),
    "conv of two paddings": (N("Conv", ["x", "w"], ["y"], auto_pad="VALID", pads=[1, 1, 1, 1]),
                             {"w": rand(3, 2, 3, 3)}, IMAGE, 17, "auto_pad VALID"),
    "conv of two kernels": (N("Conv", ["x", "w"], ["y"], kernel_shape=[2, 2]), {"w": rand(3, 2, 3, 3)}, IMAGE, 17,
                            r"kernel_shape \[3, 3\].* got \[2, 2\]"),
    "gemm of columns": (N("Gemm", ["x", "w"], ["y"], transA=1), {"w": rand(1, 4)}, FLAT, 17,
                        "transA .*want 0, got 1"),
    "addition along an axis": (N("Add", ["x", "c"], ["y"], axis=1, broadcast=1), {"c": rand(2)}, IMAGE, 6, "axis"),
    "an unknown attribute": (N("Relu", ["x"], ["y"], alpha=0.3), {}, FLAT, 17, "attribute alpha of node 'y'"),
    "an attribute of another version": (N("Clip", ["x"], ["y"], min=0.0), {}, FLAT, 13, "attribute min of node 'y'"),
    "reshape by an attribute": (N("Reshape", ["x"], ["y"], shape=[1, 3, 2]), {}, FLAT, 1, "attribute shape"),
    "squeeze of the batch": (N("Squeeze", ["x"], ["y"]), {}, (1, 1, 6), 17, "keep the batch apart"),
    "mean of everything": (N("ReduceMean", ["x"], ["y"]), {}, FLAT, 17, "keep the batch apart"),
    "flatten elsewhere": (N("Flatten", ["x"], ["y"], axis=2), {}, IMAGE, 17, "Flatten of all but the batch"),
    "another domain": (N("Gelu", ["x"], ["y"], domain="elsewhere"), {}, FLAT, 20, "elsewhere"),
    "a constant for a batch": (N("Add", ["x", "c"], ["y"]), {"c": rand(4, 1, 6)}, FLAT, 17, "for a whole batch"),
    "sizes that do not fit": (N("Reshape", ["x", "s"], ["y"]), {"s": np.array([1, 4])}, FLAT, 17,
                              "node 'y' cannot take inputs of shapes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_attributes_that_are_refused(case: str) -> None:
    """Reading past one of them would verify another function."""
    node, constants, shape, opset, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        read_onnx(network([node], constants, shape, opset=opset))
    assert "node" in str(error.value) or "'y'" in str(error.value)


GOOD: dict[str, tuple[tuple[int, ...], list[Any], dict[str, np.ndarray]]] = {
    "cast to double and back": (FLAT, [N("Cast", ["x"], ["d"], to=IN.DOUBLE), N("Cast", ["d"], ["y"], to=IN.FLOAT)],
                                {}),
    "batch norm": (IMAGE, [N("BatchNormalization", BN, ["y"], momentum=0.8, training_mode=0)], RUN),
    "conv": (IMAGE, [N("Conv", ["x", "w"], ["y"], auto_pad="NOTSET", kernel_shape=[3, 3])], {"w": rand(3, 2, 3, 3)}),
    "maximum": (IMAGE, [N("MaxPool", ["x"], ["y", "i"], auto_pad="NOTSET", ceil_mode=0, storage_order=1,
                          kernel_shape=[2, 2], dilations=[2, 1])], {}),
    "average": (IMAGE, [N("AveragePool", ["x"], ["y"], ceil_mode=0, count_include_pad=1, kernel_shape=[2, 2],
                          pads=[1, 0, 1, 0])], {}),
    "average that need not count": (IMAGE, [N("AveragePool", ["x"], ["y"], count_include_pad=1,
                                              kernel_shape=[2, 2])], {}),
    "dropout": (FLAT, [N("Dropout", ["x", "r", "t"], ["y"], seed=3)], {"r": np.float32(0.5), "t": np.array(False)}),
    "reshape": (IMAGE, [N("Reshape", ["x", "s"], ["y"], allowzero=1)], {"s": np.array([1, 2, -1])}),
    "sum over nothing": (FLAT, [N("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1)], {}),
    "mean that keeps its axis": ((1, 3, 6), [N("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)], {}),
    "without a batch, a larger constant": ((6,), [N("Add", ["x", "c"], ["y"])], {"c": rand(4, 6)}),
    "without a batch, squeezed": ((6,), [N("Reshape", ["x", "s"], ["r"]), N("Squeeze", ["r"], ["q"]),
                                         N("Add", ["q", "c"], ["y"])], {"s": np.array([1, 6, 1]), "c": rand(6, 6)}),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_attributes_that_change_nothing(case: str) -> None:
    shape, nodes, constants = GOOD[case]
    agree(network(nodes, constants, shape), shape)


def test_a_convolution_without_padding_by_its_old_name() -> None:
    """Against PyTorch: the evaluator of onnx 1.16 takes VALID for SAME."""
    w = rand(3, 2, 3, 3)
    graph = read_onnx(network([N("Conv", ["x", "w"], ["y"], auto_pad="VALID", kernel_shape=[3, 3])], {"w": w}, IMAGE))
    x, kernel = torch.from_numpy(rand(*IMAGE)).double(), torch.from_numpy(w).double()
    torch.testing.assert_close(graph(x), torch.nn.functional.conv2d(x, kernel))


def test_what_else_is_no_function_of_one_input() -> None:
    relu = N("Relu", ["x"], ["y"])
    model = network([relu], {}, FLAT)
    model.graph.output.append(helper.make_tensor_value_info("x", IN.FLOAT, None))
    with pytest.raises(ValueError, match=r"want one output, got \['y', 'x'\]"):
        read_onnx(model)
    model = network([relu], {}, FLAT)
    model.graph.input[0].type.tensor_type.elem_type = IN.INT64
    with pytest.raises(ValueError, match="want an input of float32 or float64, got INT64"):
        read_onnx(model)
    noise = N("RandomNormal", [], ["r"], shape=[6])
    with pytest.raises(ValueError, match="RandomNormal of node 'r' is random"):
        read_onnx(network([noise, N("Add", ["x", "r"], ["y"])], {}, FLAT))


def test_a_network_that_is_read_as_another(
    planted: tuple[Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no rule foresees is found by running both."""
    network_file, least = planted
    text = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0.25))(assert (<= X_{i} 1.0))\n" for i in range(4))
    text += "".join(f"(declare-const Y_{i} Real)\n" for i in range(3)) + f"(assert (<= Y_0 {least - 0.1}))"
    spec = tmp_path / "p.vnnlib"
    spec.write_text(text)
    leaky = RULES["LeakyRelu"]
    monkeypatch.setitem(RULES, "Relu", lambda reader, node, given: leaky(reader, node, given, alpha=0.5))
    assert main([str(network_file), str(spec), "--timeout", "60"]) == 2
    assert "net.onnx was read as another function: outputs differ by" in capsys.readouterr().err


@pytest.mark.parametrize("opset", [7, 9, 13, 15])
@pytest.mark.parametrize(("shift", "wanted"), [(-0.01, "unsat"), (0.01, "sat")])
def test_batch_norm_of_old_files(tmp_path: Path, opset: int, shift: float, wanted: str) -> None:
    """At rest it is 2·(x − 3) / √(4 + ε) + 1, whose least value on [0, 1]² is −2; ONNX's evaluator errs."""
    constants = {"g": [2.0, 2.0], "b": [1.0, 1.0], "m": [3.0, 3.0], "v": [4.0, 4.0]}
    arrays = {name: np.array(values, dtype=np.float32) for name, values in constants.items()}
    (tmp_path / "net.onnx").write_bytes(
        network([N("BatchNormalization", BN, ["y"])], arrays, (1, 2), opset=opset).SerializeToString()
    )
    text = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0.0))(assert (<= X_{i} 1.0))\n" for i in range(2))
    text += "(declare-const Y_0 Real)(declare-const Y_1 Real)\n" + f"(assert (<= Y_0 {-2 + shift}))"
    (tmp_path / "p.vnnlib").write_text(text)
    assert check(tmp_path / "net.onnx", tmp_path / "p.vnnlib", timeout=60)[0] == wanted


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"no model at all")
    with pytest.raises(ValueError, match=r"net\.onnx: want an ONNX model, got none"):
        load_onnx(path)


# Instances with a planted answer ---------------------------------------------------------------------------------

UNSAFE = {
    "one bound": lambda t: f"(assert (<= Y_0 {t}))",
    "conjunction": lambda t: f"(assert (<= Y_0 {t})) (assert (<= Y_1 100.0))",
    "disjunction": lambda t: f"(assert (or (and (<= Y_0 {t})) (and (>= Y_1 100.0))))",
    "mixed": lambda t: f"(assert (or (and (<= X_0 0.6) (<= Y_0 {t})) (and (>= X_0 0.6) (<= Y_0 {t}) (<= Y_2 100.0))))",
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A network of 4 inputs and the exact least value of its first output on the box, found by brute force."""
    from robustlab.verification.complete.query import Case

    net = tiny((4, 4, 3, 3), 5)
    linear = [m for m in net if isinstance(m, torch.nn.Linear)]
    constants, nodes, at = {}, [N("Flatten", ["x"], ["z0"])], "z0"
    for i, layer in enumerate(linear):
        layer.weight.data, layer.bias.data = layer.weight.data.float().double(), layer.bias.data.float().double()
        constants |= {f"w{i}": layer.weight.detach().float().numpy(), f"b{i}": layer.bias.detach().float().numpy()}
        out = "y" if i == len(linear) - 1 else f"h{i}"
        nodes.append(N("Gemm", [at, f"w{i}", f"b{i}"], [out], transB=1))
        if out != "y":
            nodes.append(N("Relu", [out], [f"r{i}"]))
            at = f"r{i}"
    path = tmp_path_factory.mktemp("instance") / "net.onnx"
    path.write_bytes(network(nodes, constants, (1, 1, 1, 4)).SerializeToString())
    low, high = torch.full((4,), 0.25, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    row, zero = torch.eye(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return path, exact_minimum(net, Case(low, high, row, zero))


@pytest.mark.parametrize("kind", UNSAFE)
@pytest.mark.parametrize(("shift", "wanted"), [(-0.01, "unsat"), (0.01, "sat")])
def test_planted_counterexamples(
    planted: tuple[Path, float],
    tmp_path: Path,
    kind: str,
    shift: float,
    wanted: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from onnx.reference import ReferenceEvaluator

    network_file, least = planted
    text = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0.25))(assert (<= X_{i} 1.0))\n" for i in range(4))
    text += "".join(f"(declare-const Y_{i} Real)\n" for i in range(3)) + UNSAFE[kind](least + shift)
    spec = tmp_path / "p.vnnlib"
    spec.write_text(text)
    assert main([str(network_file), str(spec), "--timeout", "60"]) == 0
    answer, _, witness = capsys.readouterr().out.partition("\n")
    assert answer == wanted
    if wanted == "sat":
        values = [float(word.split()[1]) for word in witness.replace("(", "").split(")") if word.strip()]
        x = np.array(values[:4], dtype=np.float32).reshape(1, 1, 1, 4)
        (y,) = ReferenceEvaluator(str(network_file)).run(None, {"x": x})
        assert (x >= 0.25).all() and (x <= 1).all() and y[0, 0] <= least + shift
        np.testing.assert_allclose(values[4:], y.flatten(), atol=1e-6)


def test_timeout_and_errors(planted: tuple[Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network_file, least = planted
    text = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0.25))(assert (<= X_{i} 1.0))\n" for i in range(4))
    text += "".join(f"(declare-const Y_{i} Real)\n" for i in range(3)) + f"(assert (<= Y_0 {least - 1e-5}))"
    spec = tmp_path / "p.vnnlib"
    spec.write_text(text)
    assert check(network_file, spec, timeout=1e-9)[0] in ("timeout", "unsat")
    spec.write_text("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))")
    assert main([str(network_file), str(spec)]) == 2
    assert "want 4 inputs and 3 outputs" in capsys.readouterr().err


# Relu on two numbers in [−1, 0.1]: assertions, and what is to be answered.
BOX = "".join(
    f"(declare-const X_{i} Real)(declare-const Y_{i} Real)(assert (>= X_{i} -1))(assert (<= X_{i} 0.1))\n"
    for i in range(2)
)
LEGAL = {
    "a box alone": (BOX, ("sat",)),
    "no outputs declared": (re.sub(r"\(declare-const Y_. Real\)", "", BOX), ("sat",)),
    "a choice of boxes": (BOX + "(assert (or (<= X_0 0) (<= Y_0 -1)))", ("sat",)),
    "a point that float32 has not": (
        BOX + "(assert (>= X_0 0.1)) (assert (>= X_1 0.1)) (assert (>= Y_0 0.1))",
        ("sat",),
    ),
    "strict, at the edge": (BOX + "(assert (< Y_0 0))", ("unknown", "timeout")),
    "strict, inside": (BOX + "(assert (<= Y_0 0)) (assert (< Y_1 0.05))", ("sat",)),
    "strict inputs": (BOX + "(assert (> X_0 0.09)) (assert (< X_0 0.1)) (assert (>= Y_0 0.09))", ("sat",)),
    "strict, and nothing left": (BOX + "(assert (< X_0 0.1)) (assert (>= X_0 0.1))", ("unsat",)),
    "2⁴⁰ cases": (BOX + "".join(f"(assert (or (<= Y_0 -{i}) (<= Y_1 -{i})))" for i in range(1, 41)), ("timeout",)),
}


def test_a_network_without_numbers_on_the_box(tmp_path: Path) -> None:
    """It was read as it is meant, and nothing can be said of it."""
    (tmp_path / "n.onnx").write_bytes(network([N("Sqrt", ["x"], ["y"])], {}, (1, 2)).SerializeToString())
    (tmp_path / "p.vnnlib").write_text(BOX + "(assert (<= Y_0 0))")
    with pytest.raises(ValueError, match=r"^network: n.onnx gives NaN or infinity at a point of the box"):
        check(tmp_path / "n.onnx", tmp_path / "p.vnnlib", timeout=5)


@pytest.mark.slow
@pytest.mark.parametrize("case", LEGAL)
def test_legal_properties(tmp_path: Path, case: str) -> None:
    """In time; and what is written of a witness meets the file's text, in exact arithmetic."""
    text, wanted = LEGAL[case]
    (tmp_path / "n.onnx").write_bytes(network([N("Relu", ["x"], ["y"])], {}, (1, 2)).SerializeToString())
    (tmp_path / "p.vnnlib").write_text(text)
    start = time.monotonic()
    answer, witness = check(tmp_path / "n.onnx", tmp_path / "p.vnnlib", timeout=1)
    assert answer in wanted and time.monotonic() - start < 2.5
    if witness is not None:
        words = [pair.split() for pair in re.findall(r"[XY]_\d+ [^)]+", witness)]
        values = {name: Fraction(number) for name, number in words}
        assert read_vnnlib(tmp_path / "p.vnnlib").holds(values)
        for i in range(2):
            assert max(np.float32(0), np.float32(words[i][1])) == np.float32(words[2 + i][1])
