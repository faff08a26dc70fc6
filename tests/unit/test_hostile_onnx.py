"""ONNX files that are broken or mean harm: a clear error with the file's name, or the right answer."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustlab.graph.read_onnx import read_onnx
from robustlab.graph.time_limit import OutOfTime, time_limit
from robustlab.graph.tracing import trace
from robustlab.verification.__main__ import main
from robustlab.verification.complete.competition import check
from tests.unit.test_read_onnx import FLAT, IMAGE, ONE, N, network, rand

onnx = pytest.importorskip("onnx")
numpy_helper = onnx.numpy_helper


def spec(inputs: int, outputs: int, claim: str) -> str:
    """A property on [−1, 1]ⁿ."""
    text = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} -1))(assert (<= X_{i} 1))\n" for i in range(inputs))
    return text + "".join(f"(declare-const Y_{i} Real)\n" for i in range(outputs)) + f"(assert {claim})"


def big() -> onnx.ModelProto:
    """relu(W·x) with weights of 4 kB, which exporters put beside the model."""
    return network([N("MatMul", ["x", "w"], ["h"]), N("Relu", ["h"], ["y"])], {"w": rand(20, 50)}, (1, 20))


def beside(folder: Path, *, location: str = "net.onnx.data") -> Path:
    """The same with its weights in a second file."""
    path = folder / "net.onnx"
    onnx.save_model(big(), str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def named(proto: onnx.ModelProto, folder: Path, **entries: str) -> Path:
    """The model with its first initializer said to be elsewhere."""
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


# Constants with a dtype of their own ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ONE)
def test_a_graph_has_one_dtype(name: str, dtype: torch.dtype) -> None:
    shape, nodes, constants = ONE[name]
    graph = read_onnx(network(nodes, constants, shape), dtype=dtype)
    for node in graph.nodes[1:]:
        floats = [v for v in vars(node.op).values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
        assert all(value.dtype == dtype for value in floats), node.name


@pytest.mark.parametrize("kinds", [("MatMul", "Neg"), ("Relu", "Neg"), ("Neg", "MatMul")], ids=" ".join)
def test_negation_is_checked(tmp_path: Path, kinds: tuple[str, str]) -> None:
    at, nodes = "x", []
    for i, kind in enumerate(kinds):
        out = "y" if i == 1 else "h"
        nodes.append(N(kind, [at, "w"] if kind == "MatMul" else [at], [out]))
        at = out
    (tmp_path / "net.onnx").write_bytes(network(nodes, {"w": np.eye(2, dtype=np.float32)}, (1, 2)).SerializeToString())
    (tmp_path / "p.vnnlib").write_text(spec(2, 2, "(<= Y_0 -1.01)"))
    assert check(tmp_path / "net.onnx", tmp_path / "p.vnnlib", timeout=20)[0] == "unsat"
    (tmp_path / "p.vnnlib").write_text(spec(2, 2, "(<= Y_0 -0.9)"))
    assert check(tmp_path / "net.onnx", tmp_path / "p.vnnlib", timeout=20)[0] == "sat"


# Data in other files ----------------------------------------------------------------------------------------------


def test_data_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the current folder is: another file of that name there is not looked at."""
    path, x = beside(tmp_path), torch.rand(3, 20, dtype=torch.float64)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "net.onnx.data").write_bytes(bytes(4000))
    monkeypatch.chdir(elsewhere)
    wanted = read_onnx(big())(x)
    torch.testing.assert_close(read_onnx(path)(x), wanted)
    torch.testing.assert_close(read_onnx(str(path))(x), wanted)
    packed = tmp_path / "net.onnx.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    torch.testing.assert_close(read_onnx(packed)(x), wanted)
    whole = big().SerializeToString()
    torch.testing.assert_close(read_onnx(whole)(x), wanted)
    torch.testing.assert_close(read_onnx(gzip.compress(whole))(x), wanted)
    below = tmp_path / "below"
    below.mkdir()
    (below / "weights").write_bytes((tmp_path / "net.onnx.data").read_bytes())
    (tmp_path / "p.vnnlib").write_text(spec(20, 50, "(<= Y_0 -1)"))
    assert check(path, tmp_path / "p.vnnlib", timeout=20)[0] == "unsat"
    torch.testing.assert_close(read_onnx(named(big(), tmp_path, location="below/weights"))(x), wanted)


def test_data_of_bytes_and_of_unloaded_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder nothing is read, not even where a file of that name is in the current folder."""
    path = beside(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="tensor 'w' is in another file: want the model's path, got its bytes"):
        read_onnx(path.read_bytes())
    with pytest.raises(ValueError, match="tensor 'w' is in another file: want its data loaded, or a path"):
        read_onnx(onnx.load(str(path), load_external_data=False))


OUTSIDE: dict[str, dict[str, str]] = {
    "above": {"location": "../secret"},
    "hidden above": {"location": "below/../../secret"},
    "absolute": {"location": "/etc/hostname"},
    "nowhere": {"location": ""},
    "missing": {"location": "nothing"},
    "a folder": {"location": "below"},
    "a link": {"location": "link"},
    "through a link": {"location": "way/secret"},
    "a pipe": {"location": "pipe"},
    "too short": {"location": "short"},
    "another length": {"location": "good", "length": "8"},
    "before the file": {"location": "good", "offset": "-4"},
    "behind the file": {"location": "good", "offset": "4"},
    "no number": {"location": "good", "offset": "many"},
    "a zero in the name": {"location": "good\0"},
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_data_elsewhere_are_refused(tmp_path: Path, case: str) -> None:
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    for name, size in (("home/good", 4000), ("home/short", 100), ("secret", 4000)):
        (tmp_path / name).write_bytes(bytes(size))
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "way").symlink_to(tmp_path)
    os.mkfifo(home / "pipe")
    with pytest.raises(ValueError, match=r"^net\.onnx: tensor 'w': want|^net\.onnx: tensor 'w': data '"):
        read_onnx(named(big(), home, **OUTSIDE[case]))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_files_of_both_exporters(tmp_path: Path, dynamo: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 4)
    ).eval()
    path, x = tmp_path / "m.onnx", torch.rand(1, 2, 6, 6)
    torch.onnx.export(net, (x,), str(path), dynamo=dynamo, **({"verbose": False} if dynamo else {}))
    assert not dynamo or (tmp_path / "m.onnx.data").exists()
    torch.testing.assert_close(read_onnx(path, dtype=torch.float32)(x), net(x), atol=1e-6, rtol=1e-5)


class Sine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
def test_what_is_not_known_is_refused_by_its_name(tmp_path: Path, dynamo: bool) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    net = nn.Sequential(nn.Linear(20, 50), Sine(), nn.Linear(50, 4)).eval()
    path, x = tmp_path / "m.onnx", torch.rand(1, 20)
    torch.onnx.export(net, (x,), str(path), dynamo=dynamo, **({"verbose": False} if dynamo else {}))
    (name,) = (node.name for node in onnx.load(path, load_external_data=False).graph.node if node.op_type == "Sin")
    with pytest.raises(
        ValueError, match=rf"^m\.onnx: model: operator Sin of node '{name}' is not known; want one of Abs"
    ):
        read_onnx(path)
    with pytest.raises(ValueError, match=r"^model: node 'sin' calls sin, which the verifiers do not know"):
        trace(net, x)


# Broken files -----------------------------------------------------------------------------------------------------


def changed(change: Callable[[Any], None]) -> bytes:
    proto = big()
    change(proto)
    return proto.SerializeToString()


def dims(*sizes: int) -> bytes:
    def change(proto: Any) -> None:
        proto.graph.initializer[0].dims[:] = sizes

    return changed(change)


def twice(proto: Any) -> None:
    proto.graph.node.append(N("Neg", ["h"], ["y"]))


def a_circle(proto: Any) -> None:
    proto.graph.node[0].input[0] = "y"


def silent(proto: Any) -> None:
    proto.graph.node.append(N("Relu", ["h"], []))


def sparse(proto: Any) -> None:
    values, places = numpy_helper.from_array(rand(1), "s"), numpy_helper.from_array(np.array([0]))
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4]))


def kind(number: int) -> Callable[[Any], None]:
    return lambda proto: setattr(proto.graph.initializer[0], "data_type", number)


def unfit(proto: Any) -> None:
    proto.graph.node.insert(0, N("Concat", ["w", "w"], ["c"], axis=7))


def odd(proto: Any) -> None:
    proto.graph.node.insert(0, N("Transpose", ["w"], ["c"], perm=[0, 1], speed=3))


def words(proto: Any) -> None:
    proto.graph.initializer.append(onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [1], [b"no"]))


def not_a_number(proto: Any) -> None:
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((20, 50), np.nan, np.float32), "w"))


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "noise": bytes(range(1, 200)),
    "cut": big().SerializeToString()[:-700],
    "gz cut": gzip.compress(big().SerializeToString())[:-200],
    "gz damaged": gzip.compress(big().SerializeToString(), mtime=0)[:200] + b"\xff" * 50,
    "gz of nothing": gzip.compress(b""),
    "tensor larger than its data": dims(20, 5000),
    "tensor smaller than its data": dims(20, 5),
    "tensor of 8 TB": dims(2**20, 2**21),
    "tensor below 0": dims(-20, -50),
    "kind 99": changed(kind(99)),
    "text": changed(words),
    "two values of one name": changed(twice),
    "a circle": changed(a_circle),
    "no output of a node": changed(silent),
    "sparse": changed(sparse),
    "constants that do not fit": changed(unfit),
    "an attribute of a constant": changed(odd),
    "NaN": changed(not_a_number),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("net.onnx.gz" if case.startswith("gz") else "net.onnx")
    path.write_bytes(BROKEN[case])
    with pytest.raises(ValueError, match=rf"^{path.name}: "):
        read_onnx(path)
    (tmp_path / "p.vnnlib").write_text(spec(20, 50, "(<= Y_0 -1)"))
    assert main([str(path), str(tmp_path / "p.vnnlib")]) == 2
    assert f"error: {path.name}: " in capsys.readouterr().err


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx", Path("/dev/zero")):
        with pytest.raises(ValueError, match=rf"^{path.name}: want a file, got"):
            read_onnx(path)


# Files that grow --------------------------------------------------------------------------------------------------

HUGE = np.array([100_000, 100_000], dtype=np.int64)
FILL = N("Add", ["x", "c"], ["y"])


def doubled(constant: bool) -> list[Any]:
    first = [N("Identity", ["k" if constant else "x"], ["d0"])]
    steps = [N("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=1) for i in range(40)]
    return [*first, *steps, N("Add", ["x", "d40"], ["y"]) if constant else N("Relu", ["d40"], ["y"])]


GROWING: dict[str, tuple[list[Any], dict[str, np.ndarray], tuple[int, ...]]] = {
    "ConstantOfShape": ([N("ConstantOfShape", ["s"], ["c"]), FILL], {"s": HUGE}, FLAT),
    "Expand": ([N("Expand", ["k", "s"], ["c"]), FILL], {"k": rand(1), "s": HUGE}, FLAT),
    "Tile": ([N("Tile", ["k", "s"], ["c"]), FILL], {"k": rand(1, 1), "s": HUGE}, FLAT),
    "Range": ([N("Range", ["a", "b", "d"], ["c"]), FILL],
              {"a": np.int64(0), "b": np.int64(10**11), "d": np.int64(1)}, FLAT),
    "Pad": ([N("Pad", ["k", "s"], ["c"]), FILL], {"k": rand(1, 1), "s": np.array([0, 0, 10**5, 10**6])}, FLAT),
    "outer product": ([N("Mul", ["k", "m"], ["c"]), FILL], {"k": rand(100_000, 1), "m": rand(1, 100_000)}, FLAT),
    "OneHot": ([N("OneHot", ["k", "s", "m"], ["c"]), FILL],
               {"k": np.zeros(3, np.int64), "s": np.int64(10**11), "m": rand(2)}, FLAT),
    "doubled constants": (doubled(True), {"k": rand(1, 6)}, FLAT),
    "doubled values": (doubled(False), {}, FLAT),
    "padding": ([N("Conv", ["x", "w"], ["y"], pads=[10**6] * 4)], {"w": rand(1, 2, 3, 3)}, IMAGE),
    "a large kernel": ([N("AveragePool", ["x"], ["y"], kernel_shape=[10**6, 10**6])], {}, IMAGE),
    "broadcasting": ([N("Reshape", ["x", "s"], ["r"]), N("Mul", ["r", "x"], ["y"])],
                     {"s": np.array([1, 200_000, 1])}, (1, 200_000)),
    "a constant beside values": ([N("Relu", ["x"], ["r"]), N("Concat", ["r", "k"], ["y"], axis=1)],
                                 {"k": rand(1, 100_000)}, (1, 100_000)),
    "the input alone": ([N("Identity", ["x"], ["y"])], {}, (1, 10**12)),
    "a long input": ([N("Identity", ["x"], ["y"])], {}, (1, 100_000)),
}  # fmt: skip
FINE = ("a constant beside values", "a long input")  # these need no more than they hold


def test_reading_keeps_the_time() -> None:
    """A limit reaches the reader, whose work grows with a file that somebody else wrote."""
    with pytest.raises(OutOfTime), time_limit(time.monotonic() - 1):
        read_onnx(network([N("Relu", ["x"], ["y"])], {}, FLAT))


@pytest.mark.slow
def test_sizes_are_known_before_memory_is_asked_for(tmp_path: Path) -> None:
    """In a process that may take 1 GB more than it has; a bomb that is computed would end it, or last for minutes."""
    for name, (nodes, constants, shape) in GROWING.items():
        (tmp_path / f"{name}.onnx").write_bytes(network(nodes, constants, shape).SerializeToString())
    zeros = gzip.compress(bytes(2**24), 9)
    (tmp_path / "gz.onnx.gz").write_bytes(zeros * 100)  # 1.6 GB in many members
    program = f"""
import resource, sys
from pathlib import Path
from robustlab.graph.read_onnx import read_onnx
import onnx.checker, onnx.reference, onnx.shape_inference
have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (have + 2**30,) * 2)
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        read_onnx(path)
        print("fine", path.stem)
    except ValueError as error:
        assert str(error).startswith(path.name + ": ") and "memory" not in str(error), error
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] == [f"fine {name}" for name in FINE]
