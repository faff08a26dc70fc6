"""DDN beyond the shared suite: the length of its steps, their direction, its levels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import cw, ddn
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp
from tests.suite.oracles import affine_problem

CPU = torch.device("cpu")
WIDE = (-50.0, 50.0)
L2 = get_norm("l2")


class Recording(nn.Module):
    """Keeps every batch that it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.points = model, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return self.model(x)


def test_length_follows_the_answers() -> None:
    """Out of reach of the box ‖δ_k‖ = ε_k: first (1 + γ)·ε_0, then times 1 − γ after a success and 1 + γ else."""
    model, x, y = affine_problem(3, 10, 5, CPU, spread=1.0)
    seen = Recording(model)
    ddn(Victim(seen, bounds=WIDE), x, y, steps=30, gamma=0.07, init_eps=0.01)
    eps = torch.full((10,), 0.01 * 100)
    for k in range(1, 31 - 1):
        with torch.no_grad():
            z = model(seen.points[k])
        gap = z.gather(1, y[:, None]).squeeze(1) - z.scatter(1, y[:, None], -torch.inf).amax(1)
        eps = eps * torch.where(gap <= -1e-4 * z.abs().amax(1).clamp_min(1), 0.93, 1.07)
        torch.testing.assert_close(L2.length(seen.points[k + 1] - x), eps.double(), rtol=1e-5, atol=0)


def test_direction_turns_by_the_normalized_gradient() -> None:
    """δ_1 lies along the gradient; δ_2 along δ_1 + α_1·(unit gradient there), α_k on half a cosine from 1 to 0.01."""
    model, x = mlp((6,), 3), noise_box(6, (6,), torch.float64) * 0.02 + 0.49
    y = model(x).argmax(1)
    seen, steps = Recording(model), 8
    ddn(Victim(seen, bounds=WIDE), x, y, steps=steps, init_eps=0.05)  # ‖δ‖ ≈ 5, steps from 100 to 4.8

    def unit_gradient(points: Tensor) -> Tensor:
        points = points.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(-nn.functional.cross_entropy(model(points), y, reduction="sum"), points)
        return grad / grad.norm(dim=1, keepdim=True)

    for k in range(steps - 1):
        now, after = seen.points[k + 1] - x, seen.points[k + 2] - x
        alpha = 0.01 + 0.99 * (1 + math.cos(math.pi * k / steps)) / 2
        expected = now - 100 * alpha * unit_gradient(seen.points[k + 1])
        cosine = nn.functional.cosine_similarity(after, expected)
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0)])
def test_levels_are_those_of_the_box(bounds: tuple[float, float]) -> None:
    """Every point asked about, but for the clean one, has the box's five values only."""
    low, high = bounds
    model = mlp((6,), 3)
    x = (noise_box(8, (6,), torch.float64) * (high - low) + low).clamp(low, high)
    seen = Recording(model)
    result = ddn(Victim(seen, bounds=bounds), x, steps=20, levels=5)
    grid = torch.linspace(low, high, 5, dtype=torch.float64)
    for points in seen.points[2:-1]:
        assert bool(((points[..., None] - grid).abs().amin(-1) < 1e-12).all())
    assert bool(result.success.any())
    exact = Recording(model)
    ddn(Victim(exact, bounds=bounds), x, steps=2)
    nearest = (exact.points[2][..., None] - grid).abs().argmin(-1)
    torch.testing.assert_close(seen.points[2], grid[nearest])


@pytest.mark.slow
def test_as_near_as_a_long_search() -> None:
    """On a smooth net 300 steps end within 2 % of C&W's six searches, in the median."""
    model, x = mlp((6,), 3), noise_box(20, (6,), torch.float64)
    y = model(x).argmax(1)
    ours, long = ddn(model, x, y, steps=300), cw(model, x, y, steps=100, search_steps=6, lr=0.03, c=0.1)
    assert bool(ours.success.all())
    assert float((ours.radius("l2") / long.radius("l2")).median()) < 1.02


def test_a_vanishing_gradient_draws_a_direction() -> None:
    """Keyed by the sample: the same for it alone, another for another sample or seed."""
    model = Affine(torch.zeros(2, 4, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64))
    x = torch.full((2, 4), 0.5, dtype=torch.float64)
    first = []
    for seed, ids in ((0, [0, 1]), (0, [1, 0]), (1, [0, 1])):
        seen = Recording(model)
        ddn(seen, x, seed=seed, ids=torch.tensor(ids), steps=2, init_eps=0.1)
        first.append(seen.points[2] - x)
        torch.testing.assert_close(L2.length(first[-1]), torch.full((2,), 0.105, dtype=torch.float64))
    assert torch.equal(first[0], first[1].flip(0))
    assert not torch.allclose(first[0][0], first[0][1]) and not torch.allclose(first[0], first[2])


@pytest.mark.parametrize("wrong", [{"gamma": 1.0}, {"gamma": 0.0}, {"init_eps": -1.0}, {"levels": 1}])
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: want"):
        ddn(Affine(torch.eye(2), torch.zeros(2)), torch.rand(2, 2), **wrong)
