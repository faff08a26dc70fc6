"""σ-zero beyond the shared suite: its smooth count, its threshold, its sparsity against brute force."""

from __future__ import annotations

import math

import pytest
import torch

from robustlab.attacker.victim import Victim
from robustlab.attacks import cw, sigma_zero
from robustlab.attacks.whitebox.sigma_zero import _smooth_count_slope
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp
from tests.suite.oracles import affine_problem, l0_optimum
from tests.unit.test_ddn import Recording
from tests.unit.test_fmn import met

CPU = torch.device("cpu")


@pytest.mark.parametrize("sigma", [1e-3, 0.1])
def test_slope_of_the_smooth_count(sigma: float) -> None:
    """By autograd, from the definition."""
    delta = noise_box(5, (2, 3, 3), torch.float64).sub(0.5).requires_grad_(True)
    count = (delta.square() / (delta.square() + sigma)).sum() / 18
    (expected,) = torch.autograd.grad(count, delta)
    torch.testing.assert_close(_smooth_count_slope(delta.detach(), sigma), expected)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 2.0)])
def test_threshold_follows_the_answers(bounds: tuple[float, float]) -> None:
    """No element of a point asked about has moved by less than τ, which rises by t·η after a success and else falls."""
    low, high = bounds
    model = mlp((6,), 3)
    x = (noise_box(10, (6,), torch.float64) * (high - low) + low).clamp(low, high)
    y = model(x).argmax(1)
    seen, steps, lr, rate = Recording(model), 30, 0.5, 0.05
    sigma_zero(Victim(seen, bounds=bounds), x, y, steps=steps, lr=lr, threshold=0.2, threshold_rate=rate)
    tau, tight = torch.full((10,), 0.2, dtype=torch.float64), torch.inf
    for k in range(steps - 1):
        eta = 0.1 * lr + 0.9 * lr * (1 + math.cos(math.pi * (k + 1) / steps)) / 2
        tau = (tau + rate * eta * torch.where(met(model, seen.points[k + 1], y, x), 1.0, -1.0)).clamp(0, 1)
        moved = (seen.points[k + 2] - x).abs() / (high - low)
        smallest = torch.where(moved > 0, moved, torch.inf).amin(1)
        assert bool((smallest >= tau - 1e-9).all())
        tight = min(tight, float((smallest - tau).amin()))
    assert tight < 0.02, "the threshold never cut anything"


def test_fewest_elements_of_affine_models() -> None:
    """The optimum by sorting, on nine samples in ten; never below it."""
    model, x, y = affine_problem(4, 24, 12, CPU, spread=1.0, seed=2)
    box = (-1.0, 1.0)
    best = l0_optimum(model, x, y, box)
    result = sigma_zero(Victim(model, bounds=box), x, y, steps=300)
    assert bool((result.radius("l0") >= best).all())
    assert float((result.radius("l0") == best).double().mean()) > 0.9


@pytest.mark.slow
def test_sparser_than_cw() -> None:
    model, x = mlp((2, 4, 4), 3), noise_box(12, (2, 4, 4), torch.float64)
    y = model(x).argmax(1)
    ours = sigma_zero(model, x, y, steps=200).radius("l0")
    other = cw(model, x, y, norm="l0", steps=60, c=10.0, lr=0.1).radius("l0")
    assert bool(ours.isfinite().all()) and float(ours.sum()) <= float(other.sum())
    assert get_norm("l0").name == "l0"


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"sigma": -1.0}, {"threshold": 1.5}, {"threshold": -0.1}, {"threshold_rate": 0.0}]
)
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: want"):
        sigma_zero(Affine(torch.eye(2), torch.zeros(2)), torch.rand(2, 2), **wrong)
