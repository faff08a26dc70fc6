"""The search for c, against a problem whose smallest c is known."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacker.live import Live
from robustlab.attacker.victim import Victim
from robustlab.attacker.weight_search import first_weight, next_weight
from tests.suite.models import mlp


def samples(x: Tensor) -> Live:
    with Victim(mlp((x.shape[1],))).session(x) as session:
        return session.live()


def test_closes_in_on_the_smallest_c_that_succeeds() -> None:
    """After one success the interval halves at every try; a sample that never succeeds only grows its c."""
    needed, live, tried = (
        torch.tensor([0.003, 1.0, 37.0, 1e9], dtype=torch.float64),
        samples(torch.rand(4, 2).double()),
        [],
    )
    first_weight(live, 0.01)
    for _ in range(20):
        tried.append(live.c)
        won = live.c >= needed
        next_weight(live, won, ~won)
    least = torch.where(torch.stack(tried) >= needed, torch.stack(tried), torch.inf).amin(dim=0)
    assert bool((least[:3] >= needed[:3]).all()) and bool((least[:3] / needed[:3] < 1.001).all())
    growth = torch.stack(tried)[1:8, 3] / torch.stack(tried)[:7, 3]
    torch.testing.assert_close(growth, torch.full_like(growth, 10.0))


def test_each_sample_searches_for_itself() -> None:
    live = samples(torch.rand(3, 2).double())
    first_weight(live, 1.0)
    next_weight(live, torch.tensor([False, False, True]), torch.tensor([True, False, False]), factor=5.0)
    assert live.c.tolist() == [5.0, 1.0, 0.5]
