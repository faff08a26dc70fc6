"""Aggregators: no order of clients, no origin, no scale; few outliers have no power; and the server can use the rule.

An aggregator is a function (updates, *, …) → (d,) of updates (n, d), one row per client. It may take ``f``, how many
clients may be malicious, ``bound``, the longest update that counts, and ``sigma`` and ``seed`` of noise.
"""

from __future__ import annotations

import copy
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from robustlab.training.updates import aggregate, apply_delta, difference
from tests.suite.kinds.cases import check_manners, of_kind, over, refused
from tests.suite.training.cases import Case, net

D, FAR = 5, 1e6
CASES = of_kind("aggregator")


def honest(n: int, device: torch.device, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Updates that are near each other, and not near 0."""
    generator = torch.Generator().manual_seed(seed)
    return (0.7 + 0.1 * torch.randn(n, D, generator=generator, dtype=torch.float64)).to(device, dtype)


def run(case: Case, updates: Any, **changes: Any) -> Tensor:
    """With the row's arguments, changed; without noise unless it is asked for."""
    quiet = {"sigma": 0.0} if case.takes("sigma") else {}
    given = dict(case.row.quick) | quiet | changes
    return case.function(updates, **{name: value for name, value in given.items() if case.takes(name)})


def check_order(case: Case, device: torch.device) -> None:
    """Who sent what does not matter, also where updates tie."""
    for updates in (honest(5, device), honest(5, device).mul(10).round(), honest(5, device)[:, :1].sub(0.7).sign()):
        results = torch.stack([run(case, updates[list(order)]) for order in list(permutations(range(5)))[::7]])
        torch.testing.assert_close(results, results[:1].expand_as(results), rtol=1e-12, atol=1e-12)


def check_origin_and_scale(case: Case, device: torch.device) -> None:
    """rule(u + c) = rule(u) + c, where nobody is longer than a bound; rule(a·u) = a·rule(u), the bound grown with u."""
    updates = honest(9, device, 3)
    move = torch.linspace(-3, 3, D, dtype=torch.float64, device=device)
    here = run(case, updates, bound=FAR)
    torch.testing.assert_close(run(case, updates + move, bound=FAR), here + move, rtol=1e-9, atol=1e-9)
    for factor in (1e-3, 40.0):
        grown = run(case, factor * updates, bound=factor * 0.5)
        torch.testing.assert_close(grown, factor * run(case, updates, bound=0.5), rtol=1e-9, atol=1e-12)


def check_agreement(case: Case, device: torch.device) -> None:
    """Where all send the same, that is taken; where all but f do, no coordinate leaves what lies between."""
    one = honest(1, device)
    torch.testing.assert_close(run(case, one.repeat(7, 1), bound=FAR), one[0])
    with_one = torch.cat([one.repeat(6, 1), one + 1])
    merged = run(case, with_one, bound=FAR)
    assert bool(((merged >= one[0] - 1e-12) & (merged <= one[0] + 1 + 1e-12)).all())


def check_breakdown(case: Case, device: torch.device) -> None:
    """f of n = 2f + 3 far away, together or apart, first or last: the outcome stays among the honest, or in the bound.

    And it does not depend on how far they are.
    """
    for f in (1, 2) if case.takes("f") else (1, 2, 3):
        good = honest(f + 3, device, f)
        apart = honest(f, device, 9).sub(0.7).sign()
        for bad in (torch.ones(f, D, dtype=good.dtype, device=device), apart, -good[:f]):
            for first in (True, False):
                near, far = (
                    run(case, torch.cat([scale * bad, good] if first else [good, scale * bad]), f=f, bound=0.5)
                    for scale in (FAR, 10 * FAR)
                )
                torch.testing.assert_close(near, far, rtol=1e-6, atol=1e-6)
                if case.takes("bound"):  # each has a share of 1/n in it, and no more
                    without = run(case, torch.cat([0 * bad, good]), f=f, bound=0.5)
                    assert float((near - without).norm()) <= 0.5 * f / (2 * f + 3) * (1 + 1e-9), "more than f bounds"
                else:
                    low, high = good.amin(dim=0), good.amax(dim=0)
                    assert bool(((low - 1e-9 <= near) & (near <= high + 1e-9)).all()), "outliers have moved it"


def check_as_a_rule(case: Case, device: torch.device) -> None:
    """``aggregate`` takes it: (Σ w)·rule of the vectors, in the model's shapes, on its device."""
    model = net().to(device)
    moved = []
    for client in range(7):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.01 * (client + 1))
        moved.append(difference(other, model))
    rule = partial(run, case, bound=FAR)
    delta = aggregate(moved, [0.1] * 7, rule=rule)
    want = 0.7 * rule(torch.stack([d.vector(True) for d in moved]))
    torch.testing.assert_close(delta.vector(True), want, rtol=1e-9, atol=1e-12)
    before = copy.deepcopy(model)
    apply_delta(model, delta)
    assert difference(model, before).norm() > 0


def check_aggregator_manners(case: Case, device: torch.device) -> None:
    """dtype and device of the updates; nothing of them changed; noise by its seed alone."""
    for dtype in (torch.float32, torch.float64):
        updates = honest(7, device, dtype=dtype)
        check_manners(partial(run, case, updates, sigma=0.1), [], [updates])
        merged = run(case, updates, sigma=0.1)
        assert merged.shape == (D,) and merged.dtype == dtype and merged.device == updates.device
    if case.takes("seed"):
        updates = honest(7, device)
        first, same, other = (run(case, updates, sigma=0.1, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, same) and not torch.equal(first, other)


def check_aggregator_bad_input(case: Case, device: torch.device) -> None:
    updates = honest(7, device)
    hole = updates.clone().index_fill_(0, torch.tensor([2], device=device), torch.nan)
    wrong: list[tuple[str, Any, dict[str, Any]]] = [
        ("updates", hole, {}), ("updates", hole.nan_to_num(torch.inf), {}), ("updates", updates.long(), {}),
        ("updates", updates[0], {}), ("updates", updates[:0], {}), ("updates", updates.tolist(), {}),
    ]  # fmt: skip
    values = {"f": (-1, 1.5), "bound": (0.0, -1.0), "sigma": (-0.1,), "m": (0, 7)}
    wrong += [(name, updates, {name: value}) for name, given in values.items() if case.takes(name) for value in given]
    for name, given, changes in wrong:
        with refused(name, changes or name):
            run(case, given, **changes)
    if case.takes("f"):
        with refused("(?:f|updates)", "f = 4 of 7"):
            run(case, updates, f=4)


@over(CASES)
def test_order(case: Case, device: torch.device) -> None:
    check_order(case, device)


@over(CASES)
def test_origin_and_scale(case: Case, device: torch.device) -> None:
    check_origin_and_scale(case, device)


@over(CASES)
def test_agreement(case: Case, device: torch.device) -> None:
    check_agreement(case, device)


@over(CASES)
def test_breakdown(case: Case, device: torch.device) -> None:
    check_breakdown(case, device)


@over(CASES)
def test_as_a_rule(case: Case, device: torch.device) -> None:
    check_as_a_rule(case, device)


@over(CASES)
def test_aggregator_manners(case: Case, device: torch.device) -> None:
    check_aggregator_manners(case, device)


@over(CASES)
def test_aggregator_bad_input(case: Case, device: torch.device) -> None:
    check_aggregator_bad_input(case, device)
