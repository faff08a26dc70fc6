"""FMN beyond the shared suite: its first guess of the boundary, its radius, its steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import ddn, fmn
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp
from tests.suite.oracles import affine_problem, free_optimum, l0_optimum
from tests.unit.test_ddn import Recording

CPU = torch.device("cpu")
WIDE = (-50.0, 50.0)


def met(model: nn.Module, points: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Whether the label has lost by the margin that a success needs, relative to the logits there and at x."""
    with torch.no_grad():
        z, at_x = model(points), model(x)

    def pair(z: Tensor) -> tuple[Tensor, Tensor]:
        return z.gather(1, y[:, None]).squeeze(1), z.scatter(1, y[:, None], -torch.inf).amax(1)

    (own, other), clean = pair(z), pair(at_x)
    sizes = [own.abs(), other.abs(), *(part.abs() for part in clean), at_x.abs().median(1).values]
    return own - other <= -1e-4 * torch.stack(sizes).amax(0)


def schedule(first: float, last: float, k: int, steps: int) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * k / steps)) / 2


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_first_radius_is_the_distance_to_the_boundary(norm: str) -> None:
    """Two classes: (1 + γ) times the optimum, which a step of the default length fills."""
    model, x, y = affine_problem(2, 10, 5, CPU, spread=1.0)
    seen, ball = Recording(model), get_norm(norm)
    fmn(Victim(seen, bounds=WIDE), x, y, norm=norm, steps=2, gamma=0.05)
    optimum = free_optimum(model, x, y, norm)
    ratio = ball.length(seen.points[2] - x) / optimum
    assert bool((ratio > 1.05).all() and (ratio < 1.05 * 1.01).all())
    if norm != "linf":  # in ℓ∞ the first point need not be the corner
        assert bool(met(model, seen.points[2], y, x).all())


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_radius_follows_the_answers(norm: str) -> None:
    """From the first success on: times 1 − γ_k, or down to the best, after a success; times 1 + γ_k after a failure."""
    model, x = mlp((6,), 3), noise_box(12, (6,), torch.float64) * 0.5 + 0.25
    y = model(x).argmax(1)
    seen, ball, steps = Recording(model), get_norm(norm), 40
    fmn(seen, x, y, norm=norm, steps=steps, gamma=0.1, gamma_last=0.01)
    eps = torch.full((12,), torch.inf, dtype=torch.float64)
    best, checked = eps.clone(), 0
    for k in range(steps - 1):
        won, length = met(model, seen.points[k + 1], y, x), ball.length(seen.points[k + 1] - x)
        best = torch.where(won, torch.minimum(best, length), best)
        gamma = schedule(0.1, 0.01, k, steps)
        known = eps.isfinite()
        eps = torch.where(won, torch.minimum((1 - gamma) * eps, best), (1 + gamma) * eps)
        filled = ball.length(seen.points[k + 2] - x)
        assert bool((filled[known] <= eps[known] * (1 + 1e-6)).all()), "a point outside its ball"
        # Where the ball is not filled its radius cannot be seen from outside; the next one then cannot be foretold.
        full = filled >= eps * (1 - 1e-6)
        checked += int((known & full).sum())
        eps = torch.where(known & full, eps, torch.where(won, filled, torch.inf))
    assert checked > 430, "most balls are filled"


def test_l0_counts_up_to_the_first_success() -> None:
    """ε = 1, then at least one more element in every step until the goal is met: the optimum by sorting."""
    model, x, y = affine_problem(2, 16, 12, CPU, spread=1.0, seed=2)
    seen, box = Recording(model), (-1.0, 1.0)
    result = fmn(Victim(seen, bounds=box), x, y, norm="l0", steps=60)
    counts = torch.stack([get_norm("l0").length(p - x) for p in seen.points[2:61]])
    assert bool((counts[0] == 2).all()), "not (1 + γ)·1, nor 1 + 1, but the larger"
    best = l0_optimum(model, x, y, box)
    reachable = best.isfinite()
    assert bool((result.radius("l0")[reachable] >= best[reachable]).all())
    assert float((result.radius("l0") == best)[reachable].double().mean()) > 0.9


def test_steps_are_normalized_gradients() -> None:
    """Where the ball is out of the way: δ moves by α_k along the margin's gradient, down from α to α/100."""
    model, x, y = affine_problem(2, 6, 5, CPU, spread=1.0)
    wall = torch.tensor([1e5, 0.0], dtype=torch.float64)

    class Walled(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return model(points) + wall

    seen, steps = Recording(Walled()), 6
    y = torch.zeros_like(y)
    fmn(Victim(seen, bounds=WIDE), x, y, norm="l2", steps=steps, alpha=0.02)
    slope = (model.weight[1] - model.weight[0]).detach()
    for k in range(steps - 1):
        moved = seen.points[k + 2] - seen.points[k + 1]
        expected = 100 * schedule(0.02, 0.0002, k, steps) * slope / slope.norm()
        torch.testing.assert_close(moved, expected.expand_as(moved), rtol=1e-6, atol=1e-9)


def test_as_near_as_ddn() -> None:
    model, x = mlp((6,), 3), noise_box(20, (6,), torch.float64)
    y = model(x).argmax(1)
    ours, other = fmn(model, x, y, norm="l2", steps=300), ddn(model, x, y, steps=300)
    assert bool(ours.success.all())
    assert float((ours.radius("l2") / other.radius("l2")).median()) < 1.01


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
def test_each_norm_is_smallest_in_itself(norm: str) -> None:
    model, x = mlp((6,), 3), noise_box(20, (6,), torch.float64)
    y = model(x).argmax(1)
    own = fmn(model, x, y, norm=norm).radius(norm).sort().values[10]
    for other in ("l0", "l1", "l2", "linf"):
        assert float(own) <= float(fmn(model, x, y, norm=other).radius(norm).sort().values[10]) * 1.001


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha_last": -1.0}, {"gamma": 1.0}, {"gamma_last": 1.5}])
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: want"):
        fmn(Affine(torch.eye(2), torch.zeros(2)), torch.rand(2, 2), **wrong)
