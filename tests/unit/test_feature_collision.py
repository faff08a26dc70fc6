"""Feature collision: the proximal step against a convex solver, and on linear features the minimizer in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import feature_collision
from robustlab.attacks.poisoning.feature_collision import proximal_step


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """40 inputs with 6 elements in the middle of the box, labels 0 and 1, and a target."""
    generator = torch.Generator().manual_seed(1)
    x = 0.4 + 0.2 * torch.rand(40, 6, generator=generator, dtype=dtype)
    return x, torch.arange(40) % 2, 0.4 + 0.2 * torch.rand(1, 6, generator=generator, dtype=dtype)


def linear_features(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """φ(x) = Ax with four features, then two classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 2)).to(dtype)


def test_the_proximal_step_is_the_argmin() -> None:
    import cvxpy as cp

    generator = torch.Generator().manual_seed(0)
    p, b = torch.randn(5, 8, generator=generator).double(), torch.rand(5, 8, generator=generator).double()
    low, high = (b - 0.1).clamp_min(0), (b + 0.1).clamp_max(1)
    for beta, step in ((0.5, 0.3), (4.0, 1.0)):
        ours = proximal_step(p, b, beta, step, low, high)
        z = cp.Variable(p.shape)
        aim = 0.5 * cp.sum_squares(z - p.numpy()) + step * beta / 2 * cp.sum_squares(z - b.numpy())
        cp.Problem(cp.Minimize(aim), [z >= low.numpy(), z <= high.numpy()]).solve(
            solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12
        )
        torch.testing.assert_close(ours, torch.from_numpy(z.value), atol=1e-5, rtol=0)


def test_the_proximal_step_is_stationary_where_the_box_is_idle() -> None:
    p, b = torch.rand(3, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    z = proximal_step(p, b, 2.0, 0.7).requires_grad_()
    (0.5 * (z - p).square().sum() + 0.7 * 2.0 / 2 * (z - b).square().sum()).backward()
    torch.testing.assert_close(z.grad, torch.zeros_like(z))


def test_on_linear_features_it_ends_at_the_closed_form() -> None:
    """(AᵀA + βI)·x = AᵀA·x_t + β·b, where no pixel meets the box."""
    x, y, x_target = data()
    model, beta = linear_features(), 0.05
    found = feature_collision(
        (x, y), x_target, 1, model=model, rate=0.1, beta=beta, steps=1000, step_size=1.0, layer="0"
    )
    rows = found.details["rows"]
    square = model[0].weight.detach().T @ model[0].weight.detach()
    right = x_target @ square + beta * x[rows]
    exact = torch.linalg.solve(square + beta * torch.eye(6, dtype=x.dtype), right.T).T
    assert float(exact.min()) > 0 and float(exact.max()) < 1
    torch.testing.assert_close(found.x[rows], exact, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_several_surrogates_weigh_by_relative_distance_and_end_at_the_closed_form() -> None:
    """(Σ w_m AᵀA + βI)·x = Σ w_m AᵀA·x_t + β·b, with w_m = s²/M‖A_m x_t‖², s² = the mean of ‖A_m x_t‖²."""
    x, y, x_target = data()
    one, other, beta = linear_features(), linear_features(), 0.05
    with torch.no_grad():
        other[0].weight.copy_(5 * other[0].weight.flip(0, 1))  # features of another size and direction
    found = feature_collision(
        (x, y), x_target, 1, model=[one, other], rate=0.1, beta=beta, steps=3000, step_size=1.0, layer="0"
    )
    maps = [net[0].weight.detach() for net in (one, other)]
    sizes = torch.stack([(x_target @ a.T).square().sum() for a in maps])
    square = sum(sizes.mean() / size / 2 * a.T @ a for size, a in zip(sizes, maps, strict=True))
    rows = found.details["rows"]
    right = x_target @ square + beta * x[rows]
    exact = torch.linalg.solve(square + beta * torch.eye(6, dtype=x.dtype), right.T).T
    assert float(exact.min()) > 0 and float(exact.max()) < 1
    torch.testing.assert_close(found.x[rows], exact, atol=1e-5, rtol=0)
    assert found.details["feature_distance"].shape == (2, len(rows)) and len(found.details["layers"]) == 2


def test_a_surrogate_twice_is_the_surrogate() -> None:
    x, y, x_target = data()
    kwargs = {"rate": 0.2, "beta": 0.01, "steps": 30}
    once = feature_collision((x, y), x_target, 1, model=small_net(), **kwargs)
    twice = feature_collision((x, y), x_target, 1, model=[small_net(), small_net()], **kwargs)
    torch.testing.assert_close(once.x, twice.x, atol=1e-10, rtol=0)


def small_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)


def test_for_a_small_step_the_features_come_closer_at_every_step() -> None:
    x, y, x_target = data()
    kwargs = {"rate": 0.1, "beta": 1e-9, "step_size": 0.02}
    runs = [feature_collision((x, y), x_target, 1, model=small_net(), steps=s, **kwargs) for s in (1, 2, 4, 8, 16)]
    distance = torch.stack([runs[0].details["feature_distance_before"], *(r.details["feature_distance"] for r in runs)])
    assert bool((distance.diff(dim=0) < 0).all())
    # no step was taken back: the objective of a longer run begins with that of a shorter one and always falls
    assert bool((runs[-1].details["objective"].diff(dim=0) < 0).all())


def test_the_objective_never_rises_however_long_the_step() -> None:
    x, y, x_target = data()
    found = feature_collision((x, y), x_target, 1, model=small_net(), rate=0.2, beta=0.01, steps=40, step_size=50.0)
    objective = found.details["objective"]
    assert bool((objective.diff(dim=0) <= 0).all()) and bool((objective[-1] < objective[0]).all())


def test_poisons_do_not_depend_on_each_other() -> None:
    """A poison is the same whether others are made beside it or not."""
    x, y, x_target = data()
    many = feature_collision((x, y), x_target, 1, model=small_net(), rate=0.5, steps=30)
    few = feature_collision((x, y), x_target, 1, model=small_net(), rate=0.05, steps=30)
    for row in few.details["rows"].tolist():
        torch.testing.assert_close(few.x[row], many.x[row], atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_watermark_box_and_ball(dtype: torch.dtype) -> None:
    x, y, _ = data(dtype)
    x_target = torch.ones(1, 6, dtype=dtype)
    plain = feature_collision((x, y), x_target, 1, model=small_net(dtype), rate=0.2, beta=1e6, steps=5)
    marked = feature_collision((x, y), x_target, 1, model=small_net(dtype), rate=0.2, beta=1e6, steps=5, watermark=0.3)
    rows = plain.details["rows"]
    # so heavy a β allows nothing but the base images, and with a mark nothing but the blend
    torch.testing.assert_close(plain.x[rows], x[rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(marked.x[rows], 0.7 * x[rows] + 0.3, atol=1e-4, rtol=0)
    bounded = feature_collision(
        (x, y), x_target, 1, model=small_net(dtype), rate=0.2, steps=50, watermark=0.3, eps=0.01
    )
    assert float((bounded.x - x).abs().max()) <= 0.01 * (1 + 1e-5)
    assert torch.equal(bounded.y, y) and bool((y[bounded.is_poison] == 1).all()) and int(bounded.is_poison.sum()) == 8


def test_beta_by_default_scales_with_features_over_inputs() -> None:
    x, y, x_target = data()
    default = feature_collision((x, y), x_target, 1, model=small_net(), rate=0.1, steps=20)
    scaled = feature_collision((x, y), x_target, 1, model=small_net(), rate=0.1, steps=20, beta=0.25 * (5 / 6) ** 2)
    assert torch.equal(default.x, scaled.x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0.001}, "rate: want between 1 and 20"),
        ({"rate": 0.9}, "rate: want between 1 and 20"),
        ({"beta": -1.0}, "beta"),
        ({"watermark": 1.0}, "watermark"),
        ({"steps": 0}, "steps"),
        ({"target": 5}, "target: want a label that the training data has, got 5"),
        ({"x_target": torch.zeros(2, 6)}, "x_target"),
        ({"x_target": torch.zeros(1, 6)}, "x_target: want torch.float64"),
        ({"model": small_net(torch.float32)}, "data: want the model's dtype"),
        ({"model": "net"}, "model"),
        ({"model": []}, "model"),
        ({"model": [small_net(), small_net()], "layer": ["0"]}, "layer: want one for each of 2 surrogates, got 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_arguments(wrong: dict, message: str) -> None:
    x, y, x_target = data()
    given = {"model": small_net(), "x_target": x_target, "target": 1, "rate": 0.1, **wrong}
    with pytest.raises((ValueError, TypeError), match=message):
        feature_collision((x, y), **given)
