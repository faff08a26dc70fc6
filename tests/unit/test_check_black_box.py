"""The check of black-box attacks: right ones of several makes pass, each slip gets its cause, and radii are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.teaching import check
from robustlab.teaching.check.black_box import COUNT, EPS, ROWS, affine_case
from robustlab.teaching.metered import Tells
from tests.every import every
from tests.planted import run

FLIPS = """
def attack(api, x, y, eps, budget):
    (n, *_), d = x.shape, x[0].numel()
    if n > budget:
        return x.clone()
    best, found, left = x.clone(), ahead(api(x), y), budget - n
    signs, block, at = torch.ones(n, d), d // 2, 0
    while left > 0:
        rows = (found <= 0).nonzero().flatten()[:left]
        if not len(rows):
            break
        flip = torch.where(torch.arange(d) // block == at, -1.0, 1.0)
        tried = signs[rows] * flip
        new = (x[rows] + eps * tried.reshape(len(rows), *x.shape[1:])).clamp(0, 1)
        value = ahead(api(new), y[rows])
        left -= len(rows)
        better = value > found[rows]
        signs[rows[better]], best[rows[better]] = tried[better], new[better]
        found[rows[better]] = value[better]
        block, at = (max(1, block // 2), 0) if (at + 1) * block >= d else (block, at + 1)
    return best


def ahead(scores, y):
    own = scores.gather(1, y[:, None]).squeeze(1)
    return scores.scatter(1, y[:, None], -1.0).amax(dim=1) - own
"""
ROWS_LEFT, COUNTED, TAKEN = "flatten()[:left]", "left -= len(rows)", "value > found[rows]"
NEW, OUT = "(x[rows] + eps * tried.reshape(len(rows), *x.shape[1:])).clamp(0, 1)", "return best\n"
OPEN, TO_BEST = "(found <= 0).nonzero().flatten()", "= tried[better], new[better]"
BODY = "    (n, *_), d = x.shape, x[0].numel()\n"
WRONG = "rows are not counted, or questions are counted in their place"
ASKS_ON = "it asks on when fooled"
MUTANTS = [
    (WRONG, (ROWS_LEFT, "flatten()"), (COUNTED, "left -= 1")),
    (WRONG, (BODY, BODY + "    budget *= n\n")),
    ("the count is off by a row or two", (ROWS_LEFT, "flatten()[:left + 1]")),
    ("points are asked about before they are clamped", (NEW, NEW.removesuffix(".clamp(0, 1)"))),
    ("no batch of inputs", ("api(new)", "api(new[0])")),
    ("a point outside of the ball around x is returned", (BODY, BODY + "    eps *= 1.5\n")),
    ("no clamp to [0, 1]", (TO_BEST, TO_BEST.replace("new[better]", f"{NEW.removesuffix('.clamp(0, 1)')}[better]"))),
    (ASKS_ON, (OPEN, "torch.arange(n)")),
    (ASKS_ON, (OPEN, "torch.arange(n * bool((found <= 0).any()))")),
    ("no look at the labels of x itself", (OUT, "return torch.where(best == x, x + eps / 2, best).clamp(0, 1)\n")),
    ("last point, not the best", (OUT, "return (x + best) / 2\n")),
    ("hardly a question was asked", (ROWS_LEFT, "flatten()[:0]")),
    ("pixels in 0…255 units", (BODY, BODY + "    eps /= 255\n")),
    ("the loop ends early", ("if not len(rows):", "if len(rows) < n:")),
    ("the wrong way: the worse of two points is kept", (TAKEN, "value < found[rows]")),
    ("answers are not used", ("tried = signs[rows] * flip", "tried = torch.randn(len(rows), d).sign()")),
    ("rows are wasted", ("block, at = (max(1, block // 2), 0)", "block, at = (max(6, block // 2), 0)")),
    ("x was changed in place", (OUT, "return x.copy_(best)\n")),
    ("no return", (OUT, "return None\n")),
    ("wrong shape", (OUT, "return best[:1]\n")),
]


def flips(*replaced: tuple[str, str]) -> Any:
    """Flips of ever smaller blocks of signs, with some text replaced."""
    return run(FLIPS, *replaced)["attack"]


def one_by_one(api: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, budget: int) -> Tensor:
    """The same for each input alone, with its share of the budget."""
    each = budget // len(x)
    return torch.cat([flips()(api, x[i : i + 1], y[i : i + 1], eps, each) for i in range(len(x))])


def by_slopes(api: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, budget: int) -> Tensor:
    """Signs of slopes, estimated along ever more random pairs of points."""
    point, total, rows, left = x.clone(), torch.zeros_like(x), torch.arange(len(x)), budget
    while left >= 21 * len(rows):
        rows = rows[api(point[rows]).argmax(dim=1) == y[rows]]
        left -= 21 * len(rows) + len(x)
        for _ in range(10):
            u = 0.05 * torch.randn(point[rows].shape)
            ends = [(point[rows] + sign * u).clamp(0, 1) for sign in (1, -1)]
            up, down = (api(end).clamp(min=1e-9).log().gather(1, y[rows][:, None]).squeeze(1) for end in ends)
            total[rows] += (down - up).reshape(-1, 1, 1, 1) * (ends[0] - ends[1])
        point[rows] = (x[rows] + eps * total[rows].sign()).clamp(0, 1)
        if not len(rows):
            break
    return point


def by_radius(api: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, budget: int) -> Tensor:
    """RayS, which labels are enough for: blocks of signs are flipped where a smaller radius is then enough."""
    from tests.course.test_black_box import by_labels

    return by_labels(api, x, y, eps, budget)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "tells"),
    [(flips(), "scores"), (by_slopes, "scores"), (by_radius, "labels"), (by_radius, "top")],
    ids=["flips", "slopes", "labels", "top"],
)
def test_right_attacks_pass(attack: Any, tells: Tells, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    check.black_box(attack, tells=tells, seed=1)
    assert "black_box: holds" in capsys.readouterr().out


def test_a_loop_over_inputs_passes_too() -> None:
    check.black_box(one_by_one, tells="scores", shape=(2, 4, 4))


@pytest.mark.slow
@every("cause, replaced", [(cause, replaced) for cause, *replaced in MUTANTS], label=lambda case: case[0])
def test_each_slip_is_named(cause: str, replaced: list[tuple[str, str]]) -> None:
    torch.manual_seed(0)
    try:
        check.black_box(flips(*replaced), tells="scores", shape=(1, 6, 6), hints=2)
    except check.Wrong as wrong:
        assert wrong.cause == cause, wrong.cause
        assert len(wrong.hints) < 2 or "Hint 2" in str(wrong)
    else:
        raise AssertionError("nothing is said")


@every("shape", [(1, 6, 6), (1, 8, 8), (7,)])
def test_the_smallest_radius_is_where_the_best_corner_crosses(shape: tuple[int, ...]) -> None:
    case = affine_case(shape, torch.Generator().manual_seed(3))
    assert bool((case.model(case.x).argmax(dim=1) == case.y).all())
    for share, crossed in ((0.999, False), (1.001, True)):
        radius = share * case.smallest.reshape(-1, *[1] * len(shape))
        corner = case.x + radius * case.uphill
        assert bool(((case.model(corner).argmax(dim=1) != case.y) == crossed).all())
        assert bool((case.x - radius >= 0).all() and (case.x + radius <= 1).all())
        tried = case.x + radius * (2 * torch.rand(500, *case.x.shape) - 1).sign()
        fooled = (case.model(tried.flatten(0, 1)).argmax(dim=1) != case.y.repeat(500)).reshape(500, -1)
        assert not bool(fooled.any()) or crossed
    assert bool(((case.smallest >= 0.7 * EPS) & (case.smallest <= 0.8 * EPS)).all())


def test_random_corners_are_hardly_ever_enough() -> None:
    """And no row lies in the balls of two inputs."""
    for shape in ((1, 6, 6), (1, 8, 8)):
        case = affine_case(shape, torch.Generator().manual_seed(4))
        tried = case.x + EPS * torch.randn(ROWS, *case.x.shape).sign()
        fooled = (case.model(tried.flatten(0, 1)).argmax(dim=1) != case.y.repeat(ROWS)).reshape(ROWS, -1).any(dim=0)
        assert float(fooled.double().mean()) <= 0.2
        apart = torch.cdist(case.x.flatten(1), case.x.flatten(1), p=torch.inf) + 9 * torch.eye(COUNT)
        assert float(apart.min()) > 2 * EPS
