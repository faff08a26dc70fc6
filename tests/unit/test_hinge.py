"""Training by the hinge loss in a ball against a cone program, which its two numbers enclose."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from robustlab.defenses.certified.hinge import train_linear
from robustlab.geometry.keyed import Noise


def overlapping(n: int = 80, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    y = (torch.arange(n) % 3 == 0).long()
    return Noise(seed, torch.arange(n)).normal(0, (d,), torch.float64) + 0.8 * y[:, None], y


def exact(x: Tensor, y: Tensor, n: int, max_norm: float) -> float:
    theta = cp.Variable(x.shape[1] + 1)
    margin = cp.multiply(2.0 * y.numpy() - 1, x.numpy() @ theta[:-1] + theta[-1])
    loss = cp.sum(cp.pos(1 - margin)) / n
    return float(cp.Problem(cp.Minimize(loss), [cp.norm(theta) <= max_norm]).solve())


@pytest.mark.parametrize("max_norm", [0.3, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_least_loss_lies_between_what_was_reached_and_what_none_is_below(seed: int, max_norm: float) -> None:
    x, y = overlapping(seed=seed)
    found = train_linear(x, y, n=60, max_norm=max_norm, steps=1000)
    want = exact(x, y, 60, max_norm)
    assert found.least <= want + 1e-7 and want <= found.loss + 1e-7
    assert found.loss - found.least <= 0.03 * want, "both are near"
    reached = (1 - (2.0 * y - 1) * (x @ found.weight + found.bias)).clamp_min(0).sum() / 60
    assert float(reached) == pytest.approx(found.loss)
    assert float(torch.cat([found.weight, found.bias[None]]).norm()) <= max_norm * (1 + 1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_the_bound_from_below_holds_wherever_training_stops(steps: int) -> None:
    x, y = overlapping(seed=5)
    found = train_linear(x, y, max_norm=5.0, steps=steps)
    assert 0 <= found.least <= exact(x, y, len(x), 5.0) + 1e-7


def test_training_is_no_worse_than_where_it_starts() -> None:
    x, y = overlapping(seed=6)
    good = train_linear(x, y, max_norm=5.0, steps=500)
    start = torch.cat([good.weight, good.bias[None]])
    assert train_linear(x, y, max_norm=5.0, steps=2, start=start).loss <= good.loss
