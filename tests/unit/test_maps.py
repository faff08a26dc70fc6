"""Operators on maps in random geometries: PyTorch's and ONNX Runtime's own answers, and the rules of the bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from robustlab.graph.affine import Moves
from robustlab.graph.conv import Conv
from robustlab.graph.forms import Forms, units
from robustlab.graph.operators import Affine
from robustlab.graph.pool import MaxPool
from robustlab.graph.read_onnx import read_onnx
from robustlab.graph.transposed import ConvTranspose
from robustlab.verification import trace
from robustlab.verification.propagation.backward import backward

ROUNDS = 40


def model_of(
    kind: str, shape: tuple[int, ...], constants: dict[str, Any], *, opset: int = 21, **attributes: Any
) -> Any:
    """One node from "x"; constants whose name begins with an underscore are left out as inputs."""
    names = ["x", *("" if name.startswith("_") else name for name in constants)]
    given = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items() if not n.startswith("_")]
    node = helper.make_node(kind, names, ["y"], name="it", **attributes)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, *shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        given,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def of_runtime(model: Any, x: np.ndarray) -> np.ndarray | None:
    """ONNX Runtime's answer; None where it takes no such node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0]
    except Exception:
        return None


def compared(model: Any, shape: tuple[int, ...], rng: np.random.Generator) -> bool:
    """Both answers are one, or ours is a refusal that names the node; whether they were compared."""
    x = rng.normal(size=(1, *shape)).astype(np.float32)
    wanted = of_runtime(model, x)
    try:
        graph = read_onnx(model)
    except ValueError as error:
        assert "'it'" in str(error)
        return False
    if wanted is None:
        return False
    got = graph(torch.from_numpy(x).double()).numpy()
    assert got.shape == wanted.shape, model.graph.node
    np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=str(model.graph.node))
    return True


def geometry(rng: np.random.Generator, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Size, kernel, and attributes: strides, dilations, and padding that may differ at the two ends."""
    size, kernel = rng.integers(5, 10, rank), rng.integers(1, 4, rank)
    how: dict[str, Any] = {"strides": rng.integers(1, 4, rank).tolist(), "dilations": rng.integers(1, 3, rank).tolist()}
    auto = rng.choice(["NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
    if auto == "NOTSET":
        how["pads"] = [int(rng.integers(0, k)) for k in [*kernel, *kernel]]
    else:
        how["auto_pad"] = str(auto)
    return tuple(size.tolist()), tuple(kernel.tolist()), how


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions(rank: int, operator: str) -> None:
    """Those that go up have their outputs in the second dimension of the weights, and padding of the output."""
    rng, up = np.random.default_rng(rank), operator == "ConvTranspose"
    done = 0
    for _ in range(ROUNDS):
        size, kernel, how = geometry(rng, rank)
        groups = int(rng.integers(1, 3))
        weight = rng.normal(size=(2 * groups, 3 if up else 2, *kernel)).astype(np.float32)
        constants = {"w": weight, "b": rng.normal(size=(3 if up else 2) * groups).astype(np.float32)}
        if up:
            how["output_padding"] = [int(rng.integers(0, s)) for s in how["strides"]]
        model = model_of(operator, (2 * groups, *size), constants, group=groups, **how)
        done += compared(model, (2 * groups, *size), rng)
    assert done > ROUNDS / (3 if up else 2)


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("rank", [1, 2])
def test_max_pooling(rank: int, ceil: int) -> None:
    rng = np.random.default_rng(rank)
    done = 0
    for _ in range(ROUNDS):
        size, kernel, how = geometry(rng, rank)
        done += compared(
            model_of("MaxPool", (2, *size), {}, kernel_shape=kernel, ceil_mode=ceil, **how), (2, *size), rng
        )
    assert done > ROUNDS / 2


@pytest.mark.parametrize(("ceil", "counts"), [*itertools.product([0, 1], [0, 1])])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_average_pooling(rank: int, ceil: int, counts: int) -> None:
    rng = np.random.default_rng(rank)
    done = 0
    for _ in range(ROUNDS):
        size, kernel, how = geometry(rng, rank)
        how |= {"kernel_shape": kernel, "ceil_mode": ceil, "count_include_pad": counts}
        done += compared(model_of("AveragePool", (2, *size), {}, **how), (2, *size), rng)
    assert done > ROUNDS / 3


COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing(mode: str, coordinates: str) -> None:
    """By scales or sizes, larger and smaller, in one, two and three dimensions."""
    rng = np.random.default_rng(0)
    done = 0
    for i in range(ROUNDS):
        rank = 1 + i % 3
        size = rng.integers(3, 8, rank)
        how = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": NEAREST[i % 4]}
        if i % 2:
            given: dict[str, Any] = {"_r": 0, "_s": 0, "n": np.array([1, 2, *rng.integers(2, 12, rank)])}
        else:
            scales = rng.choice([0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0], rank)
            given = {"_r": 0, "s": np.array([1, 1, *scales], dtype=np.float32)}
        done += compared(model_of("Resize", (2, *size.tolist()), given, **how), (2, *size.tolist()), rng)
    assert done > ROUNDS / 2


@pytest.mark.parametrize("opset", [9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_in_old_files(mode: str, opset: int) -> None:
    scales = {"s": np.array([1, 1, 2.0, 3.0], dtype=np.float32)}
    model = model_of("Upsample" if opset == 9 else "Resize", (2, 4, 3), scales, opset=opset, mode=mode)
    assert compared(model, (2, 4, 3), np.random.default_rng(0))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding(mode: str) -> None:
    rng = np.random.default_rng(0)
    done = 0
    for i in range(ROUNDS):
        pads = rng.integers(-2 if mode == "constant" and i % 2 else 0, 4, 8)
        pads[[0, 4]] = 0
        given = {"p": pads, "v": np.float32(0.7)}
        done += compared(model_of("Pad", (4, 5, 6), given, mode=mode), (4, 5, 6), rng)
    assert done > ROUNDS / 2


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "cubic": ("Resize", {"_r": 0, "s": np.float32([1, 1, 2, 2])}, {"mode": "cubic"}, "nearest and linear are known"),
    "antialias": ("Resize", {"_r": 0, "s": np.float32([1, 1, 2, 2])}, {"mode": "linear", "antialias": 1}, "antialias"),
    "cropped": ("Resize", {"_r": 0, "s": np.float32([1, 1, 2, 2])},
                {"coordinate_transformation_mode": "tf_crop_and_resize"}, "tf_crop_and_resize"),
    "batch": ("Resize", {"_r": 0, "s": np.float32([2, 1, 1, 1])}, {}, "batch apart"),
    "nearly whole": ("Resize", {"_r": 0, "s": np.float32([1, 1, 13 / 9, 1])}, {}, "nearly whole"),
    "windows of padding": ("MaxPool", {}, {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]}, "windows that see the map"),
    "beyond memory": ("AveragePool", {}, {"kernel_shape": [2, 2], "pads": [0, 0, 0, 2**28]}, "at most"),
    "transposed to a size": ("ConvTranspose", {"w": np.ones((2, 1, 2, 2), np.float32)}, {"output_shape": [1, 1, 9, 9]},
                             "output_shape"),
    "transposed, padded somehow": ("ConvTranspose", {"w": np.ones((2, 1, 2, 2), np.float32)},
                                   {"auto_pad": "SAME_UPPER"}, "explicit pads"),
    "maximum of a volume": ("MaxPool", {}, {"kernel_shape": [2, 2, 2]}, "one or two dimensions"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    kind, constants, attributes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        read_onnx(model_of(kind, (2, 9, 9), constants, **attributes))
    assert "'it'" in str(error.value)


# Of PyTorch: every way of the modules, in random geometries, and what bounds do there.


def modules(seed: int) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Modules on maps, each with the shape of a sample."""
    rng = np.random.default_rng(seed)

    def pair(low: int, high: int) -> tuple[int, int]:
        return int(rng.integers(low, high)), int(rng.integers(low, high))

    size = pair(6, 10)
    stride, kernel, padding = pair(1, 4), pair(2, 5), pair(0, 2)
    more = tuple(int(rng.integers(0, s)) for s in stride)
    groups = int(rng.integers(1, 3))
    shape = (2 * groups, *size)
    mode = ("nearest", "bilinear", "bicubic", "area", "nearest-exact")[seed % 5]
    found: dict[str, nn.Module] = {
        "conv same": nn.Conv2d(2 * groups, 4, kernel, padding="same", dilation=pair(1, 3), groups=groups),
        "conv of a reflection": nn.Conv2d(2 * groups, 3, 3, padding=padding, padding_mode="reflect"),
        "transposed": nn.ConvTranspose2d(2 * groups, 4, kernel, stride, padding, more, groups, dilation=pair(1, 3)),
        "maximum": nn.MaxPool2d(kernel, stride, padding, ceil_mode=True),
        "average": nn.AvgPool2d(kernel, stride, padding, ceil_mode=True, count_include_pad=bool(seed % 2)),
        "average by a number": nn.AvgPool2d(kernel, stride, padding, divisor_override=3),
        "adaptive": nn.AdaptiveAvgPool2d(pair(1, 6)),
        "upsample": nn.Upsample(pair(3, 14), mode=mode),
        "upsample by scale": nn.Upsample(scale_factor=(1.5, 0.7), mode=mode),
        "corners": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        "edge": nn.ReplicationPad2d((1, 2, 0, 3)),
        "circle": nn.CircularPad2d((1, 0, 2, 1)),
    }
    return {name: (module.double().eval().requires_grad_(False), shape) for name, module in found.items()}


NAMES = tuple(modules(0))
SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NAMES)
def test_modules_and_their_rules(name: str, seed: int) -> None:
    """The module's own answers; of an affine one the Jacobian, and its absolute value."""
    module, shape = modules(seed)[name]
    x = torch.randn(3, *shape, dtype=torch.float64)
    graph = trace(module, x)
    torch.testing.assert_close(graph(x), module(x), rtol=0, atol=1e-12)
    if any(isinstance(node.op, MaxPool) for node in graph.nodes):
        return
    coef, sample = torch.randn(3, *graph.output_shape, dtype=torch.float64), torch.arange(3)
    found, constant = backward(graph, {}, Forms(coef, sample), len(graph.nodes) - 1)
    wanted = (coef * module(x)).flatten(1).sum(1)
    torch.testing.assert_close(found.dot(x) + constant, wanted, rtol=0, atol=1e-10)
    # |W|, column by column, from the answers to unit inputs.
    columns = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    jacobian = (module(columns) - module(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).abs()
    radius, forms = torch.rand(1, *shape, dtype=torch.float64), Forms(coef.abs(), sample)
    whole = radius
    for node in reversed(graph.nodes[1:]):
        (forms,), _ = node.op.absolute().backward(forms, [graph.nodes[i].shape for i in node.inputs], None)
    for node in graph.nodes[1:]:
        whole = node.op.magnitude(whole) if isinstance(node.op, Affine) else node.op.forward(whole)
        if isinstance(node.op, Moves):
            whole = whole - node.op.forward(torch.zeros(1, *graph.nodes[node.inputs[0]].shape, dtype=torch.float64))
    errors = whole.flatten(1) - radius.flatten(1) @ jacobian, forms.coef.flatten(1) - coef.abs().flatten(1) @ jacobian.T
    if name != "conv of a reflection":  # what cancels is not seen where a number is repeated
        assert max(float(error.abs().max()) for error in errors) < 1e-10
    assert min(float(error.min()) for error in errors) > -1e-10


@pytest.mark.parametrize("seed", SEEDS)
def test_maps_stay_convolutions(seed: int) -> None:
    """No matrix of a whole map is made."""
    for name in ("conv same", "transposed"):
        module, shape = modules(seed)[name]
        sizes = [v.numel() for node in trace(module, shape).nodes[1:] for v in vars(node.op).values()
                 if isinstance(v, Tensor)]  # fmt: skip
        assert max(sizes) == module.weight.numel()
    assert any(isinstance(n.op, ConvTranspose) for n in trace(module, shape).nodes)


@pytest.mark.parametrize(("pad", "value"), [((1, 2, 0, 1), 0.0), ((2, 0, 1, 3), 0.6), ((-1, 1, 0, -1), 0.3)])
def test_windows_pass_padding(pad: tuple[int, ...], value: float) -> None:
    """One neuron's form as a window and written out, through padding between two convolutions."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.pad(self.a(x), pad, value=value)).relu()

    shape = (2, 9, 8)
    graph = trace(Net().double().requires_grad_(False), shape)
    assert [type(n.op) for n in graph.nodes[1:4:2]] == [Conv, Conv]
    node = graph.nodes[3]
    size = math.prod(node.shape)
    place, sample = torch.arange(size), torch.arange(size) % 3
    windows = units(sample, place, node.shape, torch.ones(size, dtype=torch.float64))
    a, c = backward(graph, {}, windows, 3)
    b, d = backward(graph, {}, windows.full(node.shape), 3)
    assert a.window is not None
    torch.testing.assert_close(a.full(shape).coef, b.coef, rtol=0, atol=1e-12)
    torch.testing.assert_close(c, d, rtol=0, atol=1e-12)
