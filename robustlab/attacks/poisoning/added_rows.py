"""Adding rows to training data, and what the attacks on regression tables share: starts, one-hot columns, checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.geometry.keyed import Noise
from robustlab.models.linear import table

Start = Literal["inv_flip", "b_flip", "influence"]
INITS = get_args(Start)
Groups = tuple[tuple[int, ...], ...]


def mix_in(
    x: Tensor,
    y: Tensor,
    added_x: Tensor,
    added_y: Tensor,
    *,
    original_y: Tensor,
    seed: int,
    details: Mapping[str, Any] | None = None,
) -> Poisoned:
    """The rows of (x, y) and the added ones, in a random order, so that a poison's place says nothing."""
    n, rows = len(x), len(x) + len(added_x)
    order = _one_stream(seed, x).permutation(-1, rows)[0]
    return Poisoned(
        torch.cat([x, added_x])[order],
        torch.cat([y, added_y])[order],
        is_poison=order >= n,
        original_y=torch.cat([y, original_y])[order],
        row=torch.where(order < n, order, -1),
        details=details,
    )


def rate_to_count(rate: float, n: int) -> int:
    """round(rate·n), at least 1. Raises ValueError for a rate outside (0, 1], or one that poisons nothing."""
    checks.positive("rate", rate)
    if rate > 1:
        raise ValueError(f"rate: want a number in (0, 1], got {rate}")
    if not round(rate * n):
        raise ValueError(f"rate: want at least one of {n} samples, got {rate}")
    return round(rate * n)


def check_table(x: Tensor, y: Tensor, rate: float, one_hot: Groups) -> int:
    """Raises unless the arguments of an attack on regression fit together; returns the number of poisons."""
    table(x, y)
    for name, value in (("x", x), ("y", y)):
        low, high = (float(end) for end in torch.aminmax(value.detach()))
        if low < 0 or high > 1:
            raise ValueError(f"{name}: want values in [0, 1], got values in [{low}, {high}]")
    for group in one_hot:
        if not all(0 <= column < x.shape[1] for column in group):
            raise ValueError(f"one_hot: want columns in 0 … {x.shape[1] - 1}, got {group}")
    return rate_to_count(rate, len(x))


def starting_rows(x: Tensor, y: Tensor, count: int, init: Start, seed: int) -> tuple[Tensor, Tensor]:
    """Clean rows with another response: (count, d + 1), and the responses (count,) that they had.

    ``"inv_flip"``: 1 − y. ``"b_flip"``: 1 − y rounded to 0 or 1. Both draw rows without replacement. ``"influence"``:
    as ``"b_flip"``, but rows are drawn with replacement in proportion to their leverage x̃ᵀ(X̃ᵀX̃)⁺x̃, x̃ = (x, 1),
    times the change of y.
    """
    flipped = 1 - y if init == "inv_flip" else (1 - y).round()
    noise = _one_stream(seed, x)
    if init == "influence":
        design = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        leverage = (design @ torch.linalg.pinv(design.mT @ design, hermitian=True) * design).sum(dim=1)
        edges = (leverage * (flipped - y).abs()).cumsum(dim=0)
        drawn = noise.uniform(0, (count,), x.dtype)[0] * edges[-1]
        rows = torch.searchsorted(edges, drawn, right=True).clamp_max(len(x) - 1)
    else:
        rows = noise.permutation(0, len(x))[0, :count]
    return torch.cat([x[rows], flipped[rows, None]], dim=1), y[rows]


def round_one_hot(x: Tensor, one_hot: Groups) -> Tensor:
    """In each group of columns the largest becomes 1 and the others 0."""
    x = x.clone()
    for group in one_hot:
        columns = list(group)
        top = x[:, columns].argmax(dim=1)
        x[:, columns] = torch.nn.functional.one_hot(top, len(columns)).to(x.dtype)
    return x


def _one_stream(seed: int, like: Tensor) -> Noise:
    return Noise(seed, torch.zeros(1, dtype=torch.int64, device=like.device))
