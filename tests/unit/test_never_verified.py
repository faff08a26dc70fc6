"""Faults are put into every place of a complete verifier in turn; where a counterexample exists, none proves a label.

Time runs out at each look at the clock, bounds become NaN or infinite at each call, solvers refuse or err. The truth is
known from one linear program for each pattern of ReLUs. Counterexamples are not confirmed, so that the search goes on
to its end and what decides is the proof alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.victim import predict
from robustlab.data import load
from robustlab.graph import time_limit
from robustlab.graph.tracing import trace
from robustlab.verification import certified_radius, certify, verify
from robustlab.verification.complete import domain_search as search
from robustlab.verification.complete import milp as programs
from robustlab.verification.complete import query
from robustlab.verification.complete import reluplex as simplices
from robustlab.verification.complete.boxes import BoxBounds
from robustlab.verification.complete.branching import empty
from robustlab.verification.complete.leaf import leaf_minimum
from robustlab.verification.complete.linear_program import proved_minimum
from robustlab.verification.complete.query import Case, Clock, Verdict
from robustlab.verification.complete.sign_tree import shown_safe
from robustlab.verification.complete.simplex import Simplex
from robustlab.verification.propagation import certify as front
from robustlab.verification.propagation import layers
from robustlab.verification.propagation.alpha_crown import optimized_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.region import Box
from tests.unit.relu_patterns import box, exact_minimum, tiny

SOLVERS = {
    "reluplex": simplices.solve,
    "milp": programs.solve,
    "input splits": lambda *given: search.solve(*given, branching="inputs"),
    "relu splits": lambda *given: search.solve(*given, branching="sensitivity"),
    "joint slopes": lambda *given: search.solve(*given, branching="babsr", alpha="joint"),
}
METHODS = ("milp", "reluplex", "branch_and_bound")
SLOW = pytest.param("joint slopes", marks=pytest.mark.full)  # bounded again at each step of each domain
over_solvers = pytest.mark.parametrize("name", [*(name for name in SOLVERS if name != "joint slopes"), SLOW])


@functools.cache
def instance(seed: int) -> tuple[nn.Sequential, Case, float]:
    """A tiny net, a case and its exact minimum."""
    net = tiny((3, 3, 3, 3), seed)
    low, high = box(3, seed, 0.3)
    generator = torch.Generator().manual_seed(seed)
    C = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    case = Case(low, high, C, torch.zeros(1, dtype=torch.float64))
    return net, case, exact_minimum(net, case)


def decide(name: str, seed: int, margin: float) -> Verdict:
    """Whether the least margin, moved to ``margin``, is positive; nothing confirms a counterexample."""
    net, case, least = instance(seed)
    moved = replace(case, d=case.d - least + margin)
    with torch.no_grad():
        return SOLVERS[name](trace(net, (3,)), [moved], lambda points: None, Clock(5.0))


@pytest.fixture(autouse=True)
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack finds nothing, and is quick at it; looking at single points ends no search either."""
    monkeypatch.setattr(search, "descend", lambda graph, cases, **_: cases[0].low[None])
    monkeypatch.setattr(search, "evolve", lambda graph, case, **_: case.low[None])
    monkeypatch.setattr(search._Search, "_look", lambda self, domains, slope: None)


def at_call(function: Callable[..., Any], number: int, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A function whose answer is changed at its call of that number; ``.calls`` counts them."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        answer = function(*args, **kwargs)
        changed.calls += 1  # type: ignore[attr-defined]
        return change(answer) if changed.calls == 1 + number else answer  # type: ignore[attr-defined]

    changed.calls = 0  # type: ignore[attr-defined]
    return changed


@contextmanager
def time_for(looks: float) -> Iterator[SimpleNamespace]:
    """A clock that stands still for so many looks, wherever they are taken, and then leaps beyond every limit."""
    clock = SimpleNamespace(seen=0)

    def monotonic() -> float:
        clock.seen += 1
        return 1e9 * max(0.0, clock.seen - looks)

    with pytest.MonkeyPatch.context() as patch:
        for module in (query, time_limit):
            patch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
        yield clock


@pytest.mark.slow
@over_solvers
def test_time_runs_out_at_every_look(name: str) -> None:
    """In the middle of a bound, too; with enough time the safe query is verified, so that the clock was what failed."""
    with time_for(np.inf) as clock:
        assert decide(name, 0, 0.05).status == "verified"
    whole = clock.seen
    for looks in range(0, whole + 5, max(1, whole // 15)):
        with time_for(looks):
            assert decide(name, 0, -0.05).status != "verified", f"after {looks} looks"
        with time_for(looks) as clock:
            verdict = decide(name, 0, 0.05)
        assert verdict.status == "verified" or clock.seen > looks, f"after {looks} looks"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_time_runs_out_at_every_look_of_verify(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label that is lost on its ball: whatever the clock does, from reading to the end, with everything in place."""
    monkeypatch.undo()
    net = tiny((3, 4, 3), 3)
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    with time_for(np.inf) as clock:
        assert verify(net, x, eps=0.3, method=method).falsified.all()
    for looks in range(clock.seen):
        with time_for(looks):
            answer = verify(net, x, eps=0.3, method=method)
        assert not answer.verified.any(), f"after {looks} looks"


@pytest.mark.slow
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["output", "hidden"])
@pytest.mark.parametrize("name", ["input splits", "relu splits"])
def test_bounds_that_are_no_numbers_close_nothing(
    name: str, place: str, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds of the margins, or of both ends of the hidden neurons, at each call."""
    module, function = (search, "optimized_bound") if place == "output" else (layers, "concretize")
    if (name, place) == ("input splits", "output"):
        function = "bound_boxes"
    original = getattr(module, function)

    def spoilt(found: Any) -> Any:
        if isinstance(found, Tensor):
            return torch.full_like(found, number)
        if isinstance(found, BoxBounds):
            return replace(found, constant=torch.full_like(found.constant, number))
        return replace(found, lower=torch.full_like(found.lower, number))

    for call in range(2):
        changed = at_call(original, call, spoilt)
        monkeypatch.setattr(module, function, changed)
        with time_for(300):
            assert decide(name, 0, -0.05).status != "verified", f"call {call}"
        assert changed.calls > call  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_incomplete_verifiers_prove_nothing_with_bounds_that_are_no_numbers(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = tiny((3, 4, 3), 3), torch.full((2, 3), 0.5, dtype=torch.float64)
    assert certify(net, x, eps=1e-3).verified.all()

    def bound(graph: object, region: Box, C: Tensor, **options: object) -> Tensor:
        return C.new_full(C.shape[:2], number)

    monkeypatch.setitem(front.METHODS, "crown", bound)
    assert not certify(net, x, eps=1e-3).verified.any()
    assert not certified_radius(net, x).verified.any()


REFUSED = SimpleNamespace(status=2, message="(HiGHS Status 2: Model error)", x=None, fun=None, mip_dual_bound=None)
WRONG = SimpleNamespace(status=2, message="The problem is infeasible.", x=None, fun=None, mip_dual_bound=None)


@pytest.mark.slow
@pytest.mark.parametrize("lie", [REFUSED, WRONG], ids=["refuses", "errs"])
@pytest.mark.parametrize("name", ["milp", "relu splits"])
def test_no_solvers_word_is_a_proof(name: str, lie: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear programs are said to have no solution, at each call and always; integer programs are refused."""
    if name == "milp":
        monkeypatch.setattr(optimize, "milp", lambda *args, **kwargs: REFUSED)
    original = optimize.linprog
    for call in (0, 1, 2, 5, None):
        changed = at_call(original, call or 0, lambda answer: lie)
        monkeypatch.setattr(optimize, "linprog", changed if call is not None else lambda *args, **kwargs: lie)
        assert decide(name, 0, -0.05).status != "verified", f"call {call}"


NONE = SimpleNamespace(status=2, message="The problem is infeasible.", x=None, fun=None, mip_dual_bound=None)
HIGH = SimpleNamespace(status=0, message="Optimal.", x=None, fun=None, mip_dual_bound=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("lie", [NONE, HIGH], ids=["no point", "a bound too high"])
@pytest.mark.parametrize("seed", range(3))
def test_no_word_of_the_integer_solver_is_a_proof(
    lie: SimpleNamespace, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever HiGHS says, linear programs of our own decide; where it is right they agree."""
    monkeypatch.setattr(optimize, "milp", lambda *args, **kwargs: lie)
    assert decide("milp", seed, -1e-4).status == "unknown"
    assert decide("milp", seed, 1e-4).status == "verified"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_tree_of_signs_on_both_sides_of_the_exact_minimum(seed: int) -> None:
    """Also with several rows, of which the least must be met together."""
    net, case, least = instance(seed)
    both = replace(case, C=torch.cat([case.C, -case.C.flip(1)]), d=torch.zeros(2, dtype=torch.float64))
    for one, at in ((case, least), (both, exact_minimum(net, both))):
        system = programs.tight_system(trace(net, (3,)), one, Clock(None))
        for margin in (-1e-4, 1e-4):
            moved = replace(one, d=one.d - at + margin)
            assert shown_safe(system, moved, Clock(None)) == (margin > 0), margin
        assert not shown_safe(system, moved, Clock(0.0))


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_simplex_proves_nothing_with_numbers_that_are_none(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each pivot in turn, the tableau and the values are NaN or infinite."""
    original, spoilt_ones = Simplex.pivot, 0
    for seed, call in itertools.product((0, 1, 2), range(6)):
        left = [call]

        def spoil(self: Simplex, row: int, column: int, left: list[int] = left) -> None:
            nonlocal spoilt_ones
            original(self, row, column)
            left[0] -= 1
            if left[0] == -1:
                self.tableau[:], self.value[:] = number, number
                spoilt_ones += 1

        monkeypatch.setattr(Simplex, "pivot", spoil)
        with np.errstate(invalid="ignore"):
            assert decide("reluplex", seed, -0.05).status != "verified", f"seed {seed}, call {call}"
    assert spoilt_ones > 6


def test_simplex_counts_small_coefficients_in_a_proof() -> None:
    """x₀ ≤ 1e12 with the coefficient 1e-11 reaches 10: too small to pivot on, too large to leave out."""
    system = Simplex(np.array([[1e-11]]), np.array([0.0, 5.0]), np.array([1e12, np.inf]))
    with pytest.raises(RuntimeError, match="rounding"):
        system.solve()
    assert not Simplex(np.array([[1e-11]]), np.array([0.0, 5.0]), np.array([1e11, np.inf])).solve()


def of_any_size(weight: float) -> nn.Sequential:
    """f₀ = 3 + (w·x − 3), f₁ = 4, through two ReLUs: the label 0 at w·x = 5 is lost below w·x = 4."""
    net = nn.Sequential(nn.Linear(20, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    net[0].weight.data[:] = torch.tensor([[weight], [-weight]], dtype=torch.float64) / 20
    net[0].bias.data = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    net[2].weight.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    net[2].bias.data = torch.tensor([3.0, 4.0], dtype=torch.float64)
    return net


@pytest.mark.parametrize("weight", [1e18, 1e16, 1e12, 1.0, 1e-8, 1e-10, 1e-13])
@pytest.mark.parametrize("method", METHODS)
def test_inputs_in_any_unit(method: str, weight: float) -> None:
    """HiGHS refuses coefficients of 1e15 and takes those of 1e-9 as 0; the answer is the same in all units."""
    net, x = of_any_size(weight), torch.full((1, 20), 5.0 / weight, dtype=torch.float64)
    for reach, status in ((0.9, "verified"), (1.1, "falsified")):
        answer = verify(net, x, eps=reach / weight, box=(0.0, 10.0 / weight), method=method)
        assert answer.status == [status], reach


def test_proved_minimum() -> None:
    """min x + y over x + y ≥ 1 in the unit square; what multipliers of no program can prove is not told."""
    one, low, high = np.ones(2), np.zeros(2), np.ones(2)
    value, point = proved_minimum(one, -one[None], -np.ones(1), low, high, 9.0)
    assert value == pytest.approx(1.0) and value <= 1.0 and point is not None and point.sum() == pytest.approx(1.0)
    assert proved_minimum(one, -one[None], np.array([-3.0]), low, high, 9.0) == (np.inf, None)
    assert proved_minimum(one, -1e16 * one[None], np.array([-3e16]), low, high, 9.0) == (None, None)
    value, _ = proved_minimum(one, -1e-10 * one[None], np.array([-1e-10]), low, 1e3 * high, 9.0)
    assert value is None or value <= 1.0  # HiGHS takes −1e-10 for 0


@pytest.mark.parametrize("seed", range(3))
def test_domains_that_hold_a_point(seed: int) -> None:
    """One batch of domains, each around a point of its own whose signs are assumed: none is empty, no bound is above
    what the net says there, and no linear program either."""
    net, generator = tiny((3, 4, 3, 3), seed), torch.Generator().manual_seed(seed)
    graph, n = trace(net, (3,)), 200
    x, far = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    low, high = torch.minimum(x, far), torch.maximum(x, far)
    C = torch.randn(n, 1, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        values = graph.values(x)
        chosen = {i: torch.rand(values[i].shape, generator=generator) < 0.7 for i in graph.relus}
        signs = {i: (values[i].sign() * chosen[i]).to(torch.int8) for i in graph.relus}
        margin = (C @ values[-1][:, :, None])[:, 0, 0]
        known = layer_bounds(graph, Box(low, high), BoundOptions(), splits=signs)
    assert not empty({"case": torch.arange(n)}, graph, known).any()
    found = optimized_bound(graph, Box(low, high), C, known, steps=10, splits=signs).lower[:, 0]
    assert (found <= margin + 1e-9).all()
    for i in range(0, n, 20):  # all signs, where the net is linear
        region, own = Box(low[[i]], high[[i]]), {j: values[j][[i]].sign().to(torch.int8) for j in graph.relus}
        with torch.no_grad():
            there = layer_bounds(graph, region, BoundOptions(), splits=own)
        value, _ = leaf_minimum(graph, there, region, own, C[i], torch.zeros(1, dtype=torch.float64))
        assert value is not None and found[i] - 1e-6 <= value <= margin[i] + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.full)])
def test_neither_order_nor_company_nor_threads_matter(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of the zoo at radii on both sides of its images' own: all in one call, and one by one, backwards."""
    monkeypatch.undo()
    model = zoo.load("mnist_mlp")
    data = load(zoo.recipe("mnist_mlp").dataset)
    right = (predict(model, data.x_test) == data.y_test).nonzero().flatten()[[0, 3, 7, 7]]
    x, y = data.x_test[right], data.y_test[right]
    eps = torch.tensor([0.05, 0.11, 0.17, 0.1665])  # the third image's own radius is 0.1642
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        answers = [verify(model, x, y, eps=eps).status]
        for order in ([3, 2, 1, 0], [2, 3]):
            single = {i: verify(model, x[[i]], y[[i]], eps=float(eps[i])).status[0] for i in order}
            answers.append([single.get(i, answers[0][i]) for i in range(4)])
    finally:
        torch.set_num_threads(before)
    assert all(status == ["verified", "falsified", "falsified", "falsified"] for status in answers)
