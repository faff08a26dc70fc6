"""FGSM and BIM against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import bim, fgsm
from tests.suite.cases import noise_box
from tests.suite.models import mlp


def problem(n: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = mlp((6,), 3), noise_box(n, (6,), torch.float64)
    return model, x, model(x).argmax(1)


def gradient(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(nn.functional.cross_entropy(model(x), label, reduction="sum"), x)[0]


def test_linf_is_the_clipped_sign_step() -> None:
    model, x, y = problem()
    expected = (x + 0.07 * gradient(model, x, y).sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, eps=0.07).x_adv, expected, rtol=0, atol=1e-15)
    target = (y + 1) % 3
    expected = (x - 0.07 * gradient(model, x, target).sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, x, y, eps=0.07, target=target).x_adv, expected, rtol=0, atol=1e-15)


def test_l2_is_the_normalized_step_and_l1_one_element() -> None:
    model, x, y = problem()
    wide = Victim(model, bounds=(-9.0, 9.0))
    grad = gradient(model, x, y)
    expected = x + 0.1 * grad / grad.norm(dim=1, keepdim=True)
    torch.testing.assert_close(fgsm(wide, x, y, norm="l2", eps=0.1).x_adv, expected, rtol=0, atol=1e-12)
    top = grad.abs().argmax(dim=1, keepdim=True)
    expected = x + torch.zeros_like(x).scatter(1, top, 0.1 * grad.gather(1, top).sign())
    torch.testing.assert_close(fgsm(wide, x, y, norm="l1", eps=0.1).x_adv, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_cost_is_three_queries_and_one_gradient(norm: str) -> None:
    model, x, y = problem()
    result = fgsm(model, x, y, norm=norm, eps=0.05)
    assert result.queries.tolist() == [3] * 10 and result.gradients.tolist() == [1] * 10


def test_box_aware_step_beats_clipping() -> None:
    """In ℓ2 the length that the box takes away is spent elsewhere: the linearized loss rises more."""
    model, x, y = problem()
    x = x.round()
    y = model(x).argmax(1)
    grad = gradient(model, x, y)
    ours = fgsm(model, x, y, norm="l2", eps=0.5).x_adv
    clipped = (x + 0.5 * grad / grad.norm(dim=1, keepdim=True)).clamp(0, 1)
    assert bool(((grad * (ours - x)).sum(1) >= (grad * (clipped - x)).sum(1) - 1e-12).all())
    assert bool(((grad * (ours - x)).sum(1) > (grad * (clipped - x)).sum(1) + 1e-6).any())


def test_bim_clips_at_every_step() -> None:
    model, x, y = problem()
    eps, alpha, steps = 0.02, 0.008, 6
    point = x.clone()
    losses, points = [], []
    for _ in range(steps):
        point = point + alpha * gradient(model, point, y).sign()
        point = torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(0, 1)
        points.append(point)
        losses.append(nn.functional.cross_entropy(model(point), y, reduction="none").detach())
    result = bim(model, x, y, eps=eps, steps=steps, step_size=alpha)
    failed = (~result.success).nonzero().flatten()
    best = torch.stack(losses).argmax(dim=0)
    expected = torch.stack([points[int(best[i])][i] for i in failed])
    assert len(failed) >= 3
    torch.testing.assert_close(result.x_adv[failed], expected, rtol=0, atol=1e-12)


def test_bim_reaches_the_edge_by_default() -> None:
    model, x, y = problem()
    result = bim(Victim(model, bounds=(-9.0, 9.0)), x, y, eps=0.01, steps=5)
    failed = ~result.success
    torch.testing.assert_close(result.distances["linf"][failed], torch.full_like(x[failed, 0], 0.01))
    assert torch.equal(result.x_adv, bim(Victim(model, bounds=(-9.0, 9.0)), x, y, eps=0.01, steps=5, seed=7).x_adv)
