"""What is a model: whatever real ones return, files of ONNX and graphs, wrappers that cast, two threads on one."""

from __future__ import annotations

import copy
import sys
import threading
import time
import types
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustlab.attacker.domain import Tokens
from robustlab.attacker.losses import ATTACKER_LOSSES
from robustlab.attacker.victim import Victim, accuracy, predict
from robustlab.attacks import ddn, deepfool, pgd, square
from robustlab.evaluation import autoattack, evaluate
from robustlab.graph.read_onnx import read_onnx
from robustlab.graph.tracing import trace
from robustlab.models import modes
from tests.suite.cases import noise_box
from tests.suite.models import IMAGE, Then, convnet
from tests.suite.other_inputs import VOCABULARY, Words, net, sentences
from tests.suite.test_no_side_effects import assert_unchanged, snapshot

Named = namedtuple("Named", "logits features")


def problem(dtype: torch.dtype = torch.float64, n: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = convnet(dtype=dtype), noise_box(n, IMAGE, dtype)
    return model, x, predict(model, x)


def assert_same(ours: Any, plain: Any) -> None:
    for field in ("success", "queries", "gradients", "first_success"):
        assert torch.equal(getattr(ours, field), getattr(plain, field)), field
    torch.testing.assert_close(ours.x_adv, plain.x_adv)


# What models return --------------------------------------------------------------------------------------------------

RETURNS: dict[str, tuple[Callable[[Tensor], Any], dict[str, Any]]] = {
    "tuple": (lambda z: (z, z.exp()), {}),
    "list": (lambda z: [z], {}),
    "dict": (lambda z: {"loss": z.sum(), "logits": z}, {}),
    "ordered dict": (lambda z: OrderedDict(features=z.exp(), logits=z), {}),
    "object": (lambda z: types.SimpleNamespace(loss=None, logits=z), {}),
    "named tuple": (lambda z: Named(logits=z, features=None), {}),
    "named tuple, not its first": (lambda z: namedtuple("Aux", "aux logits")(z.exp(), z), {}),
    "function of a dict": (lambda z: {"out": z, "aux": -z}, {"logits": lambda out: out["out"]}),
    "function of a pair": (lambda z: (-z, z), {"logits": lambda out: out[1]}),
    "probabilities in a tuple": (lambda z: (z.softmax(dim=1),), {"output": "probs"}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RETURNS)
def test_what_models_return(name: str) -> None:
    model, x, y = problem()
    says, how = RETURNS[name]
    for attack, settings in ((pgd, {"eps": 0.1, "steps": 4}), (deepfool, {}), (square, {"eps": 0.1, "queries": 20})):
        plain = attack(model, x, y, **settings)
        ours = attack(Victim(Then(model, says), **how), x, y, **settings)
        assert torch.equal(ours.success, plain.success) and int(plain.success.sum()) > 0
        if "output" not in how:  # the losses' zeros and margins differ
            torch.testing.assert_close(ours.x_adv, plain.x_adv, rtol=0, atol=1e-6)
    if not how:
        assert torch.equal(predict(Then(model, says), x), y)


@pytest.mark.parametrize(
    ("says", "seen"),
    [
        (lambda z: None, "NoneType"),
        (lambda z: (), "tuple"),
        (lambda z: ((z,),), "tuple"),
        (lambda z: {"out": z}, "dict"),
        (lambda z: types.SimpleNamespace(scores=z), "SimpleNamespace"),
        (lambda z: z.detach().numpy(), "ndarray"),
    ],
)
def test_returns_that_nobody_can_read(says: Callable[[Tensor], Any], seen: str) -> None:
    model, x, y = problem()
    with pytest.raises(ValueError, match=f"model: want a tensor of scores, got {seen}; say logits=, a function of it"):
        pgd(Then(model, says), x, y, eps=0.1)
    with pytest.raises(ValueError, match="model: want a tensor of scores, got str; say logits="):
        pgd(Victim(model, logits=lambda out: "z"), x, y, eps=0.1)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="logits: want a function of what the model returns, got str"):
        Victim(model, logits="logits")  # type: ignore[arg-type]


def test_a_module_that_reads_the_answer_is_held_too() -> None:
    model, x, y = problem()
    reader = nn.Sequential(nn.Dropout(0.9), nn.Linear(3, 3).double()).train()
    before = snapshot(reader)
    with Victim(model, logits=reader).session(x, y) as session:
        torch.testing.assert_close(session.clean, reader[1](model(x)))
        assert not reader.training and not reader[1].weight.requires_grad
    assert_unchanged(before, reader)


# Files and graphs ----------------------------------------------------------------------------------------------------


def exported(model: nn.Module, x: Tensor, path: Path, dynamo: bool) -> Path:
    """Written by one of PyTorch's two exporters."""
    pytest.importorskip("onnx")
    more: dict[str, Any] = {"dynamo": False}
    if dynamo:
        pytest.importorskip("onnxscript")
        more = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(model, (x[:1],), path, **more)
    return path


@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["old", "new"])
def test_a_file_of_onnx_is_the_model(tmp_path: Path, dynamo: bool) -> None:
    model, x, _ = problem(torch.float32)
    path = exported(model, x, tmp_path / "net.onnx", dynamo)
    for dtype in (torch.float32, torch.float64):
        model, x = model.to(dtype), x.to(dtype)
        y = predict(model, x)
        for file in (path, str(path)):
            ours, plain = (pgd(victim, x, y, eps=0.1, steps=10) for victim in (file, model))
            assert torch.equal(ours.success, plain.success) and torch.equal(ours.queries, plain.queries)
            assert int(ours.success.sum()) > 0 and ours.x_adv.dtype == dtype
        ours, plain = (square(Victim(v, access="soft", budget=20), x, y, eps=0.1) for v in (path, model))
        assert torch.equal(ours.success, plain.success) and torch.equal(ours.queries, plain.queries)
        ours, plain = (ddn(v, x, y, steps=10) for v in (read_onnx(path, dtype=torch.float32), model))
        assert torch.equal(ours.success, plain.success)
        assert accuracy(path, x, y) == 1.0  # type: ignore[arg-type]
    curve = evaluate(str(path), x, y, attack=pgd, eps=[0.05, 0.1], steps=3)  # type: ignore[arg-type]
    assert torch.equal(curve.accuracy, evaluate(model, x, y, attack=pgd, eps=[0.05, 0.1], steps=3).accuracy)
    reports = [autoattack(v, x, y, norm="linf", eps=0.1, attacks=["apgd-ce"]) for v in (str(path), model)]  # type: ignore[arg-type]
    assert torch.equal(reports[0].robust, reports[1].robust)
    with pytest.raises(ValueError, match=r"x: want samples of shape \(2, 4, 4\), got \(2, 4, 3\)"):
        pgd(path, x[..., :3], eps=0.1)


def test_a_graph_follows_the_dtype_of_x() -> None:
    """A graph that was traced in one precision is asked in another, and is not changed."""
    model, x, y = problem()
    graph = trace(model, IMAGE)
    before = [value for node in graph.nodes[1:] for value in vars(node.op).values() if isinstance(value, Tensor)]
    victim = Victim(graph)
    assert_same(pgd(victim, x, y, eps=0.1, steps=4), pgd(model, x, y, eps=0.1, steps=4))
    single = pgd(victim, x.float(), y, eps=0.1, steps=4)
    assert single.x_adv.dtype == torch.float32
    assert torch.equal(single.success, pgd(convnet(dtype=torch.float32), x.float(), y, eps=0.1, steps=4).success)
    assert all(value.dtype == torch.float64 for value in before if value.is_floating_point())


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"model: want a model or the path of an ONNX file, got 'net\.onnx', which is no"
    ):
        pgd("net.onnx", torch.rand(1, 2), eps=0.1)
    (tmp_path / "net.onnx").write_text("nothing")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="ONNX files are read by the package onnx: python -m pip install onnx"):
        Victim(tmp_path / "net.onnx")


# Dtypes --------------------------------------------------------------------------------------------------------------


class Casting(nn.Module):
    """A model of another dtype than its caller's."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, back: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype, self.back = model.to(dtype), dtype, back

    def forward(self, x: Tensor) -> Tensor:
        answer = self.model(x.to(self.dtype))
        return answer if self.back is None else answer.to(self.back)


@pytest.mark.parametrize("outside", [torch.float32, torch.float64])
@pytest.mark.parametrize("inside", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("back", [True, False])
def test_a_wrapper_that_casts(inside: torch.dtype, outside: torch.dtype, back: bool) -> None:
    """The attack computes in the dtype of x, whatever happens inside, and its successes are true."""
    model = Casting(convnet(), inside, outside if back else None)
    x = noise_box(8, IMAGE, outside)
    y = predict(model, x)
    for attack, settings in (
        (pgd, {"eps": 0.3, "steps": 5}),
        (ddn, {"steps": 10}),
        (square, {"eps": 0.3, "queries": 9}),
    ):
        result = attack(model, x, y, **settings)
        assert result.x_adv.dtype == outside and int(result.success.sum()) > 0
        assert torch.equal(predict(model, result.x_adv) != y, result.success)
    curve = evaluate(model, x, y, attack=pgd, eps=[0.3], steps=2)
    assert curve.accuracy.numel() > 0


def test_half_precision_beside_tokens_goes_up() -> None:
    """Tokens have no dtype that tells in which the attack computes."""
    model = Then(net(Words), lambda z: z.half())
    with Victim(model, domain=Tokens(VOCABULARY)).session(sentences(3), domain=Tokens) as session:
        assert session.clean.dtype == torch.float32


def test_a_dtype_that_the_model_cannot_take() -> None:
    model, x, y = problem()
    with pytest.raises(TypeError, match=r"x: want the model's dtype torch.float64, got torch.float32; say x.to\("):
        pgd(model, x.float(), y, eps=0.1)
    with pytest.raises(TypeError, match=r"x: want the model's dtype torch.float32, got torch.float64; say x.to\("):
        pgd(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), x, y, eps=0.1)


def test_a_wrapper_that_casts_may_fail_for_another_reason() -> None:
    """Its words are not replaced by some about dtypes; a layout that it cannot bear is still seen as such."""
    wrong = Casting(nn.Sequential(nn.Flatten(), nn.Linear(31, 3)), torch.float32)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pgd(wrong, noise_box(3, IMAGE, torch.float64), eps=0.1)

    class ByView(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(-1, 64))

    result = pgd(Casting(ByView(), torch.bfloat16), noise_box(6, IMAGE, torch.float32), eps=0.3, steps=3)
    assert bool(result.success.any())


# Callers and wrappers ------------------------------------------------------------------------------------------------


def test_callers_in_inference_mode() -> None:
    """A model that was made there has no gradients: it is good for black-box attacks, and a copy for others."""
    model, x, y = problem()
    plain = pgd(model, x, y, eps=0.1, steps=4)
    with torch.inference_mode():
        made, points = convnet(), noise_box(8, IMAGE, torch.float64)
        assert points.is_inference()
        assert_same(pgd(model, points, y.clone(), eps=0.1, steps=4), plain)
    assert_same(square(made, points, y, eps=0.1, queries=9), square(model, x, y, eps=0.1, queries=9))
    made.train()
    before = snapshot(made, points)
    with pytest.raises(ValueError, match=r"model: want one that was made outside torch.inference_mode"):
        pgd(made, x, y, eps=0.1)
    assert_unchanged(before, made, points)
    assert_same(pgd(copy.deepcopy(made), points, y, eps=0.1, steps=4), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compiled"]
)
def test_models_in_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x, y = problem()
    plain = pgd(model, x, y, eps=0.1, steps=4)
    model.train()
    wrapped = wrap(model)
    before = snapshot(wrapped, x, y)
    assert_same(pgd(wrapped, x, y, eps=0.1, steps=4), plain)
    assert_unchanged(before, wrapped, x, y)


# Models without a gradient, or of one size ------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, model: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.model, x, use_reentrant=self.reentrant)


def test_checkpoints() -> None:
    """Reentrant ones let no input gradient pass; the others give what the model alone gives."""
    model, x, y = problem()
    assert_same(pgd(Checkpointed(model, False), x, y, eps=0.1, steps=4), pgd(model, x, y, eps=0.1, steps=4))
    with pytest.raises(ValueError, match=r"^model: want checkpoints that let input gradients pass, got .*; say False"):
        pgd(Checkpointed(model, True), x, y, eps=0.1, steps=4)
    queries = {"eps": 0.1, "queries": 9}
    assert_same(square(Checkpointed(model, True), x, y, **queries), square(model, x, y, **queries))


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, that it has newer ways
def test_quantized_modules() -> None:
    """They have no gradients, which an error says; attacks on scores work."""
    _, x, y = problem(torch.float32)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    small = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(
        ValueError, match=r"^model: want an output that is differentiable in its input, got one that is"
    ):
        pgd(small, x, y, eps=0.1, steps=2)
    assert len(square(small, x, y, eps=0.1, queries=5)) == len(x)


def test_an_operator_without_a_derivative() -> None:
    class Zeta(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return torch.special.zeta(points.flatten(1)[:, :3] + 2, torch.ones_like(points.flatten(1)[:, :3]))

    with pytest.raises(ValueError, match=r"^model: want operators that have a derivative, got one without; attacks on"):
        pgd(Zeta(), torch.rand(3, 2, 2, 2), eps=0.1, steps=2)


@pytest.mark.slow
def test_exported_modules() -> None:
    """Of one batch size: an error that says how to export for all; with that, the results of the model itself."""
    model, x, y = problem()
    fixed = torch.export.export(model, (x,))
    with pytest.raises(TypeError, match=r"^model: want an nn.Module, .* got ExportedProgram; say model.module\(\)"):
        pgd(fixed, x, y, eps=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^model: want one that takes any number of samples, got .*dynamic_shapes="):
        pgd(fixed.module(), x[:4], y[:4], eps=0.1, steps=4)
    free = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    assert_same(pgd(free, x, y, eps=0.1, steps=4), pgd(model, x, y, eps=0.1, steps=4))


# Threads -------------------------------------------------------------------------------------------------------------


def test_two_threads_on_one_model() -> None:
    """Different attacks at once: results as one after the other, model, buffers and global randomness as before."""
    model, x, y = problem()
    model.train()  # held in evaluation mode by both
    next(iter(model.parameters())).requires_grad_(False)
    jobs: list[Callable[[], Any]] = [
        lambda: pgd(model, x, y, eps=0.05, steps=20, restarts=2),
        lambda: square(model, x, y, eps=0.05, queries=40),
        lambda: ddn(model, x, y, steps=20),
        lambda: deepfool(model, x, y),
    ]
    alone, before = [job() for job in jobs], snapshot(model, x, y)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            for ours, plain in zip(pool.map(lambda job: job(), jobs), alone, strict=True):
                assert_same(ours, plain)
    assert_unchanged(before, model, x, y)


class Asked(nn.Module):
    """Says whether it was ever asked while nobody held it; gives other threads a moment when its mode is set."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.loose = nn.Linear(3, 3), False

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":
            time.sleep(1e-6)
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        self.loose |= self.training or self.layer.training or self.layer.weight.requires_grad
        return self.layer(x)


def stress(seconds: float = 0.3) -> list[str]:
    """What goes wrong where four threads open and close sessions on one model as fast as they can."""
    model, x, wrong, stop = Asked().train(), torch.rand(2, 3), list[str](), threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                with Victim(model).session(x) as session:
                    session.gradient(x, session.everyone(), ATTACKER_LOSSES["ce"])
        except Exception as error:
            wrong.append(repr(error))

    state = torch.get_rng_state()
    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        stop.wait(seconds)
        stop.set()
    finally:
        for thread in threads:
            thread.join()
    if model.loose:
        wrong.append("asked while it was not held")
    if not all(module.training for module in model.modules()) or not all(p.requires_grad for p in model.parameters()):
        wrong.append("not put back")
    if modes._HELD:
        wrong.append("still held")
    if not torch.equal(torch.get_rng_state(), state):
        wrong.append("random state")
    modes._HELD.clear()
    return wrong


def test_stress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes wrong; without the lock, and without the counts, it does."""
    assert stress() == []
    with monkeypatch.context() as patch:
        patch.setattr(modes, "_LOCK", nullcontext())
        assert any(stress() for _ in range(20)), "the test is too gentle"
    with monkeypatch.context() as patch:
        patch.setattr("robustlab.attacker.victim.evaluating", without_counts)
        assert any(stress() for _ in range(20)), "the test is too gentle"


@contextmanager
def without_counts(model: nn.Module, *_: Any, **__: Any) -> Iterator[None]:
    """As one would write it."""
    was = [(module, module.training) for module in model.modules()], [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in was[0]:
            module.training = training
        for p, wanted in was[1]:
            p.requires_grad_(wanted)
