"""What the judge of 08 goes by: with labels alone, which every API tells, an attack gets all of the points."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from assignments.grading.task import VARIANTS, Lost, load

NAME, KEY = "08_black_box", "the key of the tests"


def by_labels(api: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, budget: int) -> Tensor:
    """RayS: flip ever smaller blocks of the signs, and keep those at which a smaller radius is enough."""
    (n, *_), d, left = x.shape, x[0].numel(), budget - len(x)

    def wrong(points: Tensor, rows: Tensor) -> Tensor:
        told = api(points.clamp(0, 1).reshape(-1, *x.shape[1:]))
        return (told if told.dim() == 1 else told[:, 0].long()) != y[rows]

    done, flat = wrong(x, torch.arange(n)), x.flatten(1)
    sign, radius, out = torch.ones(n, d), torch.where(done, 0.0, 1.0), x.clone()
    block, at = 1, 0
    while len(rows := (~done).nonzero().flatten()) and left >= 8 * len(rows):
        tried = sign[rows] * torch.where(torch.arange(d) * block // d == at, -1.0, 1.0)
        hit = wrong(flat[rows] + 0.999 * radius[rows, None] * tried, rows)
        left -= len(rows)
        rows, tried = rows[hit], tried[hit]
        low, high = torch.zeros(len(rows)), radius[rows]
        for _ in range(7 * bool(len(rows))):
            middle = (low + high) / 2
            inside = wrong(flat[rows] + middle[:, None] * tried, rows)
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
            left -= len(rows)
        sign[rows], radius[rows] = tried, high
        done[rows] = high <= eps
        block, at = (min(2 * block, d), 0) if at + 1 >= block else (block, at + 1)
    moved = done & (radius > 0)
    out[moved] = (flat + radius[:, None] * sign).clamp(0, 1).reshape(x.shape)[moved]
    return out


@pytest.mark.slow
def test_labels_are_enough_for_all_points() -> None:
    """Honest work gets all points under both of the students' APIs, on several courses."""
    for number, tells in enumerate(("labels", "top", "labels", "top")):
        for test in load(NAME).tasks.tests(1000 * number, {"tells": tells}):
            test.judge(by_labels(test.model, *test.arguments))


def test_standing_still_gets_nothing() -> None:
    for test in load(NAME).tasks.tests(5, {"tells": "labels"}):
        with pytest.raises(Lost):
            test.judge(test.arguments[0].clone())


@pytest.mark.slow
def test_nobody_gets_the_scores() -> None:
    told = [load(NAME).draw(KEY, f"{number:02}")["tells"] for number in range(VARIANTS)]
    assert set(told) == {"labels", "top"}
