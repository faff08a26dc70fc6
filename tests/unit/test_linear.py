"""Ridge and LASSO against cvxpy, their optimality conditions, and the data they were summed up from."""

from __future__ import annotations

import cvxpy
import pytest
import torch

from robustlab.data import diabetes
from robustlab.models.linear import (
    LinearModel,
    Moments,
    fit_linear,
    fit_moments,
    mean_squared_error,
    moments,
    regularizer,
)

CASES = [("ridge", 1e-4), ("ridge", 0.05), ("lasso", 2e-4), ("lasso", 3e-3), ("lasso", 0.05), ("lasso", 10.0)]


def loss(model: LinearModel, x: torch.Tensor, y: torch.Tensor, penalty: str, lam: float) -> float:
    omega = model.weight.abs().sum() if penalty == "lasso" else 0.5 * model.weight.square().sum()
    return float((x @ model.weight + model.bias - y).square().mean() + lam * omega)


@pytest.mark.parametrize(("penalty", "lam"), CASES)
def test_objective_is_that_of_a_convex_solver(penalty: str, lam: float) -> None:
    data = diabetes(n_train=80)  # its one-hot columns depend on each other
    x, y = data.x_train, data.y_train
    w, b = cvxpy.Variable(x.shape[1]), cvxpy.Variable()
    omega = cvxpy.norm1(w) if penalty == "lasso" else cvxpy.sum_squares(w) / 2
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x.numpy() @ w + b - y.numpy()) / len(x) + lam * omega))
    problem.solve(solver=cvxpy.CLARABEL)
    assert loss(fit_linear(x, y, penalty=penalty, lam=lam), x, y, penalty, lam) == pytest.approx(
        problem.value, abs=1e-8
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
def test_optimality_conditions(penalty: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(30, 12, generator=generator, dtype=torch.float64)
    x[:, 6:] = x[:, :6] + 0.01 * x[:, 6:]  # strongly correlated columns
    y, lam = torch.rand(30, generator=generator, dtype=torch.float64), 0.004
    model = fit_linear(x, y, penalty=penalty, lam=lam)
    residual = x @ model.weight + model.bias - y
    slope = 2 * x.T @ residual / len(x)
    assert abs(float(residual.mean())) < 1e-12
    if penalty == "ridge":
        torch.testing.assert_close(slope, -lam * model.weight, atol=1e-12, rtol=0)
    else:
        on = model.weight != 0
        assert 0 < int(on.sum()) < 12
        torch.testing.assert_close(slope[on], -lam * model.weight[on].sign(), atol=1e-11, rtol=0)
        assert float(slope[~on].abs().max()) <= lam + 1e-11


def test_a_stack_is_fitted_as_each_of_its_members() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        moments(torch.rand(20, 5, generator=generator).double(), torch.rand(20, generator=generator).double())
        for _ in range(6)
    ]
    stack = Moments(torch.stack([p.mean for p in parts]), torch.stack([p.second for p in parts]))
    for penalty in ("ridge", "lasso"):
        together = fit_moments(stack, penalty, 0.01)
        for i, part in enumerate(parts):
            alone = fit_moments(part, penalty, 0.01)
            torch.testing.assert_close(together.weight[i], alone.weight, atol=1e-10, rtol=0)
            torch.testing.assert_close(together.bias[i], alone.bias, atol=1e-10, rtol=0)
    warm = fit_moments(stack, "lasso", 0.01, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(warm.weight, fit_moments(stack, "lasso", 0.01).weight, atol=1e-10, rtol=0)


def test_error_from_moments_is_the_error_on_the_rows() -> None:
    data = diabetes()
    model = fit_linear(data.x_train, data.y_train, lam=0.01)
    direct = (model(data.x_test) - data.y_test).square().mean()
    torch.testing.assert_close(mean_squared_error(model, moments(data.x_test, data.y_test)), direct)
    assert float(regularizer(model, "ridge")) == pytest.approx(float(model.weight.square().sum()) / 2)


@pytest.mark.parametrize("penalty", ["ridge", "lasso"])
def test_single_precision(penalty: str) -> None:
    data = diabetes()
    double = fit_linear(data.x_train, data.y_train, penalty=penalty, lam=0.002)
    single = fit_linear(data.x_train.float(), data.y_train.float(), penalty=penalty, lam=0.002)
    assert single.weight.dtype == torch.float32
    torch.testing.assert_close(single(data.x_test.float()).double(), double(data.x_test), atol=1e-4, rtol=0)


def test_bad_input() -> None:
    x, y = torch.rand(5, 2), torch.rand(5)
    for kwargs, match in (({"lam": 0.0}, "lam"), ({"penalty": "ols"}, "penalty")):
        with pytest.raises(ValueError, match=match):
            fit_linear(x, y, **kwargs)
    for bad_x, bad_y, match in ((x, y[:4], "y: want 5"), (x * torch.nan, y, "x: want finite"), (x[0], y, "x: want 2")):
        with pytest.raises(ValueError, match=match):
            fit_linear(bad_x, bad_y)
    with pytest.raises(TypeError, match="y: want a floating"):
        fit_linear(x, y.long())


def test_a_lasso_that_has_not_converged_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(30, 6).double(), torch.randn(30).double()
    monkeypatch.setattr("robustlab.models.linear.MAX_STEPS", 2)
    with pytest.warns(UserWarning, match="has not converged in 2 steps"):
        fit_linear(x, y, penalty="lasso", lam=1e-3)
