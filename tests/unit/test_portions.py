"""Portions of a batch: each row once, in order, and no more elements than a cache holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robustlab.geometry.portions import IN_CACHE, portions


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (7, 30_000), (5, 2 * IN_CACHE), (1000, 1, 28, 28), (3,), (4, 0)])
def test_each_row_once(shape: tuple[int, ...]) -> None:
    batch = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = [batch[rows] for rows in portions(batch)]
    assert torch.equal(torch.cat(parts) if parts else batch[:0], batch)
    assert all(len(part) == 1 or part.numel() <= IN_CACHE for part in parts)
    assert len(parts) <= 1 or len(parts[0]) == len(parts[-2]), "as many as fit in each but the last"


def test_portions_of_another_size() -> None:
    batch = torch.arange(1000).reshape(100, 10)
    parts = [batch[rows] for rows in portions(batch, 70)]
    assert torch.equal(torch.cat(parts), batch) and {len(part) for part in parts} == {7, 2}


def test_whole_where_calls_are_launches() -> None:
    batch: Any = SimpleNamespace(shape=torch.Size((10_000, 784)), device=SimpleNamespace(type="cuda"))
    assert list(portions(batch)) == [slice(0, 10_000)]
