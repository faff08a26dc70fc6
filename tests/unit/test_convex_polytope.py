"""Convex polytope: projection and inner problem against convex solvers, and the hull in every net."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import convex_polytope, feature_collision
from robustlab.attacks.poisoning.convex_polytope import coefficients
from robustlab.geometry.projections import onto_simplex


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex(rows: Tensor, tol: float = 1e-9) -> bool:
    return bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < tol).all())


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_projection_is_the_nearest_point_of_the_simplex(scale: float) -> None:
    import cvxpy as cp

    rows = scale * normal(5, 6)
    ours, z = onto_simplex(rows), cp.Variable((5, 6))
    constraints = [z >= 0, cp.sum(z, axis=1) == 1]
    cp.Problem(cp.Minimize(cp.sum_squares(z - rows.numpy())), constraints).solve(solver=cp.CLARABEL)
    assert simplex(ours)
    torch.testing.assert_close(ours, torch.from_numpy(z.value), atol=1e-4, rtol=0)
    torch.testing.assert_close(onto_simplex(ours), ours)


def test_projection_of_ties_and_of_a_single_element() -> None:
    torch.testing.assert_close(onto_simplex(torch.full((1, 4), 7.0)), torch.full((1, 4), 0.25))
    torch.testing.assert_close(onto_simplex(torch.tensor([[-3.0], [9.0]])), torch.ones(2, 1))


def test_inner_problem_against_a_quadratic_program() -> None:
    import cvxpy as cp

    hulls = [normal(6, 9, seed=1), normal(6, 4, seed=2), 0.01 * normal(6, 30, seed=3)]
    points = [hulls[0][:3].mean(dim=0), normal(4, seed=4), 0.01 * normal(30, seed=5)]  # the first lies in the hull
    ours = coefficients(hulls, points, steps=5000, tol=1e-14)
    assert simplex(ours)
    for hull, point, c in zip(hulls, points, ours, strict=True):
        z = cp.Variable(6)
        aim = cp.sum_squares(hull.T.numpy() @ z - point.numpy()) / float(point.square().sum())
        best = cp.Problem(cp.Minimize(aim), [z >= 0, cp.sum(z) == 1]).solve(solver=cp.CLARABEL)
        assert float((c @ hull - point).square().sum() / point.square().sum()) <= best + 1e-7
    assert float((ours[0] @ hulls[0] - points[0]).norm()) < 1e-4


def test_every_step_of_the_inner_solver_is_in_the_simplex() -> None:
    hulls, points = [normal(5, 7, seed=1)], [normal(7, seed=2)]
    for steps in (1, 2, 3, 10):
        assert simplex(coefficients(hulls, points, steps=steps, tol=1e-14))


def nets(count: int, dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = (6, 9, 7)[:count]
        return [nn.Sequential(nn.Linear(8, w), nn.Tanh(), nn.Linear(w, 2)).to(dtype) for w in widths]


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.rand(40, 8, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return x, torch.arange(40) % 2, torch.full((1, 8), 0.5, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_target_ends_in_the_hull_of_every_surrogate(dropout: float) -> None:
    x, y, x_target = data()
    models = nets(3)
    kwargs = {"rate": 0.2, "eps": 0.4, "dropout": dropout, "inner_steps": 15}
    found = convex_polytope((x, y), x_target, 1, model=models, steps=100, **kwargs)
    early = convex_polytope((x, y), x_target, 1, model=models, steps=1, **kwargs)
    c, residual = found.details["coefficients"], found.details["residual"]
    assert c.shape == (3, 8) and simplex(c)
    assert bool((residual < 0.05).all()) and bool((residual < early.details["residual"]).all())
    for model, row, r in zip(models, c, residual, strict=True):  # measured again, by hand
        features, goal = model[:-1](found.x[found.is_poison]), model[:-1](x_target)[0]
        torch.testing.assert_close((row @ features - goal).norm() / goal.norm(), r)


def test_a_hull_asks_for_less_than_collisions() -> None:
    """The mean of collided poisons is in the hull, so that the polytope's best residual is no larger."""
    x, y, x_target = data()
    models = nets(1)
    ball = {"rate": 0.1, "eps": 0.1}
    hull = convex_polytope((x, y), x_target, 1, model=models, steps=100, dropout=0.0, **ball)
    collided = feature_collision((x, y), x_target, 1, model=models[0], beta=1e-6, steps=200, **ball)
    goal = models[0][:-1](x_target)[0].detach().norm()
    assert float(hull.details["residual"]) < float(collided.details["feature_distance"].min() / goal)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_budget_box_labels_and_callers_things(dtype: torch.dtype) -> None:
    x, y, x_target = data(dtype)
    x[y == 1] *= 0.05  # many pixels near the edge of the box
    before, models = x.clone(), nets(2, dtype)
    models[0].train()
    models[1].eval()
    first = convex_polytope((x, y), x_target, 1, model=models, rate=0.15, eps=0.1, steps=20)
    again = convex_polytope((x, y), x_target, 1, model=models, rate=0.15, eps=0.1, steps=20)
    other = convex_polytope((x, y), x_target, 1, model=models, rate=0.15, eps=0.1, steps=20, seed=1)
    assert torch.equal(first.x, again.x) and not torch.equal(first.details["rows"], other.details["rows"])
    moved = (first.x - x).abs()
    assert first.x.dtype == dtype and 0.09 < float(moved.max()) <= 0.1 * (1 + 1e-6)
    assert float(first.x.min()) >= 0 and float(first.x.max()) <= 1
    assert torch.equal(first.y, y) and bool((y[first.is_poison] == 1).all()) and int(first.is_poison.sum()) == 6
    assert float(moved[~first.is_poison].max()) == 0
    assert torch.equal(x, before) and models[0].training and not models[1].training
    assert all(p.requires_grad and p.grad is None for model in models for p in model.parameters())


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"dropout": 1.0}, {"inner_steps": 0}, {"tol": -1.0}, {"model": []}])
def test_bad_arguments(wrong: dict) -> None:
    x, y, x_target = data()
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        convex_polytope((x, y), **{"model": nets(1), "x_target": x_target, "target": 1, "rate": 0.1, **wrong})
