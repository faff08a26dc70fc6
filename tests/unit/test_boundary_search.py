"""What hard-label attacks share: where they begin, what bisection ends on, budgets, and what a label cannot undo."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import boundary, hsja, opt, sign_opt
from robustlab.attacks.hardlabel.boundary_search import Search, Starts, blend, halvings_for
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Affine, Counting, mlp
from tests.suite.oracles import affine_problem
from tests.suite.test_success import Recording

SHAPE = (6,)
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "boundary": boundary,
    "hsja": partial(hsja, init_evals=20),
    "opt": partial(opt, q=3, tries=10),
    "sign_opt": partial(sign_opt, k=20, tries=10),
}
each = pytest.mark.parametrize("name", ATTACKS)


def problem(n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = mlp(SHAPE, 3, dtype), noise_box(n, SHAPE, dtype)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def half_space(d: int, offset: float) -> Affine:
    """Class 1 where the first element is above the offset."""
    weight = torch.zeros(2, d, dtype=torch.float64)
    weight[1, 0] = 1.0
    return Affine(weight, torch.tensor([0.0, -offset], dtype=torch.float64))


class OnlyThere(nn.Module):
    """Class 1 at these points, up to rounding, class 0 everywhere else."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = points

    def forward(self, x: Tensor) -> Tensor:
        there = ((x[:, None] - self.points).flatten(2).abs() < 1e-12).all(2).any(1)
        return torch.stack([~there, there], dim=1).to(x.dtype)


# Where an attack begins ----------------------------------------------------------------------------------------------


@each
def test_no_start_is_a_failure_that_is_named(name: str) -> None:
    """Rows 1 and 3 have no point that meets the goal but one that is not tried."""
    x = 0.2 + 0.5 * noise_box(5, SHAPE, torch.float64)
    init = x + 0.01
    seen = Counting(OnlyThere(init[[0, 2, 4]]))
    with pytest.warns(UserWarning, match=r"^init: want a start .* found none for rows \[1, 3\].* pool=") as told:
        result = ATTACKS[name](seen, x, torch.zeros(5, dtype=torch.int64), init=init, tries=7, steps=2)
    assert len(told) == 1 and told[0].filename == __file__
    assert result.success.tolist() == [True, False, True, False, True]
    assert torch.equal(result.x_adv[[1, 3]], x[[1, 3]]) and bool(result.radius("l2")[[1, 3]].isinf().all())
    assert result.queries[[1, 3]].tolist() == [1 + 7] * 2 and seen.forwards == int(result.queries.sum())


def starts_asked(**arguments: object) -> tuple[Tensor, list[Tensor]]:
    """x and the points at which an attack asks for a start, which it never finds."""
    _, x, y = problem(4)
    seen = Recording(OnlyThere(x[:0]))
    with pytest.warns(UserWarning, match="^init"):
        hsja(seen, x, torch.zeros_like(y), **arguments)  # type: ignore[arg-type]
    return x, seen.points[1:]


def test_starts_are_init_then_the_pool_nearest_first_then_noise() -> None:
    generator = torch.Generator().manual_seed(5)
    pool = torch.rand(9, *SHAPE, generator=generator, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0])
    init = torch.rand(4, *SHAPE, generator=generator, dtype=torch.float64)
    x, asked = starts_asked(init=init, pool=(pool, label), tries=9)
    assert len(asked) == 9 and torch.equal(asked[0], init)
    fits = [i for i in range(9) if label[i] != 0]
    for row in range(4):
        near = sorted(fits, key=lambda i: float((pool[i] - x[row]).norm()))
        for k, i in enumerate(near, start=1):
            assert torch.equal(asked[k][row], pool[i])
        for points in asked[1 + len(near) :]:
            assert not bool((points[row] == pool).all(1).any())


def test_noise_fills_the_box_and_blends_are_between() -> None:
    x, asked = starts_asked(tries=60)
    first = torch.stack(asked)[0]
    assert float(first.min()) < 0.2 and float(first.max()) > 0.8
    moved = (torch.stack(asked[1:]) - x).flatten(2).norm(dim=2) / (first - x).flatten(1).norm(dim=1)
    assert float(moved.min()) < 0.1 and float(moved.max()) > 0.7
    assert torch.equal(torch.stack(asked).clamp(0, 1), torch.stack(asked))


def test_a_pool_leads_to_the_target() -> None:
    model, x, y = problem(12)
    others = noise_box(60, SHAPE, torch.float64, seed=9)
    with torch.no_grad():
        label = model(others).argmax(1)
    found = label.unique()
    target = torch.where(y == found[0], found[1], found[0])
    for attack in ATTACKS.values():
        result = attack(model, x, y, target=target, pool=(others, label), steps=5)
        with torch.no_grad():
            assert bool(result.success.all()) and torch.equal(model(result.x_adv).argmax(1), target)
        assert result.first_success.tolist() == [2] * 12, "the first image of the pool meets the goal"


def test_bad_starts_are_refused() -> None:
    model, x, y = problem(3)
    with pytest.raises(ValueError, match=r"^pool: want samples of shape \(6,\), got \(5,\)"):
        hsja(model, x, y, pool=(torch.rand(4, 5).double(), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"^init: want values in"):
        hsja(model, x, y, init=x + 2)


# The boundary --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bisection_ends_on_the_adversarial_side_of_the_boundary(dtype: torch.dtype) -> None:
    """On a half-space the boundary between x and a far point is at t* = (offset − x_0)/(far_0 − x_0)."""
    n, halvings = 50, 8
    x = torch.linspace(0.0, 0.4, n)[:, None].expand(n, 4).to(dtype).contiguous()
    far = torch.full_like(x, 1.0)
    model = half_space(4, 0.5).to(dtype)
    with Victim(model, access="hard").session(x, torch.zeros(n, dtype=torch.int64), access="hard") as session:
        search = Search(session, get_norm("l2"), seed=0)
        live = search.begin(Starts(far, None, 1))
        search.bisect(live, blend, halvings)
        at = live.points[:, 0].to(dtype)
        assert bool((at > 0.5).all()), "on the wrong side in the dtype of the model"
        share = (0.5 - live.x[:, 0]) / (1 - live.x[:, 0])
        over = (live.points[:, 0] - live.x[:, 0]) / (1 - live.x[:, 0]) - share
        assert float(over.max()) <= 2.0**-halvings + 2 * torch.finfo(dtype).eps
        assert session.queries.tolist() == [1 + 1 + halvings] * n, "as many questions for each"
        result = search.result()
    assert result.x_adv.dtype == dtype and bool(result.success.all())
    assert result.queries.tolist() == [1 + 1 + halvings + 2] * n


def test_the_end_is_a_little_off_the_boundary() -> None:
    """1e-4 of the distance, asked about once and checked once more."""
    model, x, y = problem(30)
    seen = Recording(model)
    result = hsja(Victim(seen, access="hard"), x, y, steps=3, init_evals=5)
    off, last = seen.points[-2], seen.points[-1]
    assert torch.equal(off, last) and torch.equal(last, result.x_adv)
    with torch.no_grad():
        inner = x + (last - x) * (1 - 2e-5)
        assert torch.equal(model(inner).argmax(1) != y, result.success)


def test_accuracy_has_a_floor() -> None:
    assert halvings_for(0.01, torch.float64) == 7 and halvings_for(1.0, torch.float64) == 0
    assert halvings_for(1e-30, torch.float32) == 20 and halvings_for(1e-30, torch.float64) == 49


# Budgets -------------------------------------------------------------------------------------------------------------


def least_budget(attack: Callable[..., AttackResult], *problem: object) -> int:
    with pytest.raises(ValueError, match=r"^budget: want at least \d+, .* the first round .* got 2$") as error:
        attack(Victim(problem[0], budget=2), *problem[1:])  # type: ignore[arg-type]
    return int(str(error.value).split("at least ")[1].split(",")[0])


@pytest.mark.slow
@each
def test_a_larger_budget_never_returns_a_farther_point(name: str) -> None:
    """Wherever the budget ends the attack, in a bisection, among directions or before the last step: best so far."""
    model, x, y = problem(4)
    least = least_budget(ATTACKS[name], model, x, y)
    before = torch.full((4,), torch.inf, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for budget in (least, least + 1, least + 7, least + 30, least + 120):
            seen = Counting(model)
            result = ATTACKS[name](Victim(seen, access="hard", budget=budget), x, y, tries=10)
            assert int(result.queries.max()) <= budget and int(result.queries.sum()) == seen.forwards
            now = result.radius("l2")
            assert bool((now <= before * (1 + 2e-4)).all()), f"farther than with fewer queries, at {budget}"
            before = now
    assert bool(before.isfinite().all())


@each
def test_the_least_budget_pays_for_more_than_a_start(name: str) -> None:
    model, x, y = problem(8)
    least = least_budget(ATTACKS[name], model, x, y)
    result = ATTACKS[name](Victim(model, budget=least), x, y, init=1 - x)
    assert bool((result.queries[result.success] > 5).all())


# What a label cannot undo --------------------------------------------------------------------------------------------


@pytest.mark.slow
@each
def test_where_only_the_start_meets_the_goal_the_attack_ends_there(name: str) -> None:
    """No step ever succeeds: nothing is halved, grown or drawn without end."""
    x = 0.2 + 0.5 * noise_box(4, SHAPE, torch.float64)
    init = (x + 0.05 * torch.arange(1, 5, dtype=torch.float64)[:, None]).clamp(0, 1)
    seen = Counting(OnlyThere(init))
    more = {"steps": 10} if name == "hsja" else {}
    result = ATTACKS[name](Victim(seen, access="hard"), x, torch.zeros(4, dtype=torch.int64), init=init, **more)
    assert bool(result.success.all())
    torch.testing.assert_close(result.x_adv, init, rtol=0, atol=1e-12)
    assert seen.forwards == int(result.queries.sum()) < 4 * 8000


@pytest.mark.slow
@each
def test_every_question_is_in_the_box_and_measured_as_it_is(name: str) -> None:
    """A box that is in the way of nearly all directions; what is returned was asked about, and is at its distance."""
    model, x, y = affine_problem(3, 8, 6, torch.device("cpu"), spread=1.0)
    x = x.sign() * x.abs().clamp_min(0.8)
    with torch.no_grad():
        y = model(x).argmax(1)
    seen = Recording(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = ATTACKS[name](Victim(seen, bounds=(-1.0, 1.0), access="hard", budget=400), x, y)
    asked = torch.cat(seen.points)
    assert float(asked.abs().max()) <= 1.0
    won = result.success
    assert int(won.sum()) >= 3
    for i in won.nonzero().flatten().tolist():
        assert bool((asked == result.x_adv[i]).all(1).any())
    torch.testing.assert_close(result.distances["l2"], (result.x_adv - x).norm(dim=1))
    assert math.isfinite(float(result.distances["l2"].sum()))


@pytest.mark.parametrize("name", ["boundary", "opt", "sign_opt"])  # HSJA's probes around a point are not measured
def test_the_nearest_success_of_all_that_were_asked_about_is_returned(name: str) -> None:
    """Whichever question the budget ends with."""
    model, x, y = problem(1)
    least = least_budget(ATTACKS[name], model, x, y)
    for budget in (least, least + 9, least + 31):
        seen = Recording(model)
        result = ATTACKS[name](Victim(seen, access="hard", budget=budget), x, y)
        asked = torch.cat(seen.points)
        with torch.no_grad():
            met = model(asked).argmax(1) != y
        nearest = float((asked - x).norm(dim=1)[met].min())
        assert bool(result.success) and float(result.distances["l2"]) <= nearest * (1 + 1.01e-4)
