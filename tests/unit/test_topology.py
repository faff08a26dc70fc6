"""The topology attack: against brute force, a convex solver, finite differences, and the algorithm written out."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacker.domain import Graphs, Tokens, WeightedGraphs
from robustlab.attacker.victim import Victim
from robustlab.attacks import Retraining, dice, greedy_edges, random_edges, topology
from robustlab.attacks.discrete import edges
from robustlab.attacks.discrete.edges import Pairs, onto_budget, within
from robustlab.geometry.keyed import Noise
from robustlab.models import build
from tests.suite.other_inputs import Nodes, Watching, graphs, net

V = 6
ALL = list(combinations(range(V), 2))
ATTACKS = (topology, greedy_edges, dice, random_edges)


def victim(model: nn.Module, **how: Any) -> Victim:
    return Victim(model, domain=Graphs(), answer="sequence", **how)


def flip(adjacency: Tensor, pairs: Any) -> Tensor:
    out = adjacency.clone()
    for i, j in pairs:
        out[..., i, j] = out[..., j, i] = 1 - out[..., i, j]
    return out


def lost(model: nn.Module, features: Tensor, adjacency: Tensor, y: Tensor) -> Tensor:
    """(N,) how many nodes have lost their label."""
    with torch.no_grad():
        return (model(features, adjacency).argmax(dim=2) != y).sum(dim=1)


def own(model: nn.Module, x: tuple[Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(*x).argmax(dim=2)


# The projection and the slope ----------------------------------------------------------------------------------------


def test_projection_against_a_convex_solver() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(7, 12, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 1, 1, 2, 5, 1, 3])[:, None]
    a[5] = -a[5].abs()
    a[6] = a[6, 0].abs()  # all equal
    budget = torch.tensor([1, 1, 3, 2, 4, 2, 5])
    ours = onto_budget(a, budget)
    for row, most, found in zip(a.numpy(), budget.tolist(), ours, strict=True):
        s = cp.Variable(12)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(s - row)), [s >= 0, s <= 1, cp.sum(s) <= most])
        problem.solve(solver=cp.CLARABEL)
        assert np.allclose(s.value, found.numpy(), atol=1e-6)
    assert bool((ours >= 0).all() and (ours <= 1).all() and (ours.sum(dim=1) <= budget + 1e-9).all())
    assert torch.equal(onto_budget(a, torch.zeros(7)), torch.zeros_like(a).abs())
    far = onto_budget((1000 * a).float(), budget)  # the state after a step of 200, in single precision
    assert torch.allclose(far.sum(dim=1)[:5], budget[:5].float(), atol=1e-4)


def test_slope_by_finite_differences() -> None:
    model, (features, adjacency) = net(Nodes), graphs(3)
    pairs, y = Pairs(None, V, features.device), own(model, (features, adjacency))
    s = torch.rand(3, len(ALL), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = pairs.edges(adjacency)

    def f(s: Tensor) -> Tensor:
        logits = model(*pairs.flipped((features, adjacency), s, there))
        return -F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").reshape(3, V).mean(dim=1)

    _, weighted = pairs.flipped((features, adjacency), s, there)
    weighted.requires_grad_(True)
    logits = model(features, weighted)
    value = -F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").reshape(3, V).mean(dim=1)
    (grad,) = torch.autograd.grad(value.sum(), weighted)
    slope = pairs.slope(grad, there)
    for e in range(len(ALL)):
        step = torch.zeros_like(s)
        step[:, e] = 1e-6
        with torch.no_grad():
            assert torch.allclose((f(s + step) - f(s - step)) / 2e-6, slope[:, e], atol=1e-7)


def test_flips_are_those_of_the_paper() -> None:
    """A + (Ā − A) ⊙ S, with the complement written out."""
    features, adjacency = graphs(3)
    pairs = Pairs(None, V, features.device)
    s = torch.rand(3, len(ALL), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix = torch.zeros(3, V, V, dtype=torch.float64)
    for e, (i, j) in enumerate(ALL):
        matrix[:, i, j] = matrix[:, j, i] = s[:, e]
    complement = 1 - torch.eye(V) - adjacency
    _, ours = pairs.flipped((features, adjacency), s, pairs.edges(adjacency))
    assert torch.allclose(ours, adjacency + (complement - adjacency) * matrix)
    WeightedGraphs().check((features, ours))


# The algorithm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_the_steps_are_the_algorithm_written_out(loss: Any) -> None:
    """f after each step, by matrices, autograd in S and SciPy's own projection."""
    from scipy.optimize import brentq

    model, x = net(Nodes, 1), graphs(1, seed=4)
    features, adjacency = x
    y, nodes = own(model, x), torch.tensor([0, 2, 3, 5])
    result = topology(victim(model), x, budget=2, nodes=nodes, loss=loss, steps=6, trace=True, share=1.0)
    s, seen = torch.zeros(V, V, dtype=torch.float64), []
    change = (1 - torch.eye(V) - 2 * adjacency[0]).double()
    for t in range(1, 7):
        s.requires_grad_(True)
        both = torch.triu(s, 1) + torch.triu(s, 1).T
        logits = model(features, (adjacency[0] + change * both)[None])[0, nodes]
        label = y[0, nodes]
        if loss == "ce":
            value = -F.cross_entropy(logits, label)
        else:
            others = logits.scatter(1, label[:, None], -math.inf).amax(dim=1)
            value = (logits.gather(1, label[:, None])[:, 0] - others).clamp_min(0).mean()
        (grad,) = torch.autograd.grad(value, s)
        seen.append(float(value.detach()))
        a = (s.detach() - (200 / 1140 if loss == "ce" else 0.1) * len(nodes) / math.sqrt(t) * grad).numpy()
        upper = np.triu_indices(V, 1)

        def total(mu: float, row: Any = a[upper]) -> float:
            return float(np.clip(row - mu, 0, 1).sum() - 2)

        mu = brentq(total, 0, max(a[upper].max(), 1e-9), xtol=1e-14) if total(0) > 0 else 0.0
        s = torch.zeros(V, V, dtype=torch.float64)
        s[upper] = torch.from_numpy(np.clip(a[upper] - mu, 0, 1))
    assert result.trace is not None
    assert np.allclose(result.trace["loss"][:, 0].numpy(), seen, atol=1e-8)
    assert len(set(seen)) > 3


def test_brute_force_on_six_nodes() -> None:
    """No attack flips better than the best of all sets of flips; with one flip, exact greedy is that best."""
    model, x = net(Nodes), graphs(12, seed=3)
    y, reached, possible = own(model, x), 0, 0
    for budget in (1, 2):
        sets = [c for k in range(budget + 1) for c in combinations(ALL, k)]
        most = torch.stack([lost(model, x[0], flip(x[1], c), y) for c in sets]).amax(dim=0)
        with torch.no_grad():
            least = torch.stack([_mean(model(x[0], flip(x[1], c)), y) for c in sets]).amin(dim=0)
        for attack, how in ((topology, {"steps": 40}), (greedy_edges, {"by": "loss"}), (dice, {}), (random_edges, {})):
            result = attack(victim(model), x, budget=budget, **how)  # type: ignore[operator]
            found = lost(model, *result.x_adv, y)
            with torch.no_grad():
                f = _mean(model(*result.x_adv), y)
            assert bool((found <= most).all() and (f >= least - 1e-12).all())
            if attack is topology:
                reached, possible = reached + int(found.sum()), possible + int(most.sum())
            elif attack is greedy_edges and budget == 1:
                assert torch.allclose(f, least)
    assert reached >= 0.8 * possible > 0, f"{reached} of {possible} nodes that brute force takes"


def _mean(logits: Tensor, y: Tensor) -> Tensor:
    return -F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").reshape(y.shape).mean(dim=1)


class Covered(nn.Module):
    """A node is lost as far as the flips that touch it say: −f is a coverage function, monotone and submodular."""

    def __init__(self, start: Tensor, weight: Tensor, sets: Tensor) -> None:
        super().__init__()
        self.start, self.weight, self.sets = start, weight, sets  # (V, V), (V,), (V, V, V): pair → nodes that it covers

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        flips = (adjacency - self.start).abs().triu(1)
        covered = torch.einsum("nij,ijv->nv", flips, self.sets).clamp_max(1)
        return torch.stack([1.0 + 0 * covered, 0.99 * covered * self.weight], dim=2)


def test_exact_greedy_reaches_its_share_where_the_loss_is_submodular() -> None:
    below = 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        start = graphs(1, seed=seed)[1]
        sets = torch.rand(V, V, V, generator=generator).lt(0.45).double()
        weight = torch.rand(V, generator=generator, dtype=torch.float64)
        model = Covered(start[0], weight, sets)

        def gain(logits: Tensor) -> Tensor:
            """How far the margins have fallen, on the mean."""
            return 1.0 - (logits[..., 0] - logits[..., 1]).mean(dim=1)

        for budget in (2, 3) if seed < 2 else (2,):
            x = torch.zeros(1, V, 1, dtype=torch.float64), start
            best = max(float(gain(model(x[0], flip(start, c)))) for c in combinations(ALL, budget))
            result = greedy_edges(victim(model), x, budget=budget, by="loss", loss="margin")
            ours = float(gain(model(*result.x_adv)))
            assert (1 - 1 / math.e) * best <= ours <= best + 1e-12
            below += ours < best - 1e-9
    assert below, "greedy is never below the optimum: the bound is not put to a test"


def test_greedy_by_slope_takes_the_steepest_pairs_one_after_the_other() -> None:
    for seed in range(4):
        model, x = net(Nodes, 2), graphs(1, seed=seed)
        y, taken, tried = own(model, x), list[tuple[int, int]](), [x[1]]
        for _ in range(3):
            now = flip(x[1], taken).requires_grad_(True)
            (grad,) = torch.autograd.grad(_mean(model(x[0], now), y).sum(), now)
            slopes = {(i, j): float((1 - 2 * x[1][0, i, j]) * (grad[0, i, j] + grad[0, j, i])) for i, j in ALL}
            taken.append(min((pair for pair in ALL if pair not in taken), key=slopes.__getitem__))
            if slopes[taken[-1]] >= 0:
                break
            tried.append(flip(x[1], taken))
        with torch.no_grad():  # the best of these: most nodes lost, then the smallest f
            best = min(tried, key=lambda a: (-int(lost(model, x[0], a, y)), float(_mean(model(x[0], a), y))))
        assert torch.equal(greedy_edges(victim(model), x, budget=3).x_adv[1], best)


# What is returned ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS)
def test_graph_budget_and_what_may_change(attack: Any) -> None:
    model, x = net(Nodes), graphs(10, seed=3)
    allowed = torch.tensor([[0, 1], [3, 2], [1, 4], [5, 0], [2, 5]])
    budget = torch.tensor([0, 1, 2, 3, 4, 5, 1, 2, 3, 0])
    result = attack(victim(model), x, budget=budget, pairs=allowed)
    features, adjacency = result.x_adv
    Graphs().check((features, adjacency))
    changed = (adjacency != x[1]).triu(1)
    assert torch.equal(changed.sum(dim=(1, 2)), result.distances["edges"])
    assert bool((result.distances["edges"] <= budget).all()) and torch.equal(features, x[0])
    for _, i, j in changed.nonzero().tolist():
        assert [i, j] in [sorted(pair) for pair in allowed.tolist()]
    assert int(changed.sum()) > 0 and torch.equal(adjacency[budget == 0], x[1][budget == 0])


def test_draws_that_all_exceed_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draw takes every pair of positive s: what is returned is a graph within the budget all the same."""
    model, x = net(Nodes), graphs(6, seed=2)
    monkeypatch.setattr(Noise, "uniform", lambda self, draw, shape, *_: torch.full((len(self), *shape), -1.0))
    seen = Watching(model)
    result = topology(victim(seen), x, budget=2, steps=3, draws=5)
    assert bool((result.distances["edges"] <= 2).all()) and int(result.distances["edges"].sum()) > 0
    assert seen.forwards == int(result.queries.sum())
    score = torch.tensor([[0.9, 0.1, 0.5, 0.6]])
    every = torch.ones(1, 4, dtype=torch.bool)
    assert within(every, score, torch.tensor([2])).tolist() == [[1, 0, 0, 1]]
    assert within(every & (score < 0.8), score, torch.tensor([2])).tolist() == [[0, 0, 1, 1]]


def test_labels_are_those_of_this_model_on_this_graph() -> None:
    """The trap: predictions of another model, kept in a file. The first f tells which labels were used."""
    x = graphs(4, seed=5)
    for seed in (0, 1):
        model = net(Nodes, seed)
        result = topology(victim(model), x, budget=2, steps=2, trace=True)
        assert result.trace is not None
        with torch.no_grad():
            assert torch.allclose(result.trace["loss"][0], _mean(model(*x), own(model, x)))
    truth = (own(model, x) + 1) % 3
    truth[:, ::2] = own(model, x)[:, ::2]
    given = topology(victim(model), x, truth, budget=2, steps=2, trace=True)
    assert given.trace is not None
    with torch.no_grad():
        assert torch.allclose(given.trace["loss"][0], _mean(model(*x), truth))


def test_the_goal_is_a_share_of_the_nodes_attacked() -> None:
    model, x = net(Nodes), graphs(10, seed=6)
    y = own(model, x)
    nodes = torch.tensor([1, 4])
    for share, least in ((0.5, 1), (1.0, 2)):
        result = topology(victim(model), x, budget=4, nodes=nodes, share=share, steps=30)
        with torch.no_grad():
            count = (model(*result.x_adv).argmax(dim=2) != y)[:, nodes].sum(dim=1)
        assert torch.equal(result.success, count >= least) and bool(result.success.any())
        assert not bool(result.success.all()) or share < 1


def test_min_max_trains_beside_the_attack() -> None:
    """Its f is that of a copy, trained by hand with Adam after each change of the graph; the caller's net stays."""
    model, x = build("graph_net", features=3, classes=3, hidden=4, seed=1).double().eval(), graphs(1, seed=8)
    before = [p.clone() for p in model.parameters()]
    nodes, labels = torch.tensor([0, 3, 4]), torch.tensor([0, 1, 2])
    how = Retraining(nodes, labels, steps=2, lr=0.05)
    result = topology(victim(model), x, budget=3, retrain=how, steps=1, trace=True)
    assert result.trace is not None
    twin = build("graph_net", features=3, classes=3, hidden=4, seed=1).double().eval()
    stepper = torch.optim.Adam(twin.parameters(), lr=0.05, weight_decay=5e-4)
    for _ in range(2):
        stepper.zero_grad()
        F.cross_entropy(twin(*x)[0, nodes], labels).backward()
        stepper.step()
    with torch.no_grad():
        assert torch.allclose(result.trace["loss"][0], _mean(twin(*x), own(model, x)))
    for lr in (0.05, 1.0):  # after the second the copy soon says something else altogether
        wild = Retraining(nodes, labels, steps=2, lr=lr)
        longer = topology(victim(model), x, budget=1, retrain=wild, steps=8, share=0.5)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert torch.equal(longer.success, lost(model, *longer.x_adv, own(model, x)) >= 3), "judged by another net"


# Wrong input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"budget": -1}, ValueError, "budget: want between 0 and 15, the number of pairs, got -1"),
        ({"budget": 16}, ValueError, "budget: want between 0 and 15, the number of pairs, got 16"),
        ({"budget": 0.05}, TypeError, r"budget: want a whole number of flipped pairs, .* round\(0.05 \* edges\), got"),
        ({"budget": True}, TypeError, "budget: want a whole number"),
        ({"nodes": torch.tensor([6])}, ValueError, "nodes: want nodes in 0 … 5, got 6"),
        ({"nodes": torch.zeros(6, dtype=torch.bool)}, ValueError, "nodes: want at least one node"),
        ({"nodes": torch.zeros(6)}, ValueError, "nodes: want indices"),
        ({"pairs": torch.tensor([[0, 0]])}, ValueError, "pairs: want two different nodes in each, got a loop"),
        ({"pairs": torch.tensor([[0, 1], [1, 0]])}, ValueError, "pairs: want each pair once"),
        ({"pairs": torch.tensor([[0, 7]])}, ValueError, "pairs: want nodes in 0 … 5"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, ValueError, r"y: want a label per node, integers of shape \(3, 6\)"),
        ({"share": 0.0}, ValueError, "share"),
        ({"draws": -1}, ValueError, "draws"),
        ({"loss": "hinge"}, ValueError, "loss: want one of"),
        ({"step_size": 0.0}, ValueError, "step_size"),
        ({"victim": Victim(net(Nodes), domain=Tokens(3))}, TypeError, "victim: want one of graphs"),
        ({"victim": net(Nodes)}, TypeError, "victim: want one of graphs"),
        (
            {"retrain": Retraining(torch.tensor([0]), torch.tensor([0]))},
            ValueError,
            "retrain: want one graph, since its weights are trained on one, got 3",
        ),
    ],
    ids=str,
)
def test_refusals(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    seen = Watching(net(Nodes))
    told: dict[str, Any] = {"victim": victim(seen), "x": graphs(3), "budget": 1, "steps": 2, **wrong}
    with pytest.raises(error, match=message):
        topology(told.pop("victim"), told.pop("x"), **told)
    assert seen.calls == 0


def test_no_graph_is_refused_before_any_work() -> None:
    seen, (features, adjacency) = Watching(net(Nodes)), graphs(2)
    loops, lopsided, weights = adjacency.clone(), adjacency.clone(), adjacency / 2
    loops[1, 2, 2], lopsided[0, 0, 1] = 1, 1 - lopsided[0, 1, 0]
    for attack in ATTACKS:
        for wrong in (loops, lopsided, weights, adjacency * torch.nan):
            with pytest.raises(ValueError, match="x: want an adjacency of 0 and 1, symmetric and without loops"):
                attack(victim(seen), (features, wrong), budget=1)
        with pytest.raises(ValueError, match="x: want finite values"):
            attack(victim(seen), (features * torch.nan, adjacency), budget=1)
    with pytest.raises(TypeError, match="x: want an adjacency of floats"):
        topology(victim(seen), (features, adjacency.long()), budget=1)
    with pytest.raises(TypeError, match=r"x: want an adjacency that is dense, got torch.sparse_coo; say x.to_dense"):
        topology(victim(seen), (features, adjacency.to_sparse()), budget=1)
    labels = torch.zeros(adjacency.shape[:2], dtype=torch.int64)
    labels[1, 2] = 9
    with pytest.raises(ValueError, match=r"y: want labels in 0 … \d+, got \[9\] at \[\[1, 2\]\]"):
        topology(victim(net(Nodes)), (features, adjacency), labels, budget=1)
    assert seen.calls == 0
    assert edges.BISECTIONS >= 20
