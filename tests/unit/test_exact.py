"""Reluplex, MILP and branch and bound against each other and against one linear program for each ReLU pattern."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from functools import partial, partialmethod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import pgd
from robustlab.graph.time_limit import OutOfTime, time_limit
from robustlab.graph.tracing import trace
from robustlab.verification import bounds, branch_and_bound, certify, milp, reluplex, verify
from robustlab.verification.complete import domain_search as search
from robustlab.verification.complete import encode as encoding
from robustlab.verification.complete import milp as programs
from robustlab.verification.complete import reluplex as simplices
from robustlab.verification.complete import simplex as simplex_method
from robustlab.verification.complete.leaf import leaf_minimum
from robustlab.verification.complete.query import Case, Clock, label_cases
from robustlab.verification.complete.rounding import rounding_error
from robustlab.verification.complete.simplex import Simplex
from robustlab.verification.propagation.layers import interval_layers
from robustlab.verification.propagation.region import Box
from tests.unit.relu_patterns import box, exact_minimum, tiny

SOLVERS = {
    "reluplex": simplices.solve,
    "milp": programs.solve,
    "input splits": lambda *query: search.solve(*query, branching="inputs"),
    "relu splits": lambda *query: search.solve(*query, branching="sensitivity"),
}
over_solvers = pytest.mark.parametrize("name", SOLVERS)


def instance(seed: int, rows: int = 1, radius: float = 0.3) -> tuple[nn.Sequential, Case, float]:
    """A tiny net, a case and its exact minimum."""
    net = tiny((3, 4, 3, 3), seed)
    low, high = box(3, seed, radius)
    generator = torch.Generator().manual_seed(seed)
    C = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    case = Case(low, high, C, torch.randn(rows, generator=generator, dtype=torch.float64))
    return net, case, exact_minimum(net, case)


def ask(net: nn.Module, case: Case, name: str) -> tuple[str, Tensor | None]:
    def replay(points: Tensor) -> Tensor | None:
        inside = ((points >= case.low) & (points <= case.high)).all(dim=1)
        hits = ((case.margin(net(points)) <= 0) & inside).nonzero().flatten()
        return points[hits[0]] if len(hits) else None

    with torch.no_grad():
        verdict = SOLVERS[name](trace(net, (3,)), [case], replay, Clock(60.0))
    return verdict.status, verdict.witness


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 6))])
def test_both_sides_of_the_exact_minimum(seed: int) -> None:
    """Moved so that the least margin is 0.01 or −0.01: the answers must be verified and falsified."""
    net, case, least = instance(seed, rows=1 + seed % 2)
    for shift, wanted in ((0.01, "verified"), (-0.01, "falsified")):
        moved = Case(case.low, case.high, case.C, case.d - least + shift)
        for name in SOLVERS:
            status, witness = ask(net, moved, name)
            assert status == wanted, name
            assert (witness is not None) == (wanted == "falsified")


@over_solvers
def test_a_tie_is_unknown(name: str) -> None:
    """A net whose least margin is 0 and is never taken: f = relu(x) + 1e-9 on an interval that contains 0."""
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    net[0].weight.data = torch.eye(2, 3, dtype=torch.float64)
    net[0].bias.data[:] = -0.5
    net[2].weight.data[:], net[2].bias.data[:] = 0.0, 0.0
    net[2].weight.data[0, 0], net[2].bias.data[0] = 1.0, 1e-9
    low, high = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    tie = Case(low, high, torch.eye(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    if name == "input splits":  # a whole face of the box is a tie: no end within reason
        high = torch.tensor([0.5 + 1e-8, 0.0, 0.0], dtype=torch.float64)
        low = torch.tensor([0.5 - 1e-8, 0.0, 0.0], dtype=torch.float64)
        net[2].bias.data[0] = 1e-15  # the outputs are of size 1e-8 there
        tie = Case(low, high, tie.C, tie.d)
    assert ask(net, tie, name)[0] == "unknown"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_minimum_is_exact_and_in_the_sandwich(seed: int) -> None:
    """CROWN ≤ exact ≤ any point; milp.minimum against brute force."""
    net, case, least = instance(seed)
    graph = trace(net, (3,))
    proved, found, x = programs.minimum(graph, case)
    assert proved == pytest.approx(least, abs=2e-5) and found == pytest.approx(least, abs=2e-5)
    assert x is not None and float(case.margin(net(x[None]).detach())[0]) == pytest.approx(least, abs=2e-5)
    crown = float(bounds(net, Box(case.low[None], case.high[None]), case.C[None]).lower.detach() + case.d)
    assert crown <= least + 1e-9
    points = case.low + torch.rand(2000, 3, dtype=torch.float64) * (case.high - case.low)
    assert least <= float(case.margin(net(points)).min().detach()) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_certificates_agree_and_pgd_breaks_none(eps: float) -> None:
    net = tiny((4, 6, 5, 3), 1)
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = net(x).argmax(dim=1)
    answers = [method(net, x, y, norm="linf", eps=eps) for method in (reluplex, milp, branch_and_bound)]
    assert answers[0].status == answers[1].status == answers[2].status
    assert not answers[0].unknown.any()
    broken = pgd(net, x, y, norm="linf", eps=eps, steps=20, restarts=3).success
    for answer in answers:
        sure = answer.verified
        assert not bool((sure & broken).any())
        if answer.counterexample is not None:
            rows = answer.falsified
            found = answer.counterexample[rows]
            assert bool((net(found).argmax(dim=1) != y[rows]).all())
            assert float((found - x[rows]).abs().max()) <= eps + 1e-12
            assert float(found.min()) >= 0 and float(found.max()) <= 1


class Everything(nn.Module):
    """Convolution, batch norm, max-pool, a residual sum, leaky ReLU, abs and clamp."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv, self.norm = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)
            self.norm.running_mean.normal_(std=0.1)
            self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.out.weight.data *= 3

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2, stride=2, padding=1).flatten(1)
        z = z + nn.functional.leaky_relu(self.inner(z), 0.1)
        return self.out(z.abs().clamp(0.05, 0.6))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_any_piecewise_linear_graph(seed: int) -> None:
    """MILP, which rewrites everything in ReLUs, against ReLU and input splits on the relaxed operators."""
    net = Everything(seed).double().eval()
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = net(x).argmax(dim=1)
    for eps in (0.02, 0.15):
        exact = milp(net, x, y, norm="linf", eps=eps)
        assert not exact.unknown.any()
        assert reluplex(net, x, y, norm="linf", eps=eps, timeout=20).status == exact.status
        split = branch_and_bound(net, x, y, norm="linf", eps=eps, timeout=2)
        assert all(a == b or b == "unknown" for a, b in zip(exact.status, split.status, strict=True))


def test_encoding_equals_the_network() -> None:
    """The affine pieces and ReLUs, evaluated in order, give the network's outputs."""
    from robustlab.verification.complete.encode import encode

    net = Everything(0).double().eval()
    low, high = torch.zeros(16, dtype=torch.float64), torch.ones(16, dtype=torch.float64)
    system = encode(trace(net, (1, 4, 4)), low, high)
    points = torch.rand(50, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = points.numpy()
    for i in range(len(system.p)):
        before = values @ system.P[i, : values.shape[1]] + system.p[i]
        assert (before >= system.lower[i] - 1e-9).all() and (before <= system.upper[i] + 1e-9).all()
        assert not system.P[i, values.shape[1] :].any()
        values = torch.cat([torch.from_numpy(values), torch.from_numpy(before)[:, None].relu()], dim=1).numpy()
    outputs = torch.from_numpy(values @ system.O.T + system.o)
    torch.testing.assert_close(outputs, net(points.reshape(-1, 1, 4, 4)), atol=1e-10, rtol=0)


def test_tightening_is_sound_and_helps() -> None:
    """Bounds by linear programs hold what sampled points reach, and are no looser."""
    from robustlab.verification.complete.encode import encode

    net = tiny((3, 6, 6, 3), 3)
    low, high = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    loose = encode(trace(net, (3,)), low, high)
    tight = programs.tighten(loose, Clock(None))
    assert (tight.lower >= loose.lower).all() and (tight.upper <= loose.upper).all()
    assert (tight.upper - tight.lower).sum() < 0.95 * (loose.upper - loose.lower).sum()
    values = torch.rand(5000, 3, dtype=torch.float64).numpy()
    for i in range(len(loose.p)):
        before = values @ loose.P[i, : values.shape[1]] + loose.p[i]
        assert (before >= tight.lower[i]).all() and (before <= tight.upper[i]).all()
        values = torch.cat([torch.from_numpy(values), torch.from_numpy(before)[:, None].relu()], dim=1).numpy()


@pytest.mark.parametrize("method", ["reluplex", "milp", "branch_and_bound"])
def test_time_limit(method: str) -> None:
    net = tiny((12, 24, 24, 24, 3), 0)
    x = torch.full((1, 12), 0.5, dtype=torch.float64)
    y = net(x).argmax(dim=1)
    net[-1].bias.data[y] += 60.0  # hard to prove, hard to break
    answer = verify(net, x, y, eps=0.5, method=method, timeout=0.2)
    assert answer.status[0] in ("unknown", "verified", "falsified") and answer.radius.shape == (1,)


def test_float32_models_are_replayed_in_float32() -> None:
    net = tiny((4, 6, 5, 3), 1).float()
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(2))
    y = net(x).argmax(dim=1)
    for method in ("reluplex", "milp", "branch_and_bound"):
        answer = verify(net, x, y, eps=0.3, method=method)
        rows = answer.falsified
        assert bool(rows.any()) and answer.counterexample is not None
        found = answer.counterexample[rows]
        assert found.dtype == torch.float32 and bool((net(found).argmax(dim=1) != y[rows]).all())
        assert float((found.double() - x[rows].double()).abs().max()) <= 0.3


class Running(Clock):
    """A clock that runs out after so many looks."""

    def __init__(self, looks: float) -> None:
        super().__init__(None)
        self.looks = looks

    @property
    def left(self) -> float:
        self.looks -= 1
        return 1000.0 if self.looks >= 0 else 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["reluplex", "relu splits", *(pytest.param(name, marks=pytest.mark.full) for name in ("milp", "input splits"))],
)
def test_what_was_not_checked_in_time_is_never_verified(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock runs out at every place in turn. Nothing confirms the counterexample, so that none ends the search."""
    net, case, least = instance(0)
    graph, solved, skipped = trace(net, (3,)), 0, 0.0

    def counted(*args: object) -> object:
        nonlocal solved
        solved += 1
        return leaf_minimum(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "leaf_minimum", counted)
    monkeypatch.setattr(search, "descend", lambda graph, cases, **_: cases[0].low[None])  # it would take long
    for shift in (-0.01, 0.01):
        moved = Case(case.low, case.high, case.C, case.d - least + shift)
        for looks in range(200):
            clock, solved = Running(looks), 0
            verdict = SOLVERS[name](graph, [moved], lambda points: None, clock)
            skipped += verdict.details.get("leaves", 0) - solved
            out = clock.looks < 0
            if shift < 0:
                assert verdict.status in ("timeout", "unknown"), f"wrong after {looks} looks at the clock"
            elif name != "milp":  # HiGHS may find its proof before it looks at the time
                assert (verdict.status == "verified") == (not out), f"wrong after {looks} looks at the clock"
            if not out or (name == "input splits" and shift < 0 and looks == 20):  # such splits go on for long
                break
        assert not out or (name == "input splits" and shift < 0), "no run had enough time"
    assert (skipped > 0) == (name == "relu splits"), "the clock must run out at a leaf, too"


@pytest.mark.slow
@over_solvers
def test_a_solver_that_gives_up_proves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS and simplex stop at limits of their own; a safe query is then unknown, and no exception is raised."""
    net, case, least = instance(0)
    safe = Case(case.low, case.high, case.C, case.d - least + 0.01)
    nothing = SimpleNamespace(status=1, x=None, fun=None, mip_dual_bound=None)
    for solver in ("linprog", "milp"):
        monkeypatch.setattr(f"scipy.optimize.{solver}", lambda *args, **kwargs: nothing)
    monkeypatch.setattr(Simplex, "solve", partialmethod(Simplex.solve, limit=0))
    wanted = ("verified",) if name == "input splits" else ("unknown", "timeout")  # input splits ask no solver
    assert ask(net, safe, name)[0] in wanted


def test_without_memory_the_answer_is_unknown() -> None:
    net, case, least = instance(0)
    close = Case(case.low, case.high, case.C, case.d - least + 0.02)
    graph, counts = trace(net, (3,)), {}
    for memory, status in ((1e-9, "unknown"), (None, "verified")):
        verdict = search.solve(
            graph, [close], lambda points: None, Clock(60), branching="inputs", batch=64, memory=memory
        )
        assert verdict.status == status
        counts[status] = verdict.details["domains"]
    assert counts["unknown"] < counts["verified"]


def test_memory_is_asked_at_every_door() -> None:
    net, x = tiny((12, 24, 24, 3), 3), torch.full((1, 12), 0.5, dtype=torch.float64)
    for door in (partial(verify, method="branch_and_bound"), branch_and_bound):
        assert door(net, x, eps=0.05).status == ["verified"]
        assert door(net, x, eps=0.05, memory=1e-9).status == ["unknown"]
        with pytest.raises(ValueError, match="memory: want"):
            door(net, x, eps=0.05, memory=0)


def test_arguments() -> None:
    net, x = tiny((3, 4, 3), 0), torch.full((1, 3), 0.5, dtype=torch.float64)
    with pytest.raises(ValueError, match="norm: complete verifiers want 'linf', got 'l2'"):
        verify(net, x, eps=0.1, norm="l2")
    with pytest.raises(ValueError, match="method: want one of"):
        verify(net, x, eps=0.1, method="magic")
    with pytest.raises(ValueError, match="timeout"):
        verify(net, x, eps=0.1, timeout=0.0)
    with pytest.raises(ValueError, match="Smooth at node"):
        milp(nn.Sequential(net, nn.Tanh()), x, norm="linf", eps=0.1)


def test_smooth_nets_with_few_inputs_are_decided() -> None:
    """Input splits need no piecewise linearity."""
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in net.parameters():
            p.data.normal_()
    x = torch.rand(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = net(x).argmax(dim=1)
    answer = branch_and_bound(net, x, y, norm="linf", eps=0.1)
    grid = torch.linspace(-0.1, 0.1, 41, dtype=torch.float64)
    offsets = torch.cartesian_prod(grid, grid)
    for i in range(8):
        kept = bool((net((x[i] + offsets).clamp(0, 1)).argmax(dim=1) == y[i]).all())
        assert answer.status[i] == ("verified" if kept else "falsified")


def test_label_cases() -> None:
    cases = label_cases(torch.zeros(2), torch.ones(2), 1, 3)
    logits = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 1.0]])
    lost = torch.stack([case.margin(logits) <= 0 for case in cases]).any(dim=0)
    assert lost.tolist() == [True, False]


def test_on_any_device(device: torch.device) -> None:
    net = tiny((4, 6, 5, 3), 1)
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = net(x).argmax(dim=1)
    for method in ("branch_and_bound", "milp"):
        here = verify(net, x, y, eps=0.1, method=method)
        there = verify(net.to(device), x.to(device), y.to(device), eps=0.1, method=method)
        net.cpu()
        assert there.status == here.status and there.radius.device.type == device.type


def test_relu_splits_on_any_device(device: torch.device) -> None:
    net = tiny((14, 8, 6, 3), 1)
    x = torch.rand(2, 14, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    here = branch_and_bound(net, x, norm="linf", eps=0.1)
    there = branch_and_bound(net.to(device), x.to(device), norm="linf", eps=0.1)
    assert there.status == here.status


# Questions at the edge ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@over_solvers
def test_a_case_without_rows_has_a_solution(name: str) -> None:
    net, case, _ = instance(0)
    nothing = Case(case.low, case.high, torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    assert ask(net, nothing, name)[0] == "falsified"


@pytest.mark.parametrize("door", [verify, certify])
@pytest.mark.parametrize(("number", "words"), [(torch.nan, "NaN"), (torch.inf, "infinite numbers")])
def test_weights_that_are_not_finite_are_named(door: Any, number: float, words: str) -> None:
    net = tiny((3, 4, 3), 0)
    net[-1].weight.data[0, 0] = number
    with pytest.raises(ValueError, match=rf"model: want finite weights, got {words} in the weight of node '_?2'"):
        door(net, torch.full((1, 3), 0.5, dtype=torch.float64), torch.tensor([1]), eps=0.1)


@pytest.mark.slow
def test_the_first_call_imports_no_compiler() -> None:
    program = """
import sys, torch
from robustlab.verification import certify, read_onnx, verify
from tests.unit.test_read_onnx import N, network
class Twice(torch.nn.Module):
    def forward(self, x): return torch.cat([x, 2 * x], dim=1)
net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
for method in ("reluplex", "milp", "branch_and_bound"):
    verify(net, torch.rand(2, 4), eps=0.05, method=method)
for method in ("crown", "alpha_crown", "ibp"):
    certify(net, torch.rand(2, 4), eps=0.05, method=method)
    certify(Twice(), torch.rand(2, 4), eps=0.05, method=method)
read_onnx(network([N("Concat", ["x", "x"], ["y"], axis=1)], {}, (1, 4)))
maps = torch.nn.Sequential(
    torch.nn.Conv2d(1, 2, 3, stride=2, padding=1), torch.nn.BatchNorm2d(2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.ConvTranspose2d(2, 1, 2), torch.nn.Flatten(), torch.nn.Linear(9, 3),
).eval()
verify(maps, torch.rand(1, 1, 8, 8), eps=0.05)
slow = [name for name in ("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy") if name in sys.modules]
assert not slow, slow
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr


# Scales -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@over_solvers
@pytest.mark.parametrize("scale", [1e-6, 1e-9, 1e6])
@pytest.mark.parametrize("which", ["outputs", "all"])
def test_tolerances_are_relative(name: str, scale: float, which: str) -> None:
    """Outputs, or all layers, in other units: the answers stay."""
    net, case, least = instance(0)
    linear = [m for m in net if isinstance(m, nn.Linear)]
    for i, layer in enumerate(linear):
        if which == "all" or i == len(linear) - 1:
            layer.weight.data *= scale ** (1 / len(linear)) if which == "all" else scale
            layer.bias.data *= scale ** ((i + 1) / len(linear)) if which == "all" else scale
    for shift, wanted in ((0.01, "verified"), (-0.01, "falsified")):
        moved = Case(case.low, case.high, case.C, (case.d - least + shift) * scale)
        assert ask(net, moved, name)[0] == wanted, shift


@over_solvers
def test_a_tie_of_large_outputs_is_unknown(name: str) -> None:
    """A least margin of 1e-3 among outputs of 1e4 is a tie, as one of 1e-7 among outputs of 1 is."""
    net = tiny((3, 3, 3), 1)
    low, high = (torch.full((3,), 0.5 + by, dtype=torch.float64) for by in (-1e-10, 1e-10))
    C, outputs = torch.eye(1, 3, dtype=torch.float64), net((low + high)[None] / 2)[0].detach()
    for scale in (1.0, 1e4):
        tie = Case(low, high, scale * C, scale * (1e-7 * outputs[:1].abs() - outputs[:1]))
        assert ask(net, tie, name)[0] == "unknown", scale
        clear = Case(low, high, scale * C, scale * (1e-4 * outputs[:1].abs() - outputs[:1]))
        assert ask(net, clear, name)[0] == "verified", scale


# The program that runs ----------------------------------------------------------------------------------------------


def absorbing(dtype: torch.dtype) -> nn.Sequential:
    """f = (1.5, relu(x + 2²⁴) − relu(2²⁴)), whose second output is x, of which float32 keeps even numbers alone."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).to(dtype)
    for layer, weight, bias in ((0, [[1, 0]], [2**24, 2**24]), (2, [[0, 1], [0, -1]], [1.5, 0])):
        net[layer].weight.data, net[layer].bias.data = (torch.tensor(t, dtype=dtype) for t in (weight, bias))
        net[layer].weight.data = net[layer].weight.data.T
    return net


@pytest.mark.parametrize("method", ["reluplex", "milp", "branch_and_bound"])
def test_the_guarantee_is_for_the_model_that_runs(method: str) -> None:
    """On [0.9, 1.1] the function keeps 1.5 > x, the program computes 0 or 2; told by name, or unknown."""
    net, x = absorbing(torch.float32), torch.tensor([[1.0]])
    ball = torch.linspace(0.9, 1.1, 201)[:, None]
    assert len(net(ball).argmax(dim=1).unique()) == 2, "the program changes its label on the ball"
    answer = verify(net, x, torch.tensor([0]), eps=0.1, method=method, box=(0.0, 2.0))
    assert not bool(answer.verified) or answer.method == f"{method}, in exact arithmetic"
    sure = verify(absorbing(torch.float64), x.double(), torch.tensor([0]), eps=0.1, method=method, box=(0.0, 2.0))
    assert bool(sure.verified) and sure.method == method


@pytest.mark.parametrize("method", ["reluplex", "milp", "branch_and_bound"])
def test_margins_within_rounding_are_no_guarantee(method: str) -> None:
    """A margin of 1e-5 among outputs of 1 is proved in float64; in float32 rounding may take it away."""
    for dtype, wanted in ((torch.float64, "verified"), (torch.float32, "unknown")):
        net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).to(dtype)
        net[0].weight.data.fill_(1.0), net[0].bias.data.fill_(-0.5)
        net[2].weight.data.fill_(1.0), net[2].bias.data.copy_(torch.tensor([1 + 1e-5, 1.0]))
        answer = verify(net, torch.full((1, 1), 0.5, dtype=dtype), torch.tensor([0]), eps=0.1, method=method)
        assert answer.status == [wanted] and answer.method == method


class Gated(nn.Module):
    """A product, a leaky ReLU, a clamp and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x) * torch.sigmoid(self.two(x))
        return self.out(nn.functional.leaky_relu(z, 0.3) + z.clamp(-1, 2).abs())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["convolutions", "gates"])
def test_rounding_is_bounded(kind: str, seed: int) -> None:
    """What float32 computes is as near as is said; and what is said is not much more than can be."""
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.SiLU(), nn.Flatten())
    net = nn.Sequential(conv, nn.Linear(16, 3)) if kind == "convolutions" else Gated()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    shape = (1, 8, 8) if kind == "convolutions" else (6,)
    x = torch.rand(500, *shape, generator=generator)
    exact = trace(net, x[:1]).to(torch.float64)
    layers = interval_layers(exact, Box(torch.zeros(1, *shape).double(), torch.ones(1, *shape).double()))
    said = rounding_error(exact, layers, torch.float32)[0]
    seen = (net(x).double() - exact(x.double())).abs().amax(dim=0)
    assert bool((seen > 0).all() and (seen <= said).all() and (said < 0.1).all()), (seen, said)


# Time ---------------------------------------------------------------------------------------------------------------


def wide(first: nn.Module, width: int) -> tuple[nn.Sequential, Tensor]:
    """A net for which one pass of bounds takes many seconds, and an input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(first, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        return nn.Sequential(net, nn.Linear(width, 5)).double(), torch.full((1, 16), 0.5, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reluplex", "milp", "branch_and_bound"])
def test_one_bounding_call_keeps_the_time(method: str) -> None:
    net, x = wide(nn.Linear(16, 2000), 2000)
    start = time.thread_time()
    answer = verify(net, x, eps=0.3, method=method, timeout=0.5)
    assert answer.status == ["unknown"] and time.thread_time() - start < 0.5 + 1 + 1  # the net is read before


@pytest.mark.slow
def test_one_relaxation_keeps_the_time() -> None:
    """Tangents of many smooth activations are found by bisection, which takes long."""
    net, x = wide(nn.Sequential(nn.Linear(16, 300_000), nn.GELU(), nn.Unflatten(1, (300, 1000)), Mean()), 300)
    start = time.thread_time()
    answer = verify(net, x, eps=0.3, timeout=0.5)
    assert answer.status == ["unknown"] and time.thread_time() - start < 0.5 + 1 + 1


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=2)


@pytest.mark.parametrize("method", ["reluplex", "milp"])
def test_a_program_that_would_take_gigabytes_is_not_written(method: str) -> None:
    net = nn.Sequential(nn.Linear(16, 5000), nn.ReLU(), nn.Linear(5000, 3)).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net[0].weight.data.normal_()
    answer = verify(net, torch.full((1, 16), 0.5, dtype=torch.float64), eps=0.5, method=method)
    assert answer.status == ["unknown"]


@pytest.mark.parametrize("method", ["reluplex", "milp"])
def test_an_encoding_keeps_the_time(method: str) -> None:
    """Ten maps of 32 × 32 numbers are expressions of 3,072 inputs; of 32 maps they are refused before they are made."""
    x = torch.rand(1, 3, 32, 32)
    for channels, seconds in ((10, 0.3), (32, 60.0)):
        net = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024 * channels, 3)
        )
        start = time.thread_time()
        assert verify(net, x, eps=0.05, method=method, timeout=seconds).status == ["unknown"]
        assert time.thread_time() - start < 0.3 + 1


@pytest.mark.slow
def test_a_large_program_of_simplex_looks_at_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly as many ReLUs as are encoded at all: the rows and the tableau have 29 million numbers each."""
    looks: list[float] = []

    def look() -> None:
        looks.append(time.thread_time())
        if len(looks) > 80:
            raise OutOfTime

    for module in (encoding, simplices, simplex_method):
        monkeypatch.setattr(module, "tick", look, raising=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = nn.Sequential(nn.Linear(16, 1900), nn.ReLU(), nn.Linear(1900, 1900), nn.ReLU())
    net = nn.Sequential(hidden, nn.Linear(1900, 3))
    assert verify(net, torch.full((1, 16), 0.5), eps=0.5, method="reluplex").status == ["unknown"]
    assert len(looks) > 80 and np.diff(looks).max() < 1.0


def test_simplex_begins_nothing_that_it_cannot_end() -> None:
    """One solution of 1,000 equations may take longer than is left."""
    simplex = Simplex(np.eye(1000), np.full(2000, -1.0), np.full(2000, 1.0))
    simplex._refresh()
    with pytest.raises(OutOfTime), time_limit(time.monotonic() + 0.5):
        simplex._refresh()


def test_highs_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """On this query it prints lines of its own, by C's printf; what Python printed before stays."""
    net, (low, high) = tiny((10, 14, 4), 2), box(10, 2, 0.4)
    C = 1e-4 * torch.randn(1, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    print("before")
    query = Case(low, high, C, torch.zeros(1, dtype=torch.float64))
    programs.solve(trace(net, (10,)), [query], lambda points: None, Clock(60.0))
    ctypes.CDLL(None).fflush(None)
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
