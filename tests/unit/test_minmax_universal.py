"""Min-max attacks: the saddle point by a convex solver, brute force, transformations as models, budgets."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import UniversalResult, so_far
from robustlab.attacker.victim import Victim
from robustlab.attacks import minmax_universal
from robustlab.attacks.universal.minmax_universal import MinMaxResult, worst
from tests.suite.models import Affine, mlp
from tests.unit.test_uap import Ends

WIDE = (-50.0, 50.0)
GAMMAS = [0.05, 1.0, 20.0]


def lead(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """z_y − z_other of two classes, not cut off: linear in δ where the model is."""
    return logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]


def game(k: int = 4, d: int = 6) -> tuple[list[Victim], Tensor, np.ndarray, np.ndarray]:
    """K linear models, one image, and F_k(δ) = m_k + a_k·δ as the numbers m (K,) and a (K, d)."""
    generator = torch.Generator().manual_seed(2)
    slopes = torch.randn(k, d, generator=generator, dtype=torch.float64) + 0.8
    margins = 0.5 + 2 * torch.rand(k, generator=generator, dtype=torch.float64)
    models = [
        Affine(torch.stack([a, 0 * a]), torch.stack([m, 0 * m])) for a, m in zip(slopes, margins, strict=True)
    ]  # class 0 leads at x = 0 by m
    return [Victim(m, bounds=WIDE) for m in models], torch.zeros(1, d).double(), margins.numpy(), slopes.numpy()


def saddle(m: np.ndarray, a: np.ndarray, eps: float, gamma: float, order: Any) -> tuple[float, np.ndarray]:
    """max_w min_δ, where the minimum over the ball is −ε·‖Σ w_k a_k‖ in the dual norm: by a convex solver."""
    w = cp.Variable(len(m))
    value = w @ m - eps * cp.norm(a.T @ w, order) - gamma / 2 * cp.sum_squares(w - 1 / len(m))
    problem = cp.Problem(cp.Maximize(value), [w >= 0, cp.sum(w) == 1])
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value), np.asarray(w.value)


def value_at(delta: Tensor, m: np.ndarray, a: np.ndarray, gamma: float) -> float:
    """max_w Σ w·F(δ) − γ/2·‖w − 1/K‖², by a convex solver."""
    f, w = m + a @ delta.numpy(), cp.Variable(len(m))
    problem = cp.Problem(
        cp.Maximize(w @ f - gamma / 2 * cp.sum_squares(w - 1 / len(m))), [w >= 0, cp.sum(w) == 1]
    )  # fmt: skip
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value)


def attack(victims: Any, x: Tensor, gamma: float, **changes: Any) -> MinMaxResult:
    arguments: dict[str, Any] = {
        "over": "models", "norm": "l2", "eps": 0.6, "steps": 200, "step_size": 0.02, "weight_step": 0.04, "loss": lead,
    }  # fmt: skip
    return minmax_universal(victims, x, gamma=gamma, **{**arguments, **changes})


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_saddle_point_of_linear_models(gamma: float, norm: str, dual: Any) -> None:
    """δ attains the value of the game, and the weights are the opponent's, unique since γ > 0."""
    victims, x, m, a = game()
    eps = 0.6 if norm == "l2" else 0.25
    step = {} if norm == "l2" else {"step_size": 0.002}
    result = attack(victims, x, gamma, norm=norm, eps=eps, **step)
    want, weights = saddle(m, a, eps, gamma, dual)
    assert want - 1e-6 <= value_at(result.delta, m, a, gamma) <= want + 0.02
    assert float(result.weights.sum()) == pytest.approx(1) and bool((result.weights >= 0).all())
    if gamma >= 1:
        np.testing.assert_allclose(result.weights.numpy(), weights, atol=0.05)


def test_the_opponent_answers_each_move() -> None:
    """Algorithm 1: the losses at the new δ move w, and the weights of before move δ. Two have a closed form."""
    victims, x, m, a = game(2)
    result = attack(victims, x, 0.5, steps=6, step_size=0.1, weight_step=0.2, trace=True)
    assert result.trace is not None
    losses, weights = result.trace["loss"], result.trace["weights"]
    w, delta = np.array([0.5, 0.5]), np.zeros(6)
    for seen, told in zip(losses.numpy(), weights.numpy(), strict=True):
        np.testing.assert_allclose(seen, m + a @ delta, atol=1e-9)
        if delta.any():
            first, second = w + 0.2 * (seen - 0.5 * (w - 0.5))
            w = np.array([0.5, 0.5]) + np.clip((first - second) / 2, -0.5, 0.5) * np.array([1, -1])
        np.testing.assert_allclose(told, w, atol=1e-9)
        way = a.T @ w
        delta = delta - 0.1 * way / np.linalg.norm(way)
        delta = delta * min(1.0, 0.6 / np.linalg.norm(delta))


def test_neither_side_gains_by_leaving_the_saddle_point() -> None:
    """L(δ*, w) ≤ L(δ*, w*) ≤ L(δ, w*) for anything else in simplex and ball."""
    victims, x, m, a = game()
    result = attack(victims, x, 1.0)
    best, w = result.delta.numpy(), result.weights.numpy()

    def value(delta: np.ndarray, w: np.ndarray) -> float:
        return float(w @ (m + a @ delta) - 0.5 * np.square(w - 0.25).sum())

    here, rng = value(best, w), np.random.default_rng(0)
    for _ in range(300):
        way = rng.normal(size=6)
        assert value(best, rng.dirichlet(np.full(4, 0.4))) <= here + 0.03
        assert value(0.6 * rng.random() * way / np.linalg.norm(way), w) >= here - 0.03


@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
def test_the_opponents_answer_is_the_best_on_a_grid_of_the_simplex(gamma: float) -> None:
    losses = torch.tensor([0.3, -1.0, 0.9]).double()
    ticks = torch.arange(101).double() / 100
    u, v = torch.meshgrid(ticks, ticks, indexing="ij")
    grid = torch.stack([u, v, 1 - u - v], dim=-1)[u + v <= 1 + 1e-9]
    values = grid @ losses - gamma / 2 * (grid - 1 / 3).square().sum(dim=1)
    value, weights = worst(losses, gamma)
    assert float(values.max()) - 1e-12 <= float(value) <= float(values.max()) + 0.02
    torch.testing.assert_close(weights, grid[values.argmax()], rtol=0, atol=0.02)


def test_brute_force_over_the_plane() -> None:
    """One δ of two numbers for three images on a net with bends: no point of a fine grid is better by much."""
    model = mlp((2,), 3, torch.float64, 3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    x = 0.5 + 0.2 * torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ticks = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(ticks, ticks)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
        logs = model((x + grid[:, None]).clamp(0, 1).flatten(0, 1)).log_softmax(dim=1).reshape(len(grid), 3, -1)
    losses = logs.gather(2, y.expand(len(grid), 3)[..., None])[..., 0]  # −CE of what was said of x
    for gamma in (0.0, 1.0):
        values = torch.stack([worst(row, gamma)[0] for row in losses])
        result = minmax_universal(
            model, x, norm="linf", eps=0.3, gamma=gamma, weight_step=0.1, steps=150, step_size=0.01, trace=True
        )
        assert result.trace is not None
        ours = min(float(worst(row, gamma)[0]) for row in result.trace["loss"])
        assert ours <= float(values.min()) + 0.02, gamma
        assert float(values.min()) < float(values[len(grid) // 2]) - 0.1  # there is something to be gained


@pytest.mark.slow
def test_the_mean_pays_in_the_worst_domain() -> None:
    """γ = 0 against γ = ∞: each is the better in what it minimizes."""
    victims, x, m, a = game()
    hard, mean = attack(victims, x, 0.0), attack(victims, x, 1e6, weight_step=1e-9)
    of_hard, of_mean = m + a @ hard.delta.numpy(), m + a @ mean.delta.numpy()
    assert of_hard.max() < of_mean.max() - 0.05 and of_mean.mean() < of_hard.mean() - 0.01
    np.testing.assert_allclose(mean.weights.numpy(), 0.25, atol=1e-6)


def test_a_transformation_is_a_part_of_the_model() -> None:
    """A model under T transformations is T models, each with one of them before it."""
    model = mlp((2, 4, 4), 3, torch.float64, 1)
    x = 0.3 + 0.4 * torch.rand(4, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Flip(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flip(3)

    views = [lambda v: v, lambda v: v.flip(3)]
    arguments: dict[str, Any] = {"norm": "linf", "eps": 0.2, "steps": 12, "gamma": 0.5, "weight_step": 0.2}
    one = minmax_universal(model, x, over="transforms", transforms=views, **arguments)
    many = minmax_universal([model, nn.Sequential(Flip(), model)], x, over="models", **arguments)
    torch.testing.assert_close(one.delta, many.delta, rtol=0, atol=1e-9)
    torch.testing.assert_close(one.weights, many.weights, rtol=0, atol=1e-9)
    assert one.fooled.shape == (1, 2, 4) and torch.equal(one.fooled[0], many.fooled[:, 0])
    assert torch.equal(one.success, one.fooled[0].all(dim=0))
    with torch.no_grad():
        moved = (x + one.delta).clamp(0, 1)
        for t, view in enumerate(views):
            want = model(view(moved)).argmax(dim=1) != model(view(x)).argmax(dim=1)
            assert torch.equal(one.fooled[0, t], want)


@pytest.mark.parametrize("budget", [2, 3, 4, 12])
def test_budget(budget: int) -> None:
    model = mlp((5,), 3, torch.float64, 1)
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = minmax_universal(Victim(model, budget=budget), x, eps=0.2, steps=5)
    assert result.queries.tolist() == 4 * [min(budget, 8)]
    views = [lambda v: v, lambda v: 1 - v]
    if budget >= 5:
        result = minmax_universal(Victim(model, budget=budget), x, eps=0.2, steps=5, transforms=views)
        assert int(result.queries.max()) <= budget
    else:
        with pytest.raises(ValueError, match=r"^budget: want at least 5"):
            minmax_universal(Victim(model, budget=budget), x, eps=0.2, steps=5, transforms=views)


def test_an_interruption_leaves_the_best_delta() -> None:
    model = mlp((5,), 3, torch.float64, 1)
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for after in (5, 6):  # in the one model, or in the other
        with pytest.raises(KeyboardInterrupt) as caught:
            minmax_universal([Ends(model, after), model], x, over="models", eps=0.2, steps=20)
        result = so_far(caught.value)
        assert isinstance(result, UniversalResult) and float(result.delta.abs().max()) > 0


def test_of_one_model_that_says_nothing_the_image_fails() -> None:
    class Hole(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x).masked_fill(x[:, :1] > 0.99, torch.nan)

    model = mlp((5,), 3, torch.float64, 1)
    x = 0.2 + 0.5 * torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[2, 0] = 1.0
    with pytest.warns(UserWarning, match=r"rows \[2\]"):
        result = minmax_universal([model, Hole(model)], x, eps=0.1, steps=5)
    rest = torch.arange(5) != 2
    other = minmax_universal([model, model], x[rest], eps=0.1, steps=5)
    torch.testing.assert_close(result.delta, other.delta)
    assert not bool(result.success[2]) and float(result.weights[2]) == 0 and result.weights.shape == (5,)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("over", "domains", ValueError), ("norm", "l1", ValueError), ("steps", 0, ValueError),
        ("step_size", 0.0, ValueError), ("weight_step", 0.0, ValueError), ("gamma", -1.0, ValueError),
        ("transforms", [], TypeError), ("transforms", [3], TypeError), ("victim", [], ValueError),
        ("victim", [mlp((5,), 3), Victim(mlp((5,), 3), bounds=(0.0, 2.0))], ValueError),
    ],
)  # fmt: skip
def test_bad_arguments(name: str, value: Any, error: type[Exception]) -> None:
    x = torch.rand(2, 5)
    given: dict[str, Any] = {"victim": mlp((5,), 3, torch.float32), "eps": 0.1, name: value}
    with pytest.raises(error, match=rf"^{name}: "):
        minmax_universal(given.pop("victim"), x, **given)
