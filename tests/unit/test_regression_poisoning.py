"""Poisoning of regression: the gradient against refits, the search against its promise, the starts against counts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from robustlab.attacks import regression_poisoning, statistical_poisoning
from robustlab.attacks.poisoning.added_rows import INITS, round_one_hot, starting_rows
from robustlab.attacks.poisoning.regression_poisoning import outer_gradient, outer_value, poison_gradient
from robustlab.data import diabetes
from robustlab.models.linear import LinearModel, fit_linear, moments

DATA = diabetes(n_train=120)
LAM = {"ridge": 0.01, "lasso": 0.002}


def test_mse(x: Tensor, y: Tensor, penalty: str = "ridge") -> float:
    model = fit_linear(x, y, penalty=penalty, lam=LAM[penalty])
    return float((model(DATA.x_test) - DATA.y_test).square().mean())


test_mse.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("on_validation", [False, True])
@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
def test_gradient_is_that_of_refitting(penalty: str, on_validation: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(40, 6, generator=generator, dtype=torch.float64)
    y = (x @ torch.tensor([0.6, -0.3, 0.0, 0.4, 0.0, 0.0]).double() + 0.3).clamp(0, 1)
    x_goal, y_goal = (torch.rand(15, 6, generator=generator).double(), torch.rand(15, generator=generator).double())
    if not on_validation:
        x_goal, y_goal = x, y
    poison = torch.rand(5, 7, generator=generator, dtype=torch.float64)
    lam = 0.01
    goal, goal_lam = moments(x_goal, y_goal), 0.0 if on_validation else lam

    def refit(z: Tensor) -> tuple[LinearModel, Tensor]:
        model = fit_linear(torch.cat([x, z[:, :-1]]), torch.cat([y, z[:, -1]]), penalty=penalty, lam=lam)
        omega = model.weight.square().sum() / 2 if penalty == "ridge" else model.weight.abs().sum()
        return model, (model(x_goal) - y_goal).square().mean() + goal_lam * omega

    model, value = refit(poison)
    torch.testing.assert_close(outer_value(model, goal, penalty, goal_lam), value)
    if penalty == "lasso":
        assert bool((model.weight == 0).any())
    data = moments(torch.cat([x, poison[:, :-1]]), torch.cat([y, poison[:, -1]]))
    outer = outer_gradient(model, goal, penalty, goal_lam)
    found = poison_gradient(poison, model, outer, data, 45, penalty, lam)
    expected, h = torch.zeros_like(poison), 1e-5
    for i in range(poison.shape[0]):
        for j in range(poison.shape[1]):
            step = torch.zeros_like(poison)
            step[i, j] = h
            expected[i, j] = (refit(poison + step)[1] - refit(poison - step)[1]) / (2 * h)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
def test_the_objective_never_falls_and_is_what_it_says(penalty: str, init: str) -> None:
    x, y, lam = DATA.x_train, DATA.y_train, LAM[penalty]
    poisoned = regression_poisoning((x, y), rate=0.1, penalty=penalty, lam=lam, init=init, passes=3)
    trace = poisoned.details["objective"]
    assert all(b >= a for a, b in pairwise(trace))
    assert trace[-1] > 1.2 * trace[0]
    model = fit_linear(*poisoned.data, penalty=penalty, lam=lam)
    omega = model.weight.square().sum() / 2 if penalty == "ridge" else model.weight.abs().sum()
    assert trace[-1] == pytest.approx(float((model(x) - y).square().mean() + lam * omega), rel=1e-8)


def test_the_search_stays_where_nothing_is_better() -> None:
    x, y = DATA.x_train[:20, 6:9], DATA.y_train[:20]
    poisoned = regression_poisoning((x, y), rate=0.1, lam=0.01, passes=25, tol=0.0)
    trace = poisoned.details["objective"]
    assert len(trace) > 20 and all(b >= a for a, b in pairwise(trace))


def test_moving_responses_too_beats_the_start_and_every_attack_hurts() -> None:
    x, y = DATA.x_train, DATA.y_train
    clean = test_mse(x, y)
    start, _ = starting_rows(x, y, 30, "inv_flip", 0)
    flips = test_mse(torch.cat([x, start[:, :-1]]), torch.cat([y, start[:, -1]]))
    kwargs = {"rate": 0.25, "lam": 0.01, "one_hot": DATA.one_hot, "passes": 4}
    both = test_mse(*regression_poisoning((x, y), **kwargs).data)
    features = test_mse(*regression_poisoning((x, y), optimize="x", **kwargs).data)
    statistical = test_mse(
        *statistical_poisoning((x, y), model=fit_linear(x, y, lam=0.01), rate=0.25, one_hot=DATA.one_hot).data
    )
    assert clean < flips < features < both
    assert statistical > 1.5 * clean


def test_poisons_are_legal_rows_mixed_among_the_clean_ones() -> None:
    x, y = DATA.x_train, DATA.y_train
    model = fit_linear(x, y)
    for poisoned in (
        regression_poisoning((x, y), rate=0.1, one_hot=DATA.one_hot, passes=1),
        statistical_poisoning((x, y), model=model, rate=0.1, one_hot=DATA.one_hot),
    ):
        bad = poisoned.is_poison
        assert int(bad.sum()) == 12 and len(poisoned) == 132
        assert torch.equal(poisoned.x[~bad], x[poisoned.row[~bad]]) and torch.equal(
            poisoned.y[~bad], y[poisoned.row[~bad]]
        )
        assert poisoned.row[~bad].sort().values.tolist() == list(range(120))
        assert float(poisoned.x.min()) >= 0 and float(poisoned.x.max()) <= 1
        assert float(poisoned.y.min()) >= 0 and float(poisoned.y.max()) <= 1
        for group in DATA.one_hot:
            columns = poisoned.x[bad][:, list(group)]
            assert torch.equal(columns.sort(dim=1).values[:, :-1], torch.zeros(12, len(group) - 1).double())
            assert torch.equal(columns.amax(dim=1), torch.ones(12).double())
        where = bad.nonzero()[:, 0]
        assert int(where[-1] - where[0]) > 12


def test_statistical_poisons_are_corners_on_the_far_side_of_the_model() -> None:
    x, y = DATA.x_train, DATA.y_train
    model = fit_linear(x, y)
    poisoned = statistical_poisoning((x, y), model=model, rate=1.0)
    bad = poisoned.x[poisoned.is_poison]
    assert set(bad.unique().tolist()) == {0.0, 1.0}
    guess, response = model(bad), poisoned.y[poisoned.is_poison]
    assert bool(((response - guess).abs() >= (1 - response - guess).abs()).all())
    # a corner's features have the data's means on the right side of ½ most of the time
    sure = (x.mean(dim=0) - 0.5).abs() > 2 * x.std(dim=0)
    assert bool((bad.mean(dim=0)[sure].round() == x.mean(dim=0)[sure].round()).all())


def test_a_model_that_answers_in_columns_is_refused() -> None:
    x, y = DATA.x_train, DATA.y_train
    with pytest.raises(ValueError, match=r"^model: want responses \(p,\), here \(12,\), got shape \(12, 1\)$"):
        statistical_poisoning((x, y), model=lambda rows: rows[:, :1], rate=0.1)


def test_starts() -> None:
    x, y = DATA.x_train, DATA.y_train
    inv, own = starting_rows(x, y, 50, "inv_flip", 1)
    torch.testing.assert_close(inv[:, -1], 1 - own)
    rows = [int((x == row).all(dim=1).nonzero()[0]) for row in inv[:, :-1]]
    assert len(set(rows)) == 50, "no row starts two poisons"
    flip, own = starting_rows(x, y, 50, "b_flip", 1)
    assert torch.equal(flip[:, -1], (own < 0.5).double())
    # influence: rows in proportion to leverage times change, by a chi-squared test at 1e-4
    design = torch.cat([x[:, 6:], torch.ones(120, 1).double()], dim=1)
    hat = design @ torch.linalg.inv(design.T @ design) @ design.T
    weight = hat.diagonal() * ((y < 0.5).double() - y).abs()
    drawn, _ = starting_rows(x[:, 6:], y, 20_000, "influence", 2)
    counts = (torch.cdist(drawn[:, :-1], x[:, 6:]).argmin(dim=1)).bincount(minlength=120)
    expected = 20_000 * weight / weight.sum()
    assert float(((counts - expected) ** 2 / expected).sum()) < 185  # 119 degrees of freedom


def test_round_one_hot_takes_the_largest() -> None:
    x = torch.tensor([[0.2, 0.9, 0.7, 0.1], [0.6, 0.5, 0.3, 0.4]])
    assert round_one_hot(x, ((0, 1), (2, 3))).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert x[0, 0] == torch.tensor(0.2)


def test_bad_input() -> None:
    x, y = DATA.x_train, DATA.y_train
    for kwargs, match in (
        ({"rate": 0.0}, "rate"), ({"rate": 1.5}, "rate"), ({"rate": 0.1, "lam": -1.0}, "lam"),
        ({"rate": 0.1, "init": "flip"}, "init"), ({"rate": 0.1, "optimize": "y"}, "optimize"),
        ({"rate": 0.1, "passes": 0}, "passes"), ({"rate": 0.1, "one_hot": ((0, 99),)}, "one_hot"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            regression_poisoning((x, y), **kwargs)
    with pytest.raises(ValueError, match="x: want values in"):
        regression_poisoning((x + 1, y), rate=0.1)
