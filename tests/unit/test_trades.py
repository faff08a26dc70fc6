"""TRADES: its boundary term by enumeration, its two gradients, and what crafting must leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.defenses import trades
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Σ_k p_k·log(p_k / q_k) of probabilities."""
    return (p * (p / q).log()).sum(dim=1)


def formula(
    model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, steps: int, beta: float = 6.0
) -> Tensor:
    """Signed steps uphill on the divergence from x + 0.001·n; then surprise at x, and β times the divergence."""
    here = model(x).softmax(dim=1)
    point = x + (1e-3 * Noise(seed, ids).normal(0, x.shape[1:], x.dtype)).clamp(-eps, eps)
    for _ in range(steps):
        point = point.clamp(0, 1).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(_divergence(here.detach(), model(point).softmax(dim=1)).sum(), point)
        point = torch.minimum(torch.maximum(point + 2.5 * eps / steps * slope.sign(), x - eps), x + eps)
    there = model(point.clamp(0, 1).detach()).softmax(dim=1)
    return -here[torch.arange(len(y), device=y.device), y].log().mean() + beta * _divergence(here, there).mean()


def wave() -> nn.Module:
    """Three classes on the line, with several turns inside a ball of radius 0.1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        model[0].weight.mul_(6)
        model[2].weight.mul_(4)
    return model


def test_in_one_dimension_the_boundary_term_is_the_largest_divergence_on_the_side_that_the_start_is_on() -> None:
    """Enumerated on a grid of 2,001 points of the ball ∩ box."""
    model, eps, grid = wave(), 0.1, torch.linspace(-0.1, 0.1, 2001, dtype=torch.float64)
    x = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None]
    with torch.no_grad():
        here = model(x).softmax(dim=1)
        every = torch.stack([_divergence(here, model((x + d).clamp(0, 1)).softmax(dim=1)) for d in grid], dim=1)
    left, right = every[:, grid <= 0].amax(dim=1), every[:, grid >= 0].amax(dim=1)
    points: list[Tensor] = []
    model.register_forward_hook(lambda m, args, out: points.append(args[0].detach()))
    y, ids, found = torch.zeros(25, dtype=torch.int64), torch.arange(25), []
    for seed in range(8):
        loss = trades(eps=eps, beta=3.0, steps=60, step_size=0.005)(model, x, y, ids=ids, seed=seed).detach()
        found.append(_divergence(here, model(points[-1]).softmax(dim=1)).detach())
        assert float(loss) == pytest.approx(float(-here[:, 0].log().mean() + 3 * found[-1].mean()))
    found = torch.stack(found, dim=1)
    near = torch.minimum((found - left[:, None]).abs(), (found - right[:, None]).abs())
    assert bool((near <= 0.01 * every.amax(dim=1)[:, None] + 1e-9).double().mean() > 0.95), near.max()
    best = found.amax(dim=1)
    torch.testing.assert_close(best, every.amax(dim=1), rtol=0.01, atol=1e-6)


def test_without_beta_it_is_the_cross_entropy_and_the_label_has_no_part_in_the_boundary_term() -> None:
    model, x, ids = nn.Linear(6, 3).double(), torch.rand(9, 6, dtype=torch.float64), torch.arange(9)
    for y in (torch.arange(9) % 3, torch.zeros(9, dtype=torch.int64)):
        plain = F.cross_entropy(model(x), y)
        torch.testing.assert_close(trades(eps=0.1, beta=0.0)(model, x, y, ids=ids, seed=0), plain)
        terms = [float((trades(eps=0.1, beta=b)(model, x, y, ids=ids, seed=0) - plain).detach()) for b in (1.0, 3.0)]
        assert terms[1] == pytest.approx(3 * terms[0]) and terms[0] > 1e-4
        (first,) = {round(terms[0], 12)}
    assert first > 0


def test_the_gradient_goes_through_the_clean_probabilities_too() -> None:
    model, x = nn.Linear(6, 3).double(), torch.rand(9, 6, dtype=torch.float64)
    y, ids = torch.arange(9) % 3, torch.arange(9)
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda m, args, out: seen.append(args[0].detach().clone()))
    loss = trades(eps=0.1, beta=2.0)(model, x, y, ids=ids, seed=0)
    hook.remove()
    there = seen[-1]
    (slope,) = torch.autograd.grad(loss, model.weight)
    p, q = model(x).softmax(dim=1), model(there).softmax(dim=1)
    both = F.cross_entropy(model(x), y) + 2 * _divergence(p, q).mean()
    one_sided = F.cross_entropy(model(x), y) + 2 * _divergence(p.detach(), q).mean()
    (wrong,) = torch.autograd.grad(one_sided, model.weight, retain_graph=True)
    (want,) = torch.autograd.grad(both, model.weight)
    torch.testing.assert_close(slope, want)
    assert float((want - wrong).norm()) > 1e-3, "the test could not tell"


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_crafting_stays_in_ball_and_box_and_leaves_gradients_and_modes_alone(norm: str) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    model.train()
    seen: list[tuple[Tensor, bool]] = []
    model.register_forward_hook(lambda m, args, out: seen.append((args[0].detach().clone(), m[1].training)))
    x, y = torch.rand(12, 6), torch.arange(12) % 3
    trades(norm=norm, eps=0.2, steps=3)(model, x, y, ids=torch.arange(12), seed=0)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [training for _, training in seen] == [False] * 4 + [True, True], "three steps and p(x) in eval mode"
    there = seen[-1][0]
    assert there.min() >= 0 and there.max() <= 1
    assert bool((get_norm(norm).length(there - x) <= 0.2 * (1 + 1e-5)).all())
    assert int(model[1].num_batches_tracked) == 2


def test_in_l2_a_row_without_slope_stays_finite() -> None:
    """A net that is constant on some rows has a gradient of length 0 there, by which nothing may be divided."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.cat([torch.full((3, 4), -0.5), torch.full((3, 4), 0.5)]).double()
    y, ids = torch.arange(6) % 2, torch.arange(6)
    loss = trades(norm="l2", eps=0.2, bounds=(-1.0, 1.0))(model, x, y, ids=ids, seed=0)
    loss.backward()
    assert bool(loss.isfinite()) and all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_wrong_arguments_are_named() -> None:
    for change, match in (({"beta": -1.0}, "beta"), ({"eps": 2.0}, "eps"), ({"weight_perturbation": -1.0}, "weight_p")):
        with pytest.raises(ValueError, match=f"^{match}"):
            trades(**{"eps": 0.1, **change})


def test_a_masked_class_counts_for_nothing() -> None:
    """A class whose logit is always −∞ has probability 0, and 0·log(0/0) is 0: the loss and its slope without it."""
    model = wave()
    x, y, ids = torch.rand(6, 1, dtype=torch.float64), torch.arange(6) % 3, torch.arange(6)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.inner(x), (0, 1), value=-torch.inf)

    found = []
    for each in (model, Masked()):
        loss = trades(eps=0.1, steps=3)(each, x, y, ids=ids, seed=0)
        found.append((loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(found[0], found[1])
