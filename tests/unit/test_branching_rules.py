"""Which ReLU is split, and slopes of hidden layers: against formulas by hand, brute force and sampled points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.graph.folding import folded
from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Hinge
from robustlab.graph.node import Graph
from robustlab.graph.tracing import trace
from robustlab.verification import alpha_crown, bounds, branch_and_bound, certify, milp, verify
from robustlab.verification.complete import domain_search as search
from robustlab.verification.complete.branching import (
    affine_constants,
    babsr,
    coefficients,
    relu_to_split,
    sensitivity,
    whole,
)
from robustlab.verification.complete.milp import minimum
from robustlab.verification.complete.query import Case, Clock
from robustlab.verification.propagation.alpha_crown import optimized_bound
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.joint import together
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.lower_bound import lower_bound
from robustlab.verification.propagation.region import Ball, Box
from tests.unit.relu_patterns import box, exact_minimum, tiny

OPTIONS: dict[str, dict[str, Any]] = {
    "sensitivity": {"branching": "sensitivity"},
    "babsr": {"branching": "babsr"},
    "joint": {"alpha": "joint"},
    "babsr, joint": {"branching": "babsr", "alpha": "joint"},
}
over_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Residual(nn.Module):
    """Convolutions with a sum around two of them, and an average."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.one, self.two = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.out = nn.Linear(27, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x).relu()
        return self.out(nn.functional.avg_pool2d((self.two(z) + z).relu(), 2).flatten(1))


LAYERS = tiny((4, 8, 8, 3), 1)
NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (tiny((4, 8, 8, 8, 3), 0), (4,)),
    "leaky": (nn.Sequential(*(nn.LeakyReLU(0.2) if isinstance(m, nn.ReLU) else m for m in LAYERS)), (4,)),
    "residual": (Residual(0), (1, 6, 6)),
}
over_nets = pytest.mark.parametrize("name", NETS)


def layers_of(name: str, radius: float = 0.2, **options: Any) -> tuple[Graph, Box, Layers]:
    net, shape = NETS[name]
    center = rand(2, *shape, seed=3)
    region = Box((center - radius).clamp_min(0), (center + radius).clamp_max(1))
    graph = trace(net, shape)
    with torch.no_grad():
        return graph, region, layer_bounds(graph, region, BoundOptions(), **options)


def inside(region: Box, count: int = 4000) -> Tensor:
    """Points and corners of each box, (count, N, *shape)."""
    share = rand(count, *region.lower.shape, seed=1)
    share = torch.where(torch.arange(count).reshape(-1, *[1] * region.lower.dim()) % 2 == 0, share, share.round())
    return region.lower + share * (region.upper - region.lower)


# Slopes of hidden layers ---------------------------------------------------------------------------------------------


@over_nets
def test_no_sampled_point_is_below(name: str) -> None:
    """Of several rows at once, which share the slopes of hidden layers; nor is CROWN above."""
    graph, region, layers = layers_of(name)
    C = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start, end = (
        optimized_bound(graph, region, C, layers, steps=steps, joint=BoundOptions()).lower for steps in (0, 20)
    )
    outputs = graph(inside(region).flatten(0, 1)).detach().unflatten(0, (-1, 2))
    assert bool((torch.einsum("nmk,snk->snm", C, outputs).amin(0) >= end - 1e-9).all())
    assert bool((end >= start).all() and (end > start).any())
    torch.testing.assert_close(start, lower_bound(graph, region, C, BoundOptions(intersect=False), layers=layers))


CROWNS: tuple[dict[str, Any], ...] = (
    {"method": "crown"},
    {"method": "alpha_crown"},
    {"method": "alpha_crown", "alpha": "joint"},
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_between_crown_and_exact(seed: int) -> None:
    """CROWN ≤ joint ≤ the least of one linear program for each pattern of ReLUs; about α-CROWN or better."""
    net = tiny((3, 4, 4, 3), seed)
    low, high = box(3, seed, 0.3)
    C = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    least = exact_minimum(net, Case(low, high, C, torch.zeros(1, dtype=torch.float64)))
    region = Box(low[None], high[None])
    crown, output, joint = (float(bounds(net, region, C, **options).lower.detach()) for options in CROWNS)
    assert crown <= joint <= least + 1e-9
    assert joint >= output - 1e-3 * (1 + abs(output))  # no theorem: both end before the best slopes


def test_it_pays_on_deep_nets() -> None:
    """A tenth of what α-CROWN leaves open to sampled points, in the mean over nets, and no less than half of that."""
    shares = []
    for seed in range(4):
        net = tiny((5, 12, 12, 12, 2), seed)
        region = Box(*(end[None] for end in box(5, seed, 0.15)))
        C = torch.tensor([[1.0, -1.0]]).double()
        output, joint = (
            float(bounds(net, region, C, method="alpha_crown", alpha=a).lower) for a in ("output", "joint")
        )
        best = float((net(inside(region)[:, 0]) @ C.T).detach().min())
        shares.append((joint - output) / (best - output))
    assert sum(shares) / 4 > 0.1 and min(shares) > 0.05, shares


class Bent(nn.Module):
    """m = max(x, 0) − 2x + ½ and −max(m, 0) − 2x: on [−1, 1] both are least at x = 1, −½ and −2."""

    def __init__(self) -> None:
        super().__init__()
        self.doubled = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        falls = self.doubled(x)
        m = x.relu() + falls + 0.5
        return torch.cat([m, falls - m.relu()], dim=1)


def test_slopes_stay_in_their_range() -> None:
    """A line with a slope above 1 lies above max(x, 0) at x = 1, where this network is at its least. Were slopes free,
    the bound of m would pass −½, and in a hidden pass lift that of the other output above −2."""
    net = Bent().double().requires_grad_(False)
    net.doubled.weight.fill_(-2.0)
    net.doubled.bias.zero_()
    one, least = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[-0.5, -2.0]], dtype=torch.float64)
    for alpha in ("output", "joint"):
        options = {"method": "alpha_crown", "alpha": alpha, "steps": 60, "intersect": False}
        lower = bounds(net, Box(-one, one), torch.eye(2, dtype=torch.float64), **options).lower
        assert bool((lower <= least + 1e-9).all())
        assert bool((lower >= least - 0.05).all())  # the slopes of the lines that touch it there


def test_assumed_signs_hold() -> None:
    """No point that has the signs is below, and with them the bound is higher than without; multipliers take part."""
    graph, region, layers = layers_of("dense")
    node = list(graph.relus)[1]
    open_ = (layers.bounds[node].lower < 0) & (layers.bounds[node].upper > 0)
    sign = torch.where(open_ & (rand(*open_.shape, seed=5) < 0.3), 1, 0).to(torch.int8)
    assert bool(sign.any())
    with torch.no_grad():
        split = layer_bounds(graph, region, BoundOptions(), splits={node: sign})
    C = torch.eye(3, dtype=torch.float64)
    found = optimized_bound(graph, region, C, split, splits={node: sign}, joint=BoundOptions())
    values = graph.values(inside(region, 20000).flatten(0, 1))
    keeps = (values[node].unflatten(0, (-1, 2)) * sign >= 0).flatten(2).all(dim=2)
    assert bool((keeps.sum(0) > 20).all()) and bool((found.multipliers[node] > 0).any())
    outputs = values[-1].detach().unflatten(0, (-1, 2))
    assert bool(torch.where(keeps[:, :, None], outputs >= found.lower - 1e-9, True).all())
    assert bool((found.lower > optimized_bound(graph, region, C, layers, joint=BoundOptions()).lower).any())


def test_rows_are_apart_and_float32_is_widened() -> None:
    """Each sample's bounds depend on it alone; those of a float32 net hold for the net in float64 too."""
    net = tiny((4, 8, 8, 3), 2).float()
    x = rand(5, 4, seed=2).float()
    C = torch.eye(3)
    all_, one = (
        bounds(net, Ball(some, 0.1), C, method="alpha_crown", alpha="joint", steps=5).lower for some in (x, x[2:3])
    )
    torch.testing.assert_close(all_[2:3], one, atol=1e-4, rtol=1e-4)
    points = (x.double() + 0.2 * (rand(3000, 5, 4, seed=9) - 0.5)).clamp(0, 1)
    assert bool((tiny((4, 8, 8, 3), 2)(points) >= all_.double() - 1e-6).all())


def test_certificates_and_arguments() -> None:
    net, x = tiny((4, 6, 6, 3), 1), rand(4, 4, seed=2)
    exact = milp(net, x, eps=0.05)
    for answer in (
        alpha_crown(net, x, eps=0.05, alpha="joint"),
        certify(net, x, eps=0.05, method="alpha_crown", alpha="joint"),
    ):
        assert not bool((answer.verified & exact.falsified).any())
    with pytest.raises(ValueError, match="alpha: want one of"):
        alpha_crown(net, x, eps=0.05, alpha="hidden")  # type: ignore[arg-type]
    for options, message in (
        ({"branching": "widest"}, "branching: want one of"),
        ({"alpha": "all"}, "alpha: want one of"),
        ({"branching": "inputs", "alpha": "joint"}, "alpha: want 'output' where inputs are split"),
    ):
        with pytest.raises(ValueError, match=message):
            branch_and_bound(net, x, eps=0.05, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="branching, alpha: want 'auto' and 'output' with 'milp', got 'babsr'"):
        verify(net, x, eps=0.05, method="milp", branching="babsr")
    assert together(trace(net, (4,))) > 1


# Which ReLU is split -------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    """−3 on a ReLU between −1 and 3 with the constant 2: the line above is 3/4 high at the bend and has the slope 3/4.

    It costs 9/4. Made linear, it moves the bound by max(−6·(3/4 − 1), −6·3/4) = 3/2, less 9/4. With the coefficient 4
    the line below of slope 1/4 is min(1/4, 9/4) off; BaBSR takes max(8·(3/4 − 1), 8·3/4) = 6.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    between = type(layers_of("dense")[2].bounds[0])(-one, 3 * one)
    assert float(sensitivity(-3 * one, between, one / 4)) == pytest.approx(9 / 4)
    assert float(sensitivity(4 * one, between, one / 4)) == pytest.approx(1.0)
    assert float(babsr(-3 * one, between, 2 * one)) == pytest.approx(3 / 4)
    assert float(babsr(4 * one, between, 2 * one)) == pytest.approx(6.0)


@over_nets
def test_coefficients_are_derivatives(name: str) -> None:
    """A coefficient on a ReLU is what the bound gains where both its lines are lifted."""
    graph, _, layers = layers_of(name)
    C = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hinges = [node for node in graph.nonlinear if isinstance(node.op, Hinge)]
    slopes = {n.index: rand(*layers.lines[n.index].lower_slope.shape, seed=n.index) for n in hinges}
    found = coefficients(graph, layers, slopes, C)
    assert set(found) == set(graph.relus)
    for before, relu in graph.relus.items():
        lift = torch.zeros(2, *graph.nodes[before].shape, dtype=torch.float64, requires_grad=True)
        lines = {i: replace(line, lower_slope=slopes[i]) for i, line in layers.lines.items()}
        lines[relu] = replace(lines[relu], upper_bias=lines[relu].upper_bias + lift, lower_bias=lift)
        _, constant = backward(graph, lines, Forms(C, torch.arange(2)), len(graph.nodes) - 1)
        (wanted,) = torch.autograd.grad(constant.sum(), lift)
        torch.testing.assert_close(found[before], wanted)


def test_constants_are_biases() -> None:
    """Also where a sum comes between; of a folded net, of what the layers make together."""
    net, shape = NETS["residual"]
    assert isinstance(net, Residual)
    graph = trace(net, shape)
    found = list(affine_constants(graph, torch.zeros(1).double()).values())
    for value, conv in zip(found, (net.one, net.two), strict=True):
        assert conv.bias is not None
        torch.testing.assert_close(value, conv.bias.detach()[None, :, None, None].expand(1, 3, 6, 6))
    two = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    (whole_,) = affine_constants(folded(trace(two, (3,))), torch.zeros(1).double()).values()
    torch.testing.assert_close(whole_[0], two[1](two[0](torch.zeros(3).double())).detach())


@pytest.mark.parametrize("rule", ["sensitivity", "babsr"])
def test_the_first_in_rank_is_split(rule: Any) -> None:
    """The largest score by formulas written out for one hidden layer; ReLUs with a known sign do not count."""
    net = tiny((4, 10, 2), 0)
    graph, region = trace(net, (4,)), Box(torch.zeros(1, 4).double(), torch.ones(1, 4).double())
    with torch.no_grad():
        layers = layer_bounds(graph, region, BoundOptions())
    ((before, relu),) = graph.relus.items()
    l, u = layers.bounds[before].lower[0], layers.bounds[before].upper[0]
    slopes, C = {relu: rand(1, 10, seed=1)}, torch.tensor([[1.0, -1.0]]).double()
    first, last = net[0], net[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    a, bias = (C @ last.weight.detach())[0], first.bias.detach()
    score = []
    for i in range(10):
        low, up, w, alpha = float(l[i]), float(u[i]), float(a[i]), float(slopes[relu][0, i])
        high, s, c = -low * up / (up - low), up / (up - low), w * float(bias[i])
        by_sensitivity = -w * high if w < 0 else w * min(alpha * -low, (1 - alpha) * up)
        by_babsr = abs(max((s - 1) * c, s * c) + min(w, 0.0) * high)
        score.append((by_babsr if rule == "babsr" else by_sensitivity) if low < 0 < up else -1.0)
    order = torch.tensor(score).argsort(descending=True).tolist()
    domains = whole(graph, region.lower.flatten(1), region.upper.flatten(1), signs=True)
    for wanted in order[:3]:
        node, place, best = relu_to_split(graph, domains, layers, slopes, C, rule)
        assert (int(node), int(place)) == (before, wanted) and float(best) == pytest.approx(score[wanted], abs=1e-8)
        domains[f"sign:{before}"][0, wanted] = 1


@pytest.mark.slow
@over_options
@pytest.mark.parametrize("seed", range(3))
def test_both_sides_of_the_exact_minimum(seed: int, options: dict[str, Any]) -> None:
    """Moved so that the least margin is 0.01 or −0.01: the answers must be verified and falsified."""
    net = tiny((3, 4, 3, 3), seed)
    low, high = box(3, seed, 0.3)
    generator = torch.Generator().manual_seed(seed)
    C = torch.randn(1, 3, generator=generator, dtype=torch.float64)
    case = Case(low, high, C, torch.zeros(1, dtype=torch.float64))
    least = exact_minimum(net, case)
    for shift, wanted in ((0.01, "verified"), (-0.01, "falsified")):
        moved = Case(low, high, C, torch.full((1,), shift - least, dtype=torch.float64))

        def replay(points: Tensor, case: Case = moved) -> Tensor | None:
            hits = case.margin(net(points)) <= 0
            return points[hits][0] if bool(hits.any()) else None

        with torch.no_grad():
            assert search.solve(trace(net, (3,)), [moved], replay, Clock(60.0), **options).status == wanted


@pytest.mark.slow
@over_options
def test_answers_are_those_of_milp(options: dict[str, Any]) -> None:
    """Convolutions and a residual sum, several labels; rules take different ways to the same answers."""
    net, shape = NETS["residual"]
    x = rand(4, *shape, seed=7)
    for eps in (0.03, 0.12):
        exact = milp(net, x, eps=eps)
        found = branch_and_bound(net, x, eps=eps, timeout=60, **options)
        assert found.status == exact.status


@pytest.mark.slow
def test_rules_take_different_ways() -> None:
    """Not the same domains under another name."""
    net = tiny((6, 10, 10, 2), 2)
    low, high = box(6, 2, 0.2)
    C = torch.tensor([[1.0, -1.0]]).double()
    _, found, _ = minimum(trace(net, (6,)), Case(low, high, C, torch.zeros(1, dtype=torch.float64)))
    case, counts = Case(low, high, C, torch.full((1,), 0.5 - found, dtype=torch.float64)), []
    for options in OPTIONS.values():
        verdict = search.solve(trace(net, (6,)), [case], lambda points: None, Clock(60.0), **options)
        assert verdict.status == "verified"
        counts.append(verdict.details["domains"])
    assert len(set(counts)) == len(counts), counts
