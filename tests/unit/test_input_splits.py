"""Input splits: their parts against brute force and a solver, and whole searches on stand-ins for public instances."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from robustlab.graph.affine import Linear
from robustlab.graph.conv import Conv
from robustlab.graph.folding import folded
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.graph.tracing import trace
from robustlab.verification.complete import domain_search as search
from robustlab.verification.complete.boxes import bound_boxes, clipped, effects, least, mixed
from robustlab.verification.complete.common_boxes import common_box
from robustlab.verification.complete.descent import descend, evolve
from robustlab.verification.complete.query import Case, Clock, Verdict
from robustlab.verification.complete.refining import backward_cost, refining_costs, refining_pays, splits_saved
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.forward import ForwardLines
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.region import Box
from tests.unit.test_exact import Everything


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(widths: tuple[int, ...], seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A random net in float64, without a last activation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


def lattice(rows: int, terms: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """max over rows of min over terms of affine functions of two inputs, as a ReLU net of pairwise minima and maxima,
    and the functions' slopes (rows, terms, 2) and constants (rows, terms)."""
    slope, shift = rand(rows, terms, 2, seed=seed) * 2 - 1, rand(rows, terms, seed=seed + 1) - 0.5

    class Lattice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.shift = nn.Parameter(slope, requires_grad=False), nn.Parameter(shift, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            def tree(parts: list[Tensor], sign: float) -> Tensor:
                while len(parts) > 1:
                    joined = [a + sign * (sign * (b - a)).relu() for a, b in zip(parts[::2], parts[1::2], strict=False)]
                    parts = joined + parts[len(parts) // 2 * 2 :]
                return parts[0]

            values = nn.functional.linear(x, self.slope.flatten(0, 1), self.shift.flatten())
            each = [[values[:, i * terms + j : i * terms + j + 1] for j in range(terms)] for i in range(rows)]
            return tree([tree(row, -1.0) for row in each], 1.0)

    return Lattice(), slope, shift


def least_of_lattice(slope: Tensor, shift: Tensor) -> float:
    """Its minimum on [−1, 1]²: for every choice of one function per row, a linear program."""
    found = []
    for choice in itertools.product(range(slope.shape[1]), repeat=slope.shape[0]):
        rows, constants = slope[range(len(choice)), choice], shift[range(len(choice)), choice]
        A = np.hstack([rows.numpy(), -np.ones((len(choice), 1))])
        answer = linprog([0, 0, 1], A, -constants.numpy(), bounds=[(-1, 1), (-1, 1), (None, None)])
        found.append(answer.fun)
    return min(found)


def ask(graph: Graph, case: Case, seconds: float = 60.0, **options: Any) -> Verdict:
    """Input splits with a replay on the graph itself."""

    def replay(points: Tensor) -> Tensor | None:
        with torch.no_grad():
            hits = case.margin(graph(points.reshape(-1, *graph.input_shape)).flatten(1)) <= 0
        return points[hits][0] if bool(hits.any()) else None

    return search.solve(graph, [case], replay, Clock(seconds), branching="inputs", **options)


def cube(n: int, C: Tensor, d: Tensor) -> Case:
    return Case(-torch.ones(n).double(), torch.ones(n).double(), C, d)


class Many(nn.Module):
    """Layers that fold, a scale that has two users and one before a padded convolution, which do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.a, self.b, self.c = nn.Linear(48, 6), nn.Linear(6, 5), nn.Linear(5, 4, bias=False)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.conv(x * 2 - 1)).relu().flatten(1)
        y = self.b(self.a(z) * 3 + 0.5) - 0.25
        return self.c(y) + (y * 2).relu()[:, :4]


def test_folding_keeps_the_function() -> None:
    torch.manual_seed(0)
    net = Many().double().eval().requires_grad_(False)
    graph = trace(net, (2, 4, 4))
    once, x = folded(graph), rand(20, 2, 4, 4)
    torch.testing.assert_close(once(x), net(x), rtol=1e-12, atol=1e-12)
    assert [type(node.op).__name__ for node in once.nodes[1:]].count("ScaleShift") == 3, "those of x, and y * 2"
    assert sum(isinstance(node.op, Linear) for node in once.nodes) == 2, "a and b are one"
    assert sum(isinstance(node.op, Conv) for node in once.nodes) == 1
    assert len(folded(once).nodes) == len(once.nodes)


@pytest.mark.parametrize("seed", range(3))
def test_lines_that_go_forward_hold(seed: int) -> None:
    """At every node, at random points of boxes, some of whose sides do not vary; never looser than intervals alone."""
    torch.manual_seed(seed)
    graph = (
        trace(Everything(seed).double().eval(), (1, 4, 4)) if seed < 2 else trace(dense((4, 6, 5, 3), 1, nn.Tanh), (4,))
    )
    n, shape = 30, graph.input_shape
    center, radius = rand(n, *shape, seed=seed), 0.1 * rand(n, *shape, seed=seed + 1) * (rand(*shape, seed=7) < 0.5)
    box = Box(center - radius, center + radius)
    carried = ForwardLines(graph, box.hull)
    options = BoundOptions(intermediate="interval")
    with torch.no_grad():
        plain, with_lines = layer_bounds(graph, box, options), layer_bounds(graph, box, options, carried=carried)
        for share in rand(20, n, *shape, seed=seed + 2):
            t = 2 * share.flatten(1)[:, carried.varying] - 1
            values = graph.values(center + radius * (2 * share - 1))
            for i, value in enumerate(values):
                low, high = (end[i][:, 0] + torch.einsum("nv,nv...->n...", t, end[i][:, 1:]) for end in
                             (carried.lower, carried.upper))  # fmt: skip
                assert (low <= value + 1e-9).all() and (value <= high + 1e-9).all(), graph.nodes[i].name
    for before, after in zip(plain.bounds, with_lines.bounds, strict=True):
        assert (after.lower >= before.lower - 1e-12).all() and (after.upper <= before.upper + 1e-12).all()
    if seed == 2:  # past max-pooling, a box is all that goes forward
        assert float((plain.bounds[-1].width - with_lines.bounds[-1].width).min()) > 0


@pytest.mark.parametrize("seed", range(5))
def test_mixed_rows_against_a_solver(seed: int) -> None:
    """The minimum over a box of the maximum of linear functions, by duality the best that weights can show."""
    D, k, n = 6, 3, 4
    coef, constant = 2 * rand(D, k, n, seed=seed) - 1, rand(D, k, seed=seed + 1) - 0.5
    low = -rand(D, n, seed=seed + 2)
    high = low + rand(D, n, seed=seed + 3)
    weights, value = mixed(coef, constant, low, high)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(D).double())
    joint = (weights[:, None] @ coef), (weights * constant).sum(1, keepdim=True)
    torch.testing.assert_close(least(*joint, low, high)[:, 0], value)
    alone = least(coef, constant, low, high).amax(1)
    exact = []
    for i in range(D):
        A = np.hstack([coef[i].numpy(), -np.ones((k, 1))])
        ends = [*zip(low[i].tolist(), high[i].tolist(), strict=True), (None, None)]
        exact.append(linprog([0] * n + [1], A, -constant[i].numpy(), bounds=ends).fun)
    best = torch.tensor(exact, dtype=torch.float64)
    assert (value >= alone).all() and (value <= best + 1e-9).all()
    assert float((value - alone).sum()) >= 0.8 * float((best - alone).sum()), "most of what there is to gain"


@pytest.mark.parametrize("seed", range(5))
def test_clipping_keeps_every_point_that_counts(seed: int) -> None:
    D, k, n = 50, 3, 3
    coef, constant = 2 * rand(D, k, n, seed=seed) - 1, rand(D, k, seed=seed + 1) - 0.5
    coef[:, :, 0] *= (rand(D, k, seed=9) < 0.7).double()
    low = -rand(D, n, seed=seed + 2)
    high = low + rand(D, n, seed=seed + 3)
    wanted = 0.1 * rand(D, seed=seed + 4)
    at, to = clipped(coef, constant, low, high, wanted)
    x = low + rand(400, D, n, seed=seed + 5) * (high - low)
    value = constant + (coef @ x[..., None])[..., 0]
    counts = (value <= wanted[:, None]).all(dim=2)
    inside = ((at - 1e-12 <= x) & (x <= to + 1e-12)).all(dim=2)
    assert inside[counts].all()
    assert (at >= low).all() and (to <= high).all()
    assert float((to - at).clamp_min(0).prod(1).mean() / (high - low).prod(1).mean()) < 0.8, "and cuts off others"


@pytest.mark.slow
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_bounds_that_are_no_numbers_close_no_box(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as coefficients nor as constants: an unsafe box stays open until the time is over."""
    graph = trace(dense((2, 4, 1), 0), (2,))
    original = search.bound_boxes
    for name in ("coef", "constant"):

        def spoilt(*given: Any, name: str = name, **options: Any) -> Any:
            found = original(*given, **options)
            getattr(found, name)[:] = number
            return found

        monkeypatch.setattr(search, "bound_boxes", spoilt)
        verdict = search.solve(graph, [cube(2, torch.ones(1, 1).double(), torch.full((1,), -9.0).double())],
                               lambda points: None, Clock(0.3), branching="inputs")  # fmt: skip
        assert verdict.status != "verified"


def test_a_hidden_bound_that_is_no_number_keeps_its_own_box_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two boxes that are safe, whichever has such a bound; the box that both cases share, for both."""
    graph = trace(dense((2, 4, 1), 0), (2,))
    original, one = search.bound_boxes, torch.ones(1, 1).double()
    monkeypatch.setattr(search, "refining_costs", lambda *_: 1.0)
    for lows in ((0.0, 0.5), (0.0, 0.0)):
        for spoilt_low in (0.0, 0.5, None):

            def spoilt(*given: Any, at: float | None = spoilt_low, **options: Any) -> Any:
                found = original(*given, **options)
                if at is not None:
                    rows = found.layers.bounds[0].lower[:, 0] == at
                    found.layers.bounds[1].lower[rows] = torch.nan
                return found

            monkeypatch.setattr(search, "bound_boxes", spoilt)
            ends = [torch.full((2,), low).double() for low in lows]
            cases = [Case(low, low + 0.25, one, torch.full((1,), 100.0).double()) for low in ends]
            verdict = search.solve(graph, cases, lambda points: None, Clock(0.3), branching="inputs")
            assert (verdict.status == "verified") is (spoilt_low not in lows)


def test_the_side_that_helps_most() -> None:
    """Of a net whose margin bends along one input only, that input is cut, though the bound is steeper in another."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double().requires_grad_(False)
    net[0].weight[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    net[0].bias[:] = torch.tensor([0.0, 0.0, 5.0])
    net[2].weight[:] = torch.tensor([[-1.0, -1.0, 1.0]])
    graph, C = trace(net, (2,)), torch.ones(1, 1, 1).double()
    box = Box(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
    found = bound_boxes(graph, box, C, torch.zeros(1, 1).double(), refine=True)
    assert float(found.coef[0, 0, 1]) == 1.0 and abs(float(found.coef[0, 0, 0])) < 1e-12
    by_slope, by_bend = effects(graph, found, torch.ones(1, 1).double())[0].flip(0).tolist()
    assert by_bend > by_slope


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "terms", "seed"), [(3, 3, 0), (4, 4, 2), (2, 6, 4)])
def test_lattices(rows: int, terms: int, seed: int) -> None:
    """Minima and maxima of affine functions of two inputs, on both sides of the exact minimum."""
    net, slope, shift = lattice(rows, terms, seed)
    graph, one = trace(net.double(), (2,)), torch.ones(1, 1).double()
    exact = least_of_lattice(slope, shift)
    x = 2 * rand(500, 2, seed=seed) - 1
    values = (torch.einsum("rtn,xn->xrt", slope, x) + shift).amin(2).amax(1)
    torch.testing.assert_close(graph(x)[:, 0], values)
    for gap, status in ((1e-3, "verified"), (-1e-3, "falsified")):
        assert ask(graph, cube(2, one, torch.tensor([gap - exact]).double())).status == status


@pytest.mark.slow
@pytest.mark.parametrize(("cheap", "refined"), [(0.0, None), (float("inf"), True)])
def test_how_boxes_are_bounded_changes_no_answer(
    cheap: float, refined: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linear bounds that go forward alone, where backward passes cost too much, or with them."""
    net, slope, shift = lattice(4, 4, 0)
    graph, one = trace(net.double(), (2,)), torch.ones(1, 1).double()
    monkeypatch.setattr(search, "CHEAP", cheap)
    modes, original = [], search.bound_boxes

    def watched(*given: Any, refine: bool) -> Any:
        modes.append(refine)
        return original(*given, refine=refine)

    monkeypatch.setattr(search, "bound_boxes", watched)
    x = 2 * rand(20000, 2, seed=3) - 1
    lowest = float((torch.einsum("rtn,xn->xrt", slope, x) + shift).amin(2).amax(1).min())
    assert ask(graph, cube(2, one, torch.tensor([0.05 - lowest]).double())).status == "verified"
    assert modes[-1] is refined or (refined is None and not all(modes))
    assert ask(graph, cube(2, one, torch.tensor([-1e-6 - lowest]).double())).status == "falsified"


def labels(graph: Graph, low: Tensor, high: Tensor, y: int, room: float) -> list[Case]:
    """Cases that share their box: label y loses to another, by less than ``room`` at least."""
    eye = torch.eye(graph.output_shape[0]).double()
    return [Case(low, high, (eye[y] - eye[k])[None], torch.tensor([room]).double()) for k in range(len(eye)) if k != y]


def test_cases_that_share_a_box_share_its_bounds() -> None:
    """Hidden layers are bounded once for them, and every case gets the bounds that it gets alone."""
    graph = trace(dense((3, 8, 8, 4), 0), (3,))
    low, high = -rand(2, 3, seed=1), rand(2, 3, seed=2)
    which = [1, 0, 1, 1]
    C, d = 2 * rand(4, 2, 4, seed=3) - 1, rand(4, 2, seed=4)
    for refine in (True, False):
        together = bound_boxes(graph, Box(low[which], high[which]), C, d, refine=refine)
        assert len(together.layers.bounds[0].lower) == 2
        weights = torch.full((4, 2), 0.5).double()
        moved = effects(graph, together, weights)
        for i, k in enumerate(which):
            alone = bound_boxes(graph, Box(low[[k]], high[[k]]), C[[i]], d[[i]], refine=refine)
            torch.testing.assert_close(together.coef[[i]], alone.coef)
            torch.testing.assert_close(together.constant[[i]], alone.constant)
            torch.testing.assert_close(moved[[i]], effects(graph, alone, weights[[i]]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_dear_bounds_are_shared_to_the_end(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where passes for hidden layers are dear, cases keep one box: fewer boxes are bounded, and no answer changes."""
    graph = trace(dense((3, 24, 24, 4), seed), (3,))
    low, high = -torch.ones(3).double(), torch.ones(3).double()
    x = 2 * rand(40000, 3, seed=seed) - 1
    y = int(graph(x[:1]).argmax())
    gap = graph(x)[:, [y]] - graph(x)
    gap[:, y] = torch.inf
    lowest = float(gap.min())
    boxes: list[int] = []
    original = search.bound_boxes

    def watched(*given: Any, refine: bool) -> Any:
        found = original(*given, refine=refine)
        boxes.append(len(found.layers.bounds[0].lower))
        return found

    monkeypatch.setattr(search, "bound_boxes", watched)
    monkeypatch.setattr(search, "refining_pays", lambda *_: True)
    counts = []
    for cheap in (0.0, torch.inf):
        monkeypatch.setattr(search, "CHEAP", cheap)
        boxes.clear()
        for room, status in ((0.01, "verified"), (-1e-3, "falsified")):
            cases = labels(graph, low, high, y, room - lowest)

            def replay(points: Tensor, cases: list[Case] = cases) -> Tensor | None:
                with torch.no_grad():
                    out = graph(points)
                hits = torch.stack([case.margin(out) <= 0 for case in cases]).any(0)
                return points[hits][0] if bool(hits.any()) else None

            assert search.solve(graph, cases, replay, Clock(60.0), branching="inputs").status == status
        counts.append(sum(boxes))
    assert counts[0] < counts[1]


def test_the_common_box_holds_what_is_left_of_each() -> None:
    which, left = torch.tensor([0, 1, 0, 0]), torch.tensor([True, True, False, True])
    at = torch.tensor([[0.0, 0.5], [0.125, 0.125], [-9.0, -9.0], [0.25, 0.375]]).double()
    to = torch.tensor([[0.5, 0.625], [0.25, 0.25], [9.0, 9.0], [0.375, 0.875]]).double()
    share = torch.tensor([[1.0, 2.0], [3.0, 4.0], [50.0, 0.0], [torch.nan, 0.5]]).double()
    low, high, both = common_box(which, left, at, to, share)
    for i in (0, 3):
        assert low[i].tolist() == [0.0, 0.375] and high[i].tolist() == [0.5, 0.875] and both[i].tolist() == [1.0, 2.5]
    assert (low[1].tolist(), high[1].tolist(), both[1].tolist()) == ([0.125, 0.125], [0.25, 0.25], [3.0, 4.0])


def test_how_many_splits_a_refined_bound_saves() -> None:
    """Each leaves the same share of what is missing; a bound that is positive saves any number."""
    assert splits_saved(80.0, 40.0, 10.0) == pytest.approx(3.0)
    assert splits_saved(80.0, 60.0, 45.0) == pytest.approx(2.0)
    assert splits_saved(80.0, 40.0, 80.0) == splits_saved(80.0, 40.0, 90.0) == splits_saved(-1.0, -2.0, -3.0) == 0.0
    assert splits_saved(80.0, 40.0, -1.0) == splits_saved(80.0, 80.0, 70.0) == float("inf")
    assert 0 < splits_saved(80.0, -5.0, 10.0) < 1


def test_deep_nets_are_refined_though_a_split_gains_more() -> None:
    """Linear bounds that go forward grow with depth as no backward pass does; the first halving takes more off than
    refinement leaves, and yet it would take many to get as far."""
    graph = folded(trace(dense((4, *[30] * 6, 1), 0), (4,)))
    C, d = torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double()
    low, high = -torch.ones(1, 4).double(), torch.ones(1, 4).double()
    C = C * (1 if float(graph(torch.zeros(1, 4).double())) > 0 else -1)
    first = {"low": low, "high": high, "case": torch.zeros(1).long(), "side": torch.zeros(1).long()}
    plain, refined = (bound_boxes(graph, Box(low, high), C, d, refine=on) for on in (False, True))
    missing = [-float(least(b.coef, b.constant, low, high)) for b in (plain, refined)]
    assert missing[0] > 2 * missing[1] > 0
    price = refining_costs(graph, first)
    assert price > 4 and refining_pays(graph, first, C, d, 4.0)
    told = dict(first, refined=torch.ones(1, dtype=torch.bool), bound=torch.tensor([-missing[0]]).double())
    assert not refining_pays(graph, told, C, d, 4.0), "what is known is taken as it is"


def test_backward_passes_cost_more_in_wide_nets() -> None:
    """Two forms a neuron that is not stable, each through all that lies below."""
    costs = {}
    for widths in ((2, 12, 12, 1), (2, 48, 48, 1)):
        graph = folded(trace(dense(widths, 0), (2,)))
        box = Box(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
        found = layer_bounds(graph, box, BoundOptions(intermediate="interval"))
        open_ = [int(((b.lower < 0) & (b.upper > 0)).sum()) for i, b in enumerate(found.bounds) if i in graph.relus]
        costs[widths] = float(backward_cost(graph, found)[0])
        assert sum(open_) > costs[widths] / 2 > 0.1 * sum(open_)
    assert costs[2, 48, 48, 1] > 3 * costs[2, 12, 12, 1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_control_nets(seed: int) -> None:
    """Five inputs, a conjunction of rows: never verified where a sample is unsafe, and verified where there is room."""
    net = dense((5, 16, 16, 16, 3), seed)
    graph = trace(net, (5,))
    C = torch.tensor([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]]).double()
    case = cube(5, C, torch.zeros(2).double())
    tries = torch.cat([descend(graph, [case]), evolve(graph, case), 2 * rand(50000, 5, seed=seed) - 1])
    lowest = float(case.margin(graph(tries)).min())
    room = 0.01 * float(C.abs().sum(1).max() * graph(tries).abs().max())
    safe = ask(graph, cube(5, C, torch.full((2,), room - lowest).double()))
    assert safe.status == "verified" and safe.details["domains"] > 50
    assert ask(graph, cube(5, C, torch.full((2,), -1e-4 - lowest).double())).status == "falsified"


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_must_be_met_together(seed: int) -> None:
    """A small ball of outputs, reached in a corner of seven inputs: evolution finds its way there, and so does a search
    whose descent finds nothing."""
    graph = trace(dense((4, 24, 24, 2), seed), (4,))
    goal = graph(2 * rand(1, 4, seed=seed) - 1)[0]
    eye = torch.eye(2, dtype=torch.float64)
    radius = 0.002
    case = cube(4, torch.cat([eye, -eye]), torch.cat([-goal, goal]) - radius)
    found = evolve(graph, case, seed=seed)
    margin = case.margin(graph(found))
    assert float(margin[0]) <= 0 and bool((margin.diff() >= 0).all())
    assert bool(((found >= case.low) & (found <= case.high)).all())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "descend", lambda graph, cases, **_: cases[0].low[None])
        assert ask(graph, case).status == "falsified"


@pytest.mark.parametrize("split", ["inputs", "sensitivity"])
def test_attacks_are_repeated(split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counterexample that the first attack misses is found by a later one, from other points."""
    graph = trace(dense((6, 20, 20, 2), 3), (6,))
    C = torch.tensor([[1.0, -1.0]]).double()
    case = cube(6, C, torch.zeros(1).double())
    tries = torch.cat([descend(graph, [case], restarts=100), evolve(graph, case)])
    case = cube(6, C, -1e-5 - case.margin(graph(tries)).min()[None])
    seeds: list[int] = []

    def later(graph: Graph, cases: list[Case], *, seed: int, **options: Any) -> Tensor:
        seeds.append(seed)
        return descend(graph, cases, seed=seed, **options) if seed else cases[0].low[None]

    monkeypatch.setattr(search, "descend", later)
    monkeypatch.setattr(search, "evolve", lambda graph, case, **_: case.low[None])
    monkeypatch.setattr(search._Search, "_look", lambda self, domains, slope: None)
    monkeypatch.setattr(search, "FIRST_AGAIN", 64)

    def replay(points: Tensor) -> Tensor | None:
        hits = case.margin(graph(points)) <= 0
        return points[hits][0] if bool(hits.any()) else None

    assert search.solve(graph, [case], replay, Clock(60.0), branching=split).status == "falsified"
    assert seeds == list(range(len(seeds))) and len(seeds) > 1


def test_attacks_stay_in_their_boxes() -> None:
    """Also from starts outside, before any step; and each start belongs to its own case."""
    graph, C = trace(dense((3, 8, 2), 0), (3,)), torch.tensor([[1.0, -1.0]]).double()
    low = torch.tensor([[-1.0, -0.5, 0.2], [2.0, 2.0, 2.0]]).double()
    high = low + torch.tensor([[0.3], [0.1]]).double()
    cases = [Case(low[i], high[i], C, torch.zeros(1).double()) for i in range(2)]
    starts = torch.stack([low - 5, high + 5], dim=1)
    for steps in (0, 10):
        found = descend(graph, cases, restarts=4, steps=steps, starts=starts)
        inside = ((found[:, None] >= low) & (found[:, None] <= high)).all(dim=2)
        assert len(found) == 8 and inside.sum(dim=0).tolist() == [4, 4]
    found = evolve(graph, cases[0], starts=high[:1])
    assert bool(((found >= low[0]) & (found <= high[0])).all())


@pytest.mark.slow
def test_fourteen_inputs_and_few_neurons() -> None:
    """Between a few inputs and an image: boxes are split, and the answer comes in seconds."""
    graph = trace(dense((14, 12, 12, 3), 1), (14,))
    C = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]).double()
    case = Case(-0.5 * torch.ones(14).double(), 0.5 * torch.ones(14).double(), C, torch.zeros(2).double())
    tries = torch.cat([descend(graph, [case], restarts=100), evolve(graph, case)])
    lowest = float(case.margin(graph(tries)).min())
    for move, status in ((0.05, "verified"), (-1e-4, "falsified")):
        moved = Case(case.low, case.high, C, torch.full((2,), move - lowest).double())

        def replay(points: Tensor, case: Case = moved) -> Tensor | None:
            hits = case.margin(graph(points)) <= 0
            return points[hits][0] if bool(hits.any()) else None

        start = time.monotonic()
        assert search.solve(graph, [moved], replay, Clock(60.0)).status == status
        assert time.monotonic() - start < 60.0


def test_a_point_and_a_box_without_varying_inputs() -> None:
    """A box of one point is decided at once, by the value there."""
    graph, one = trace(dense((3, 5, 1), 2), (3,)), torch.ones(1, 1).double()
    x = rand(3, seed=1)
    value = float(graph(x[None])[0, 0])
    for shift, status in ((0.1, "verified"), (-0.1, "falsified")):
        assert ask(graph, Case(x, x, one, torch.tensor([shift - value]).double())).status == status
    assert Bounds(x[None], x[None]).width.max() == 0
