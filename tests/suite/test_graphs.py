"""Attacks on graphs under the checks of the suite: every finished row of the domain of graphs, and their rivals.

A check knows a batch as one tensor whose first dimension are the samples. So features and adjacency of a graph stand in
one tensor here, (N, V, F + V), and scores as (N, K, V), of which ``argmax(dim=1)`` are the nodes' labels. A case takes
them apart where the attack is called: it is given a victim of graphs, as its users would.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.suite.test_invariance as invariance
from robustlab.attacker.domain import Graphs
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks.discrete.edge_baselines import dice, greedy_edges, random_edges
from robustlab.teaching.catalogue import Row, rows
from tests.suite.any_domain import OF_ANY_DOMAIN, Check
from tests.suite.cases import Case, batch
from tests.suite.models import Counting, seeded
from tests.suite.other_inputs import Nodes, graphs
from tests.suite.test_pretend import check_nothing_left_behind, check_twin

WORDS, BUDGET = 3, 2  # numbers per node, and pairs that may be flipped


class Together(nn.Module):
    """The toy net of graphs on features and adjacency in one tensor, with scores (N, K, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Nodes()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[..., :WORDS], x[..., WORDS:]).mT


class Apart(nn.Module):
    """A model of one tensor as a net of features and adjacency, with scores (N, V, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        return self.model(torch.cat([features, adjacency], dim=-1)).mT


@dataclass(frozen=True)
class GraphCase(Case):
    """A case whose inputs are graphs."""

    @property
    def shape(self) -> tuple[int, ...]:
        return 6, WORDS + 6

    def net(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        return seeded(Together, seed).to(dtype)

    def points(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        return torch.cat(graphs(n, seed=seed), dim=-1).to(dtype)

    def inside(self, x: Tensor) -> bool:
        Graphs().check((x[..., :WORDS], x[..., WORDS:]))
        return True

    def goal(self, logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
        """One node of six is enough for the goal of these cases."""
        return (logits.argmax(dim=1) != y).any(dim=1)

    def run(self, model: Any, x: Any, y: Any, **changes: Any) -> AttackResult:
        """On a victim of graphs that is else as the one given."""
        given = Victim.of(model) if isinstance(model, Victim) else Victim(model)
        told = {name: getattr(given, name) for name in ("access", "budget", "mode")}
        assert isinstance(given.model, nn.Module)
        victim = Victim(Apart(given.model), domain=Graphs(), answer="sequence", **told)
        parts = (x[..., :WORDS], x[..., WORDS:]) if isinstance(x, Tensor) else x
        result = self.attack(victim, parts, y, **{"share": 1 / 6, **self.arguments(), **changes})
        with torch.inference_mode(False):
            return replace(result, x_adv=torch.cat(result.x_adv, dim=-1))  # type: ignore[arg-type]


ROWS = [row for row in rows("attack", done=True) if "graph" in row.dims]
RIVALS = {  # what each needs; no rows of the catalogue, since they are there to be compared with
    greedy_edges: Row(key="greedy_edges", title="", cite="", kind="attack", chapter="14", dims=("graph",)),
    dice: Row(key="dice", title="", cite="", kind="attack", chapter="14", access="soft", dims=("graph",)),
    random_edges: Row(
        key="random_edges", title="", cite="", kind="attack", chapter="14", access="soft", dims=("graph",)
    ),
}


def rival(key: str, access: str) -> Row:
    quick = {"budget": BUDGET}
    return Row(key=key, title="", cite="", kind="attack", chapter="14", access=access, dims=("graph",), quick=quick)


def attack_of(row: Row) -> Callable[..., AttackResult]:
    module, _, name = (row.callable or "").partition(":")
    return getattr(import_module(module), name)


CASES = [
    *(GraphCase(row, attack_of(row), None, False) for row in ROWS),
    *(GraphCase(rival(attack.__name__, access), attack, None, False) for attack, access in RIVALS.items()),
]


def check_domain(case: GraphCase, device: torch.device) -> None:
    """Graph, budget, distances and success, each from its definition; the features stay."""
    model, x, y = batch(case, device, n=20, seed=2)
    seen = Counting(model)
    result = case.run(seen, x, y, budget=BUDGET)
    assert result.x_adv.shape == x.shape and result.x_adv.dtype == x.dtype and result.x_adv.device == x.device
    assert case.inside(result.x_adv), "no graph"
    assert torch.equal(result.x_adv[..., :WORDS], x[..., :WORDS]), "the features were changed"
    changed = (result.x_adv[..., WORDS:] != x[..., WORDS:]).triu(1).sum(dim=(1, 2))
    assert int(changed.max()) <= BUDGET and result.distances.keys() == {"edges", "features"}
    assert torch.equal(result.distances["edges"], changed)
    assert torch.equal(result.radius("edges").isinf(), ~result.success)
    with torch.no_grad():
        assert torch.equal(case.goal(model(result.x_adv), y), result.success)
    assert bool(result.success.any()) and bool((result.first_success[~result.success] == -1).all())
    won = result.success & (result.queries > 1)
    assert torch.equal(result.first_success[won], result.queries[won] - 1), "a graph with weights was a success"
    none = case.run(seen, x, y, budget=0)
    assert torch.equal(none.x_adv, x)
    calls = seen.calls
    assert len(case.run(seen, x[:0], y[:0])) == 0 and seen.calls == calls


def check_refusals(case: GraphCase, device: torch.device) -> None:
    model, x, y = batch(case, device, n=3)
    seen = Counting(model)
    features, adjacency = x[..., :WORDS], x[..., WORDS:]
    loop, lopsided = adjacency.clone(), adjacency.clone()
    loop[1, 2, 2], lopsided[0, 0, 1] = 1, 1 - lopsided[0, 1, 0]
    for wrong, error, message in (
        ((features, loop), ValueError, r"^x: want an adjacency of 0 and 1, .* got a loop at \(2, 2\) of graph 1$"),
        ((features, lopsided), ValueError, r"^x: want .* symmetric .* got an edge without its way back$"),
        ((features, adjacency / 2), ValueError, "^x: want an adjacency of 0 and 1, .* got a weight of 0.5 at"),
        ((features * torch.nan, adjacency), ValueError, "^x: want finite values"),
        ((features, adjacency.long()), TypeError, "^x: want an adjacency of floats"),
        ((features, adjacency[:, :5]), ValueError, "^x: want shapes"),
        ([features, adjacency], TypeError, r"^x: want a pair \(features, adjacency\) of tensors, got list"),
    ):
        with pytest.raises(error, match=message):
            case.run(seen, wrong, y)
    for budget, error in ((-1, ValueError), (16, ValueError), (0.5, TypeError), ("2", TypeError)):
        with pytest.raises(error, match=r"^budget: want"):
            case.run(seen, x, y, budget=budget)
    for labels in (y[:-1], y[:, :-1], y.double(), y.tolist()):
        with pytest.raises(ValueError, match=r"^y: want a label per node"):
            case.run(seen, x, labels)
    with pytest.raises(TypeError, match=r"^victim: want one of graphs, .* got Box\(0.0, 1.0\)"):
        case.attack(seen, (features, adjacency), y, budget=1)
    assert seen.calls == 0
    with pytest.raises(ValueError, match=r"^y: want labels in 0 … 2"):
        case.run(seen, x, torch.full_like(y, 3))
    if case.row.access == "white":
        with pytest.raises(ValueError, match=r"^access: this attack needs 'white' access"):
            case.run(Victim(seen, access="soft"), x, y)


CHECKS: dict[str, Check] = {
    **OF_ANY_DOMAIN,
    "domain": check_domain,
    "refusals": check_refusals,
    "no_grad": lambda case, device: invariance.check_gradient_mode(case, device, "no_grad"),
    "pretend device": lambda case, device: check_twin(case),
    "left behind": lambda case, device: check_nothing_left_behind(case),
}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_suite(case: GraphCase, check: str, device: torch.device) -> None:
    CHECKS[check](case, device)


# Seen to fail --------------------------------------------------------------------------------------------------------


def planted(change: Callable[..., AttackResult]) -> GraphCase:
    """The attack with one bug: ``change(attack, victim, x, y, **arguments)`` in its place."""
    good = CASES[-1] if change is own_ids else CASES[0]  # what is drawn decides about the random one alone
    return replace(good, attack=functools.wraps(good.attack)(functools.partial(change, good.attack)))


def extra_query(attack: Any, victim: Victim, x: Any, y: Any, **kw: Any) -> AttackResult:
    victim.model(*x)  # type: ignore[operator]
    return attack(victim, x, y, **kw)


def own_ids(attack: Any, victim: Victim, x: Any, y: Any, *, ids: Any = None, **kw: Any) -> AttackResult:
    return attack(victim, x, y, **kw)


def many(attack: Any, victim: Victim, x: Any, y: Any, *, budget: Any, **kw: Any) -> AttackResult:
    return attack(victim, x, y, budget=budget + 1, **kw)


def one_way(attack: Any, victim: Victim, x: Any, y: Any, **kw: Any) -> AttackResult:
    result = attack(victim, x, y, **kw)
    return replace(result, x_adv=(result.x_adv[0], result.x_adv[1].triu()))


def other_features(attack: Any, victim: Victim, x: Any, y: Any, **kw: Any) -> AttackResult:
    result = attack(victim, x, y, **kw)
    return replace(result, x_adv=(result.x_adv[0] + 0.1, result.x_adv[1]))


def weighted_success(attack: Any, victim: Victim, x: Any, y: Any, **kw: Any) -> AttackResult:
    result = attack(victim, x, y, **kw)
    return replace(result, success=result.success | True)


def stale_labels(attack: Any, victim: Victim, x: Any, y: Any, **kw: Any) -> AttackResult:
    """As a file of predictions that another model has written: label 0 for all, whatever this model says."""
    y = torch.zeros(x[1].shape[:2], dtype=torch.int64, device=x[1].device) if y is None else y
    return attack(victim, x, y, **kw)


@pytest.mark.parametrize(
    ("check", "bug"),
    [
        ("counts", extra_query),
        ("batch", own_ids),
        ("domain", many),
        ("domain", one_way),
        ("domain", other_features),
        ("domain", weighted_success),
        ("prediction", stale_labels),
    ],
)
def test_the_checks_catch(check: str, bug: Callable[..., AttackResult]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        CHECKS[check](planted(bug), torch.device("cpu"))
