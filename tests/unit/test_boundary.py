"""Boundary attack: its steps as geometry, their sizes against a closed form, its distances against the optimum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import boundary
from robustlab.attacks.hardlabel.boundary import _inwards, _sideways
from tests.suite.cases import noise_box
from tests.suite.oracles import affine_problem, free_optimum
from tests.unit.test_boundary_search import OnlyThere

CPU = torch.device("cpu")


class AnythingElse(nn.Module):
    """Class 0 at these very points, class 1 everywhere else."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.there = OnlyThere(points)

    def forward(self, x: Tensor) -> Tensor:
        return self.there(x).flip(1)


def test_one_step_stays_on_the_sphere_and_the_other_goes_inwards() -> None:
    n, d = 20, 30
    generator = torch.Generator().manual_seed(0)
    x, p = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    with Victim(nn.Identity(), bounds=(-50.0, 50.0)).session(x) as session:
        live = session.everyone()
        live.points, live.dist = p, (p - x).norm(dim=1)
        live.delta = torch.linspace(0.01, 2.0, n, dtype=torch.float64)
        live.eps = torch.linspace(0.001, 0.9, n, dtype=torch.float64)
        around = _sideways(live, torch.randn(n, d, generator=generator))
        points = _inwards(live, around)
        clipped = _inwards(live, x + 0.5 * (p - x))
    torch.testing.assert_close((around - x).norm(dim=1), live.dist)
    tangent = ((around - x) * (p - x)).sum(1) / live.dist.square()  # the cosine of the angle whose tangent is δ
    torch.testing.assert_close(tangent, 1 / (1 + live.delta.square()).sqrt())
    torch.testing.assert_close((points - x).norm(dim=1), (1 - live.eps) * live.dist)
    torch.testing.assert_close(points - x, (1 - live.eps)[:, None] * (around - x))
    near = torch.minimum(1 - live.eps, torch.full_like(live.eps, 0.5)) * live.dist
    torch.testing.assert_close((clipped - x).norm(dim=1), near)  # what clipping brought nearer is not taken out again


@pytest.mark.parametrize(("steps", "every"), [(29, 10), (31, 10), (101, 10), (64, 3)])
def test_where_every_step_succeeds_the_distance_is_a_product(steps: int, every: int) -> None:
    """ε grows by 1.5 after each 30 steps, and once more after each 10 of those that ask about p′; r ← (1 − ε)·r."""
    x = noise_box(3, (8,), torch.float64) - 0.5
    init = 40 * torch.ones_like(x)
    victim = Victim(AnythingElse(x), bounds=(-50.0, 50.0), access="hard", budget=10**4)
    result = boundary(victim, x, torch.zeros(3, dtype=torch.int64), init=init, steps=steps, check_every=every)
    eps, left = 0.01, 2.0**-10  # 2⁻¹⁰ is left by the start's bisection
    for k in range(1, steps + 1):
        left *= 1 - eps
        eps *= 1.5 ** ((k % 30 == 0) + (k % (10 * every) == 0))
    want = left * (init - x).norm(dim=1) * (1 + 1e-4)
    torch.testing.assert_close(result.distances["l2"], want, rtol=1e-6, atol=0)
    assert result.queries.tolist() == [2 + 10 + steps + steps // every + 2] * 3


def test_where_no_step_succeeds_it_ends() -> None:
    """ε falls by 1.5 after 30 steps, and once more after 100 with δ, until it is below 1e-7."""
    x = 0.2 + 0.5 * noise_box(4, (8,), torch.float64)
    result = boundary(OnlyThere(x + 0.1), x, torch.zeros(4, dtype=torch.int64), init=x + 0.1)
    eps, k = 0.01, 0
    while eps >= 1e-7:
        k += 1
        eps /= 1.5 ** ((k % 30 == 0) + (k % 100 == 0))
    assert result.queries.tolist() == [2 + 10 + k + k // 10 + 2] * 4 and bool(result.success.all())


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 5])
def test_comes_near_the_optimum_of_an_affine_model(classes: int) -> None:
    model, x, y = affine_problem(classes, 10, 8, CPU, spread=1.0)
    best = free_optimum(model, x, y, "l2")
    few, many = (
        boundary(Victim(model, bounds=(-3.0, 3.0), access="hard", budget=budget), x, y).radius("l2") / best
        for budget in (200, 1200)
    )
    assert bool((many >= 1 - 1e-9).all()) and float(many.median()) <= 1.06 < float(few.median())
