"""Queries and gradients are what an independent counting module sees, and never more than the budget allows."""

from __future__ import annotations

import re

import pytest
import torch

from robustlab.attacker.victim import Victim
from tests.suite.cases import EPS, Case, batch, over
from tests.suite.models import Counting

BUDGETS = (2, 3, 4, 7, 12)


def check_counts(case: Case, device: torch.device) -> None:
    """In sum over a batch, and sample by sample for each alone."""
    model, x, y = batch(case, device, n=6)
    y[2] = (y[2] + (2 if case.targeted else 1)) % case.classes
    seen = Counting(model)
    whole = case.run(seen, x, y)
    assert int(whole.queries.sum()) == seen.forwards, "queries"
    assert int(whole.gradients.sum()) == seen.backwards, "gradients"
    for i in (0, 2, 3):
        seen = Counting(model)
        one = slice(i, i + 1)
        alone = case.run(seen, x[one], y[one], ids=torch.tensor([i]))
        assert alone.queries.tolist() == [seen.forwards]
        assert alone.gradients.tolist() == [seen.backwards]
        assert torch.equal(alone.queries, whole.queries[one]), "a sample pays for others in its batch"


def check_budget_of_queries(case: Case, device: torch.device, budget: int = 4) -> None:
    """Never more than ``budget`` forward rows per sample; what is returned obeys all other rules.

    An attack that cannot begin with so little says how much it wants, before any question. It can begin with that, and
    is then given one query less than two such rounds cost, with which it may not begin the second.
    """
    model, x, y = batch(case, device, n=5)
    seen = Counting(model)
    try:
        result = case.run(Victim(seen, budget=budget), x, y)
    except ValueError as error:
        found = re.match(r"budget: want at least (\d+), .* got " + str(budget), str(error))
        assert found and case.row.access != "white", f"not the words of a refusal: {error}"
        least = int(found[1])
        assert seen.forwards == 0 and budget < least, "refused too late, or without need"
        check_begins(case, device, least)
        budget = 1 + 2 * (least - 2)  # the check at x, two rounds, and no final check
        result = case.run(Victim(seen, budget=budget), x, y)
    assert int(result.queries.max()) <= budget, "the budget was overdrawn"
    assert int(result.queries.sum()) == seen.forwards and int(result.gradients.sum()) == seen.backwards
    assert case.inside(result.x_adv)
    if case.has_budget and case.norm:
        assert bool((case.length(result.x_adv - x) <= EPS[case.norm] * (1 + 1e-9)).all())
    with torch.no_grad():
        assert torch.equal(case.goal(model(result.x_adv), y), result.success)
    for i in (0, 4):
        seen = Counting(model)
        one = slice(i, i + 1)
        case.run(Victim(seen, budget=budget), x[one], y[one], ids=torch.tensor([i]))
        assert seen.forwards <= budget


def check_begins(case: Case, device: torch.device, least: int) -> None:
    """With one query less than ``least`` it is refused, with these it asks more than the check at x."""
    model, x, y = batch(case, device, n=5)
    with pytest.raises(ValueError, match=rf"^budget: want at least {least},"):
        case.run(Victim(model, budget=least - 1), x, y)
    assert 1 < int(case.run(Victim(model, budget=least), x, y).queries.max()) <= least


def check_large_budget_changes_nothing(case: Case, device: torch.device) -> None:
    model, x, y = batch(case, device, n=4)
    free, rich = case.run(model, x, y), case.run(Victim(model, budget=10**6), x, y)
    assert torch.equal(free.x_adv, rich.x_adv) and torch.equal(free.queries, rich.queries)


@pytest.mark.slow
@over()
def test_counts(case: Case, device: torch.device) -> None:
    check_counts(case, device)


@pytest.mark.slow
@over(budget=BUDGETS)
def test_budget_of_queries(case: Case, device: torch.device, budget: int) -> None:
    check_budget_of_queries(case, device, budget)


@pytest.mark.slow
@over()
def test_large_budget_changes_nothing(case: Case, device: torch.device) -> None:
    check_large_budget_changes_nothing(case, device)
