"""What users of verifiers bring, as each exporter writes it: read as ONNX Runtime reads it, or refused by its name."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.graph.read_onnx import read_onnx
from robustlab.verification import trace

pytest.importorskip("onnxscript")

ROUTES = ("traced", "torchscript, free batch", "dynamo", "dynamo, free batch")
IMAGE, FLAT, WORDS = (2, 7, 6), (6,), (3, 8)
LONG = pytest.mark.full(
    "affine", "conv", "convert_affine", "convert_nonlinear", "convert_shape", "onnx_maps", "onnx_more",
    "onnx_operators", "onnx_reader", "onnx_shapes", "pool", "read_onnx", "tracing", "transposed",
)  # fmt: skip


def of(function: Callable[[Tensor], Tensor]) -> nn.Module:
    """A module of a function."""

    class Function(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return Function()


class Residual(nn.Module):
    """A block, flattened as most people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.norm, self.out = nn.BatchNorm2d(2), nn.Linear(84, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = (self.norm(self.b(self.a(x).relu())) + x).relu()
        return self.out(h.view(h.size(0), -1))


class Attention(nn.Module):
    """One head between a layer norm and a linear layer."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.out, self.fused = nn.LayerNorm(8), nn.Linear(24, 3), fused

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.query(h), self.key(h), self.value(h)
        if self.fused:
            found = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            found = F.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v
        return self.out((x + found).flatten(1))


READ: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "softmax at the end": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(dim=1)), FLAT),
    "softmax of channels": (lambda: nn.Softmax(dim=1), IMAGE),
    "slice": (lambda: of(lambda x: x[:, :, 1:5:2, -4:]), IMAGE),
    "split": (lambda: of(lambda x: torch.split(x, [2, 4], dim=1)[1] - x[:, :4]), FLAT),
    "chunk": (lambda: of(lambda x: torch.cat(x.chunk(3, 1)[::-1], 1)), FLAT),
    "one of a dimension": (lambda: of(lambda x: x[:, 0]), IMAGE),
    "selected": (lambda: of(lambda x: torch.index_select(x, 1, torch.tensor([0, 3, 3]))), FLAT),
    "selected by a list": (lambda: of(lambda x: x[:, :, [3, 0, -1]] - x[:, [1, 0]][:, :, 1:4]), IMAGE),
    "pad": (lambda: of(lambda x: F.pad(x, (1, 2, 0, 1), value=0.5)), IMAGE),
    "pad with less": (lambda: of(lambda x: F.pad(x, (-1, 1))), IMAGE),
    "reflect": (lambda: nn.ReflectionPad2d((1, 2, 0, 1)), IMAGE),
    "replicate": (lambda: nn.ReplicationPad2d((1, 2, 0, 1)), IMAGE),
    "circular": (lambda: nn.CircularPad2d((1, 2, 0, 1)), IMAGE),
    "conv that reflects": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), IMAGE),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), IMAGE),
    "same, even": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1), IMAGE),
    "transposed sequence": (lambda: nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1), WORDS),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "nearest to a size": (lambda: of(lambda x: F.interpolate(x, size=(10, 9))), IMAGE),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "bilinear at the corners": (lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), IMAGE),
    "bilinear down": (lambda: of(lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear")), IMAGE),
    "linear": (lambda: of(lambda x: F.interpolate(x, scale_factor=2, mode="linear")), WORDS),
    "view of size(0)": (lambda: of(lambda x: x.view(x.size(0), -1)), IMAGE),
    "reshape of shape[0]": (lambda: of(lambda x: x.reshape(x.shape[0], x.shape[1], -1)), IMAGE),
    "flatten": (nn.Flatten, IMAGE),
    "softplus": (nn.Softplus, FLAT),
    "softplus, steep": (lambda: nn.Softplus(beta=2), FLAT),
    "gelu": (nn.GELU, FLAT),
    "gelu by tanh": (lambda: nn.GELU(approximate="tanh"), FLAT),
    "elu": (lambda: nn.ELU(0.5), FLAT),
    "selu": (nn.SELU, FLAT),
    "silu": (nn.SiLU, FLAT),
    "hardswish": (nn.Hardswish, FLAT),
    "hardsigmoid": (nn.Hardsigmoid, FLAT),
    "prelu": (lambda: nn.PReLU(2, init=0.3), IMAGE),
    "power": (lambda: of(lambda x: x**2), FLAT),
    "maximum of a sequence": (lambda: nn.MaxPool1d(3, 2, 1), WORDS),
    "maximum of a sequence, rounded up": (lambda: nn.MaxPool1d(3, 2, ceil_mode=True), WORDS),
    "maximum rounded up": (lambda: nn.MaxPool2d(3, 3, 1, ceil_mode=True), IMAGE),
    "average with padding": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "average inside": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "average rounded up": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (2, 8, 6)),
    "average inside, rounded up": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 8, 6)),
    "layer norm": (lambda: nn.LayerNorm((3, 8)), WORDS),
    "residual": (Residual, IMAGE),
    "attention": (Attention, WORDS),
    "attention in one call": (lambda: Attention(fused=True), WORDS),
}  # fmt: skip

REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "sine": (lambda: of(torch.sin), FLAT, r"node 'sin' calls sin|Sin of node '.+' is not known"),
    "maximum of volumes": (lambda: nn.MaxPool3d(2), (2, 4, 4, 4), r"node '_?0' calls MaxPool3d|MaxPool.* at node '.+'"),
    "log of softmax": (lambda: nn.LogSoftmax(dim=1), FLAT, r"node '_?0' calls LogSoftmax|LogSoftmax of node '.+'"),
    "cube": (lambda: of(lambda x: x**3), FLAT, r"node 'pow_1': of powers|of powers .*got 3.0|node '.+'"),
    "gather by numbers": (lambda: of(lambda x: torch.gather(x, 1, torch.zeros(1, 2, dtype=torch.int64))), FLAT,
                          r"node 'gather' calls gather|GatherElements of node '.+' is not known"),
}  # fmt: skip


def net(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval().requires_grad_(False)


def exported(model: nn.Module, shape: tuple[int, ...], route: str) -> bytes:
    """The file of an exporter; with a free batch it is given three samples, as dynamo asks of it."""
    free = route.endswith("free batch")
    x = torch.zeros(3 if free else 1, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if route.startswith("dynamo"):
            dims = ({0: torch.export.Dim("n")},) if free else None
            program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=dims)
            return program.model_proto.SerializeToString()
        file = io.BytesIO()
        axes = {"x": {0: "n"}} if free else None
        torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], opset_version=17, dynamic_axes=axes)
        return file.getvalue()


def of_runtime(raw: bytes) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


@LONG
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("route", ROUTES)
def test_what_is_read_is_right(route: str, name: str) -> None:
    build, shape = READ[name]
    model, rng = net(build), np.random.default_rng(0)
    x = rng.normal(scale=2, size=(4, *shape)).astype(np.float32)
    if route == "traced":
        inputs = torch.from_numpy(x).double()
        graph, wanted = trace(model.double(), inputs), model(inputs).numpy()
    else:
        raw = exported(model, shape, route)
        graph, run = read_onnx(raw), of_runtime(raw)
        wanted = np.concatenate([run(one[None]) for one in x])
    got = graph(torch.from_numpy(x).double()).numpy()
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * (1 + np.abs(wanted).max()))


@LONG
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("route", ROUTES)
def test_what_is_refused_is_named(route: str, name: str) -> None:
    build, shape, message = REFUSED[name]
    model = net(build)
    raw: Any = None if route == "traced" else exported(model, shape, route)
    with pytest.raises(ValueError, match=message) as error:
        trace(model, shape) if raw is None else read_onnx(raw)
    if raw is not None:
        names = [node.name for node in onnx.load_from_string(raw).graph.node]
        assert any(f"'{node}'" in str(error.value) for node in names)


@pytest.mark.slow
def test_a_convolution_that_pads_unevenly_in_every_file() -> None:
    """The quick one of these: an even kernel, a transposed convolution, a pool rounded up, a resize."""
    parts = (
        nn.Conv2d(2, 2, 2, padding="same"), nn.MaxPool2d(2, ceil_mode=True), nn.ConvTranspose2d(2, 3, 2, stride=2),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    )  # fmt: skip
    model = net(lambda: nn.Sequential(*parts))
    x = np.random.default_rng(0).normal(size=(1, *IMAGE)).astype(np.float32)
    for route in ROUTES[1::2]:
        raw = exported(model, IMAGE, route)
        np.testing.assert_allclose(read_onnx(raw)(torch.from_numpy(x).double()).numpy(), of_runtime(raw)(x), atol=1e-5)
