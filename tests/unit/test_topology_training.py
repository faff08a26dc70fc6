"""Topology adversarial training: its graph is the one of the attack, its loss and slope those of the formula."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacker.domain import Graphs
from robustlab.attacker.victim import Victim
from robustlab.attacks import topology
from robustlab.defenses import topology_training
from robustlab.geometry.keyed import Noise
from robustlab.models import OnGraph, build
from robustlab.training.fit import cross_entropy, fit
from tests.pretend.twins import twins
from tests.suite.other_inputs import graphs

V = 6
NODES, LABELS = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 1, 2, 1])


class Seen(nn.Module):
    """Keeps the adjacencies that it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.asked = net, list[Tensor]()

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        self.asked.append(adjacency.detach().clone())
        return self.net(features, adjacency)


def net_on(seed: int = 0, dropout: float = 0.0) -> tuple[OnGraph, Seen]:
    features, adjacency = graphs(1, seed=seed)
    net = Seen(build("graph_net", features=3, classes=3, hidden=8, dropout=dropout, seed=seed).double())
    return OnGraph(net, features[0], adjacency[0]), net


def formula(
    model: OnGraph, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, share: float, steps: int, step_size: float | None
) -> Tensor:
    """The loss by the paper's letters, A′ = A + C ⊙ (S + Sᵀ) with C = Ā − A; the projection sorts breakpoints."""
    return by_hand(model, x, y, seed, share, steps, step_size)[0]


def by_hand(
    model: OnGraph, x: Tensor, y: Tensor, seed: int, share: float, steps: int, step_size: float | None
) -> tuple[Tensor, bool, bool]:
    """The loss; whether the budget bound the relaxed flips; and whether the draw exceeded it."""
    A = model.adjacency
    C = 1 - 2 * A - torch.eye(len(A)).to(A)
    i, j = torch.triu_indices(len(A), len(A), 1).to(A.device)
    b, rate = round(share * float(A.sum()) / 2), 200 / 1140 * len(x) if step_size is None else step_size

    def loss(s: Tensor) -> Tensor:
        S = torch.zeros_like(A).index_put((i, j), s)
        return F.cross_entropy(model.net(model.features[None], (A + C * (S + S.T))[None])[0, x], y)

    s = torch.zeros(len(i)).to(A)
    for t in range(1, steps + 1):
        s.requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(s), s)
        s = nearest(s.detach() + rate / t**0.5 * slope, b)
    on = Noise(seed, torch.zeros(1, dtype=torch.int64).to(A.device)).uniform(0, s.shape, s.dtype)[0] < s
    kept = s.masked_fill(~on, -1).argsort(descending=True)[:b]
    return loss(torch.zeros_like(s).index_fill(0, kept, 1.0) * on), float(s.sum()) > b - 1e-9, int(on.sum()) > b


def nearest(a: Tensor, b: int) -> Tensor:
    """The point of [0, 1]^P with sum ≤ b nearest to a: Σ clip(a − μ) is linear in μ between the points a and a − 1."""
    if float(a.clamp(0, 1).sum()) <= b:
        return a.clamp(0, 1)
    bends = torch.cat([a, a - 1, a.new_zeros(1)]).clamp_min(0).sort().values
    sums = (a[None] - bends[:, None]).clamp(0, 1).sum(dim=1)  # falls from above b to 0
    k = int((sums >= b).nonzero().max())
    slope = (sums[k + 1] - sums[k]) / (bends[k + 1] - bends[k])
    return (a - bends[k] - (b - sums[k]) / slope).clamp(0, 1)


@pytest.mark.slow
def test_the_loss_is_the_paper_s_also_where_the_budget_binds() -> None:
    met: set[tuple[bool, bool]] = set()
    for case, (share, step_size) in product(range(4), ((0.1, 30.0), (0.3, 12.0), (0.5, 60.0), (0.3, None))):
        model, _ = net_on(case)
        for seed in range(6):
            objective = topology_training(share=share, steps=4, step_size=step_size)
            loss = objective(model, NODES, LABELS, ids=NODES, seed=seed)
            want, bound, above = by_hand(model, NODES, LABELS, seed, share, 4, step_size)
            torch.testing.assert_close(loss, want, rtol=1e-9, atol=1e-12)
            met.add((bound, above))
    assert met >= {(False, False), (True, False), (True, True)}


def test_the_graph_trained_on_is_one_that_the_attack_leads_to() -> None:
    """f of the attack's steps is minus the loss on what the objective asks about; the last is a graph in the budget."""
    for seed in range(3):
        model, net = net_on(seed)
        start, share = model.adjacency, 2.0 / float(model.adjacency.sum() / 2)
        objective = topology_training(share=min(share, 1.0), steps=5)
        loss = objective(model, NODES, LABELS, ids=NODES, seed=4)
        y = torch.zeros(1, V, dtype=torch.int64).index_put_((torch.zeros_like(NODES), NODES), LABELS)
        victim = Victim(net.net, domain=Graphs(), answer="sequence")
        x = model.features[None], start[None]
        result = topology(victim, x, y, budget=2, nodes=NODES, steps=5, trace=True)
        with torch.no_grad():
            ours = [-F.cross_entropy(net.net(x[0], a)[0, NODES], LABELS) for a in net.asked]
        if result.trace is not None:  # the attack has nothing to do where all labels are lost at x
            assert torch.allclose(torch.stack(ours[:5]), result.trace["loss"][:, 0])
        last = net.asked[-1]
        Graphs().check((x[0], last))
        assert int((last != start).sum()) <= 4 and torch.allclose(-loss.detach(), ours[-1]) and len(net.asked) == 6


def test_slope_of_the_loss_by_differences() -> None:
    """The graph is held, as Danskin's theorem has it: a small step of the weights moves no flip that is drawn."""
    model, _ = net_on(1)
    objective = topology_training(share=0.3, steps=3)
    weights = list(model.parameters())
    slopes = torch.autograd.grad(objective(model, NODES, LABELS, ids=NODES, seed=1), weights)
    for k in range(3):
        generator = torch.Generator().manual_seed(k)
        ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in weights]
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, way in zip(weights, ways, strict=True):
                    p.add_(way, alpha=sign * 1e-6)
                values.append(float(objective(model, NODES, LABELS, ids=NODES, seed=1)))
                for p, way in zip(weights, ways, strict=True):
                    p.sub_(way, alpha=sign * 1e-6)
        slope = sum(float((g * way).sum()) for g, way in zip(slopes, ways, strict=True))
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_without_flips_it_is_plain_training() -> None:
    """The control, with dropout: bit for bit that of cross-entropy; and a seed decides about all else."""
    found = []
    for objective in (
        topology_training(share=0.0, steps=2),
        cross_entropy,
        *[topology_training(share=0.9, step_size=50.0)] * 2,
    ):
        model, _ = net_on(2, dropout=0.3)
        before = torch.get_rng_state()
        fit(model, (NODES, LABELS), objective=objective, epochs=3, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        found.append([p.detach() for p in model.parameters()])
    for a, b, same in ((0, 1, True), (2, 3, True), (0, 2, False)):
        assert all(torch.equal(p, q) for p, q in zip(found[a], found[b], strict=True)) == same


def test_crafting_leaves_modes_and_slopes_alone() -> None:
    model, net = net_on(3, dropout=0.5)
    model.train()
    net.net.second.eval()
    loss = topology_training(share=0.3, steps=2)(model, NODES, LABELS, ids=NODES, seed=0)
    assert model.training and net.net.training and not net.net.second.training
    assert loss.requires_grad and all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "wrong",
    [{"share": -0.1}, {"share": 1.1}, {"share": "5%"}, {"steps": 0}, {"steps": 1.5}, {"step_size": 0.0}],
    ids=str,
)
def test_refusals(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        topology_training(**wrong)


def test_another_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model: want an OnGraph, a net on the graph that is attacked, got Linear"):
        fit(nn.Linear(1, 3), (torch.rand(4, 1), LABELS), objective=topology_training(), epochs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "named"),
    [(NODES + 1, r"nodes in 0 … 5, got \[6\]"), (NODES - 1, r"nodes in 0 … 5, got \[-1\]"),
     (NODES.double(), "int64 nodes"), (NODES[:, None], "int64 nodes")],
)  # fmt: skip
@pytest.mark.parametrize("objective", [topology_training(), cross_entropy])
def test_nodes_that_are_none_are_refused_before_any_step(nodes: Tensor, named: str, objective: Any) -> None:
    model, net = net_on()
    with pytest.raises((ValueError, TypeError), match=f"^data: want {named}"):
        fit(model, (nodes, LABELS), objective=objective, epochs=1)
    assert not net.asked


@pytest.mark.parametrize(("place", "named"), [((1, 1), "a loop at"), ((0, 1), "an edge without its way back")])
def test_what_is_no_graph_is_refused_before_any_step(place: tuple[int, int], named: str) -> None:
    model, _ = net_on()
    model.adjacency[place] = 1 - model.adjacency[place]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=rf"^model: want an adjacency .* got {named}"):
        fit(model, (NODES, LABELS), objective=topology_training(steps=1), epochs=1)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_where_the_graph_is() -> None:
    """On the pretend device, as on the CPU; pairs that are given are flipped alone."""
    few = torch.tensor([[0, 1], [2, 4], [3, 5]])

    def run(device: torch.device) -> Tensor:
        model, _ = net_on(1)
        objective = topology_training(share=0.5, steps=3, step_size=20.0, pairs=few)
        return objective(model.to(device), NODES.to(device), LABELS.to(device), ids=NODES, seed=2).detach()

    twins(run, rtol=1e-9, atol=1e-9)
    model, net = net_on(1)
    topology_training(share=0.5, steps=3, step_size=20.0, pairs=few)(model, NODES, LABELS, ids=NODES, seed=2)
    for i, j in (net.asked[-1][0] != model.adjacency).triu(1).nonzero().tolist():
        assert [i, j] in few.tolist()
