"""The search for c, against a problem whose smallest c is known."""

from __future__ import annotations

import torch

from robustlab.attacks.whitebox.weight_search import WeightSearch


def test_closes_in_on_the_smallest_c_that_succeeds() -> None:
    """After one success the interval halves at every try; a sample that never succeeds only grows its c."""
    needed = torch.tensor([0.003, 1.0, 37.0, 1e9], dtype=torch.float64)
    search, rows, tried = WeightSearch(needed[:, None], 0.01, 20), torch.arange(4), []
    for k in range(20):
        tried.append(search.c.clone())
        more = search.next(rows, search.c >= needed)
        assert bool(more.all()) == (k < 19) and bool(more.any()) == (k < 19)
    least = torch.where(torch.stack(tried) >= needed, torch.stack(tried), torch.inf).amin(dim=0)
    assert bool((least[:3] >= needed[:3]).all()) and bool((least[:3] / needed[:3] < 1.001).all())
    growth = torch.stack(tried)[1:8, 3] / torch.stack(tried)[:7, 3]
    torch.testing.assert_close(growth, torch.full_like(growth, 10.0))


def test_each_sample_searches_for_itself() -> None:
    search = WeightSearch(torch.zeros(3, 2), 1.0, 5, factor=5.0)
    assert search.next(torch.tensor([2, 0]), torch.tensor([True, False])).tolist() == [True, True]
    assert search.c.tolist() == [5.0, 1.0, 0.5]
