"""What happens to a sample depends on nothing else in its batch, and on no randomness but its own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from tests.suite.cases import EPS, Case, batch, over


def assert_same(ours: AttackResult, theirs: AttackResult, atol: float = 1e-6) -> None:
    torch.testing.assert_close(ours.x_adv, theirs.x_adv, rtol=0, atol=atol)
    for field in ("success", "queries", "gradients", "first_success"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
    for name, distance in ours.distances.items():
        if name != "l0":  # an element may differ by the last digit
            torch.testing.assert_close(distance, theirs.distances[name], rtol=1e-6, atol=1e-6)


def part(result: AttackResult, rows: slice | Tensor) -> AttackResult:
    return AttackResult(
        result.x_adv[rows],
        result.success[rows],
        {name: d[rows] for name, d in result.distances.items()},
        result.queries[rows],
        result.gradients[rows],
        result.first_success[rows],
    )


def problem(case: Case, device: torch.device) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    """A batch with easy, hard and already misclassified samples, each with a budget and a target of its own."""
    model, x, y = batch(case, device, n=6)
    y[3] = (y[3] + (2 if case.targeted else 1)) % case.classes
    own = {}
    if case.has_budget:
        base = EPS[case.norm or "linf"]
        factors = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0, 0.1], dtype=x.dtype, device=device)
        own["eps"] = (base * factors).ceil() if case.norm == "l0" else base * factors
    if case.targeted:
        own["target"] = case.target(y)
    return model, x, y, own


def check_batch_independence(case: Case, device: torch.device) -> None:
    """Row i of the batch is the attack on x[i:i+1] with ids=[i], in float64 to 1e-6, counts included."""
    model, x, y, own = problem(case, device)
    whole = case.run(model, x, y, seed=3, **own)
    for i in range(1, len(x)):
        one = slice(i, i + 1)
        alone = case.run(
            model, x[one], y[one], seed=3, ids=torch.tensor([i]), **{key: value[one] for key, value in own.items()}
        )
        assert_same(alone, part(whole, one))


def check_ids_permute(case: Case, device: torch.device) -> None:
    """Samples shuffled together with their ids give shuffled results."""
    model, x, y, own = problem(case, device)
    order = torch.tensor([4, 0, 5, 1, 3, 2], device=device)
    whole = case.run(model, x, y, **own)
    mixed = case.run(model, x[order], y[order], ids=order, **{key: value[order] for key, value in own.items()})
    assert_same(mixed, part(whole, order))


def check_determinism(case: Case, device: torch.device) -> None:
    """Equal seeds give equal results, bit for bit, whatever the global random state is."""
    model, x, y, own = problem(case, device)
    torch.manual_seed(1)
    first = case.run(model, x, y, seed=7, **own)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002
    random.seed(4)
    again = case.run(model, x, y, seed=7, **own)
    assert torch.equal(first.x_adv, again.x_adv)
    assert_same(first, again, atol=0)


def check_scalars_stand_for_all(case: Case, device: torch.device) -> None:
    """One eps or target for all is that value for each."""
    model, x, y = batch(case, device, n=6)
    label = int(y.bincount(minlength=case.classes).argmin())
    x, y = x[y != label], y[y != label]
    one, each = {}, {}
    if case.has_budget:
        one["eps"] = EPS[case.norm or "linf"]
        each["eps"] = torch.full(y.shape, one["eps"], dtype=x.dtype)
    if case.targeted:
        one["target"], each["target"] = label, torch.full_like(y, label)
    assert_same(case.run(model, x, y, **one), case.run(model, x, y, **each), atol=0)


@pytest.mark.slow
@over()
def test_batch_independence(case: Case, device: torch.device) -> None:
    check_batch_independence(case, device)


@pytest.mark.slow
@over()
def test_ids_permute(case: Case, device: torch.device) -> None:
    check_ids_permute(case, device)


@pytest.mark.slow
@over()
def test_determinism(case: Case, device: torch.device) -> None:
    check_determinism(case, device)


@pytest.mark.slow
@over()
def test_scalars_stand_for_all(case: Case, device: torch.device) -> None:
    check_scalars_stand_for_all(case, device)
