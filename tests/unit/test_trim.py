"""TRIM against all subsets, against its own promise, and against the attacks it was made for."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from robustlab.attacks import regression_poisoning, statistical_poisoning
from robustlab.data import diabetes
from robustlab.defenses import trim
from robustlab.defenses.training.trim import _descend
from robustlab.models.linear import LinearModel, fit_linear


def objective(x: torch.Tensor, y: torch.Tensor, kept: list[int], penalty: str, lam: float) -> float:
    model = fit_linear(x[kept], y[kept], penalty=penalty, lam=lam)
    omega = model.weight.abs().sum() if penalty == "lasso" else model.weight.square().sum() / 2
    return float((model(x[kept]) - y[kept]).square().mean() + lam * omega)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_subsets(penalty: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(10, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([0.5, 0.2]).double() + 0.01 * torch.randn(10, generator=generator, dtype=torch.float64)
    y[:3] = 1 - y[:3]
    lam = 1e-3
    best, rows = min((objective(x, y, list(kept), penalty, lam), kept) for kept in combinations(range(10), 7))
    assert objective(x, y, list(rows), penalty, lam) == best
    fixed = _descend(x, y, torch.tensor(rows), 7, penalty, lam)
    assert fixed[1].tolist() == list(rows), "the best subset of all is left alone"
    _, found = trim((x, y), n_clean=7, penalty=penalty, lam=lam, restarts=30, seed=seed)
    end = found.details["objective"][-1]
    assert end == pytest.approx(objective(x, y, (~found.flagged).nonzero()[:, 0].tolist(), penalty, lam), abs=1e-12)
    assert end >= best - 1e-12
    assert end == pytest.approx(best, rel=1e-9)
    for init in ("random", "all"):
        assert trim((x, y), n_clean=7, penalty=penalty, lam=lam, init=init)[1].details["objective"][-1] >= best - 1e-12


@pytest.mark.parametrize("init", ["random", "all"])
@pytest.mark.parametrize("seed", range(6))
def test_the_objective_never_rises_and_the_end_is_a_fixed_point(init: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(60, 4, generator=generator).double(), torch.rand(60, generator=generator).double()
    model, found = trim((x, y), n_clean=41, lam=0.01, init=init, seed=seed)
    trace = found.details["objective"]
    assert len(trace) > 1 and all(b <= a + 1e-15 for a, b in pairwise(trace))
    assert int(found.flagged.sum()) == 19
    kept = ~found.flagged
    again = fit_linear(x[kept], y[kept], lam=0.01)
    torch.testing.assert_close(model.weight, again.weight)
    residual = (model(x) - y).square()
    assert float(residual[kept].max()) <= float(residual[~kept].min())
    torch.testing.assert_close(found.scores, residual)
    assert torch.equal(found.flagged, found.scores > found.threshold)


def test_near_the_clean_error_where_plain_regression_is_not() -> None:
    data = diabetes()
    x, y = data.x_train, data.y_train

    def test_error(model: LinearModel) -> float:
        return float((model(data.x_test) - data.y_test).square().mean())

    model = fit_linear(x, y, lam=0.01)
    clean = test_error(model)
    for poisoned in (
        regression_poisoning((x, y), rate=0.1, lam=0.01, init="b_flip", one_hot=data.one_hot, passes=3),
        statistical_poisoning((x, y), model=model, rate=0.25, one_hot=data.one_hot),
    ):
        repaired, found = trim(poisoned.data, n_clean=300, lam=0.01)
        assert test_error(fit_linear(*poisoned.data, lam=0.01)) > 2 * clean
        assert test_error(repaired) < 1.1 * clean
        assert found.score(poisoned.is_poison)["true_positive_rate"] > 0.7


def test_small_starts_find_what_large_ones_miss() -> None:
    """Two lines: 70 rows on one, 30 on the other, which a fit to many rows always mixes."""
    x = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]
    y = torch.where(torch.arange(100) % 10 < 3, 1 - x[:, 0], 0.2 * x[:, 0])
    _, found = trim((x, y), n_clean=70, lam=1e-6, start_rows=3, restarts=50)
    assert bool((found.flagged == (torch.arange(100) % 10 < 3)).sum() >= 98)  # the lines cross: two rows lie on both
    assert found.details["objective"][-1] < 1e-5
    # n_clean rows of which all are drawn are the plain TRIM
    a, b = (trim((x, y), n_clean=70, start_rows=s)[1].scores for s in (None, 70))
    assert torch.equal(a, b)


def test_all_rows_kept_is_the_plain_fit_and_seeds_repeat() -> None:
    data = diabetes(n_train=50)
    x, y = data.x_train, data.y_train
    for init in ("random", "all"):
        model, found = trim((x, y), n_clean=50, init=init)
        torch.testing.assert_close(model.weight, fit_linear(x, y).weight)
        assert not bool(found.flagged.any())
    first, second = (trim((x, y), n_clean=40, seed=7)[1].scores for _ in range(2))
    assert torch.equal(first, second)


def test_bad_input() -> None:
    x, y = torch.rand(5, 2), torch.rand(5)
    for kwargs, match in (
        ({"n_clean": 6}, "n_clean"), ({"n_clean": 0}, "n_clean"), ({"n_clean": 3, "lam": 0.0}, "lam"),
        ({"n_clean": 3, "init": "none"}, "init"), ({"n_clean": 3, "restarts": 0}, "restarts"),
        ({"n_clean": 3, "start_rows": 9}, "start_rows"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            trim((x, y), **kwargs)
