"""What robust aggregators share: the check of stacked updates, and an order of rows that ignores who sent them."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks


def stacked(updates: Tensor) -> None:
    """Raises unless ``updates`` is a floating (n, d) tensor of finite numbers with n ≥ 1."""
    if not isinstance(updates, Tensor) or not updates.is_floating_point():
        raise TypeError(
            f"updates: want a floating tensor (n, d), got {getattr(updates, 'dtype', type(updates).__name__)}"
        )
    if updates.dim() != 2 or not len(updates):
        raise ValueError(f"updates: want shape (n, d) with at least one row, got {tuple(updates.shape)}")
    checks.finite("updates", updates)


def lexicographic(keys: Tensor) -> Tensor:
    """The order (n,) of rows (n, k) by their first number, ties by the second, and so on: of unequal rows there is one.

    A stable sort from the last column to the first would take k sorts; equal first numbers are rare, so that only
    as many columns are looked at as ties last.
    """
    order = torch.arange(len(keys), device=keys.device)
    ranks = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
    for column in keys.T:
        by_column = column[order].argsort(stable=True)
        order = order[by_column]
        order = order[ranks[order].argsort(stable=True)]
        new = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
        new[1:] = (ranks[order[1:]] != ranks[order[:-1]]) | (column[order[1:]] != column[order[:-1]])
        ranks[order] = new.cumsum(0) - 1
        if bool(new.all()):
            break
    return order
