"""Objectives for smoothed classifiers: expectations by quadrature, the worst place of a plane, and one set of draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses import smooth_adv, stability_training

HERMITE, WEIGHTS = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(80))
WEIGHTS = WEIGHTS / math.sqrt(2 * math.pi)


def line(slope: float = 3.0) -> nn.Module:
    """Two classes on the line, logits 0 and slope·(x − ½)."""
    model = nn.Linear(1, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [slope]]))
        model.bias.copy_(torch.tensor([0.0, -slope / 2]))
    return model


def expected(f: Callable[[Tensor], Tensor], x: Tensor, sigma: float) -> Tensor:
    """E f(x + σε) for x (N, 1) and f of (M, 1) to (M,)."""
    points = x + sigma * HERMITE
    return f(points.reshape(-1, 1)).reshape(points.shape) @ WEIGHTS


def mean_of(objective: Callable[..., Tensor], model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The mean loss over 120 steps of a training, and its standard error."""
    ids = torch.arange(len(x))
    losses = torch.stack([objective(model, x, y, ids=ids, seed=seed).detach() for seed in range(120)])
    return float(losses.mean()), float(losses.std()) / len(losses) ** 0.5


def test_stability_is_its_expectation() -> None:
    """On the line, where the divergence of two Bernoulli laws is integrated by Gauss and Hermite."""
    model, sigma, beta = line(), 0.4, 2.0
    x = torch.linspace(0.1, 0.9, 40, dtype=torch.float64)[:, None]
    y = (x[:, 0] > 0.5).long()
    p = model(x).softmax(dim=1).detach()

    def kl(points: Tensor) -> Tensor:
        q = model(points).softmax(dim=1).detach().reshape(len(x), -1, 2)
        return (p[:, None] * (p[:, None] / q).log()).sum(dim=2).flatten()

    told = -p.gather(1, y[:, None]).log().mean() + beta * expected(kl, x, sigma).mean()
    mean, error = mean_of(stability_training(sigma=sigma, beta=beta), model, x, y)
    assert abs(mean - float(told)) < 5 * error < 0.1 * float(told)
    natural, _ = mean_of(stability_training(sigma=sigma, beta=0.0), model, x, y)
    assert natural == pytest.approx(float(-p.gather(1, y[:, None]).log().mean()))


@pytest.mark.slow
@pytest.mark.parametrize("draws", [1, 3])
def test_smooth_adv_is_the_expectation_at_the_worst_place(draws: int) -> None:
    """Of a line the worst place of the ball ∩ box is its end on the other class's side, whatever the noise."""
    model, sigma, eps = line(), 0.3, 0.1
    x = torch.linspace(0.02, 0.98, 40, dtype=torch.float64)[:, None]
    y = (x[:, 0] > 0.5).long()
    worst = (x + torch.where(y == 1, -eps, eps)[:, None]).clamp(0, 1)

    def surprise(points: Tensor) -> Tensor:
        return -model(points).log_softmax(dim=1).gather(1, y.repeat_interleave(len(HERMITE))[:, None])[:, 0]

    told = float(expected(surprise, worst, sigma).mean().detach())
    mean, error = mean_of(smooth_adv(sigma=sigma, eps=eps, draws=draws), model, x, y)
    assert abs(mean - told) < 5 * error < 0.1 * told
    assert abs(told - float(expected(surprise, x, sigma).mean().detach())) > 0.1 * told


def test_one_set_of_draws_for_crafting_and_for_training() -> None:
    """K steps climb −log of the mean probability, by hand; the noise leaves the box."""
    seen: list[Tensor] = []

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return torch.as_tensor(self.net(x))

    model, eps, steps = Seen(), 0.3, 3
    x = 0.35 + 0.3 * torch.rand(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(6) % 3
    loss = smooth_adv(sigma=0.7, eps=eps, steps=steps, draws=4)(model, x, y, ids=torch.arange(6), seed=5)
    first, last = seen[0].reshape(6, 4, 5), seen[-1].reshape(6, 4, 5)
    noise = first - x[:, None]
    assert bool((first < 0).any()) and bool((first > 1).any()) and float(noise.std()) == pytest.approx(0.7, rel=0.2)
    point = x
    for _ in range(steps):
        point = point.detach().requires_grad_(True)
        mean = model.net((point[:, None] + noise).flatten(0, 1)).softmax(dim=1).reshape(6, 4, 3).mean(dim=1)
        (slope,) = torch.autograd.grad(-mean[torch.arange(6), y].log().sum(), point)
        moved = point + 2.5 * eps / steps * slope / slope.norm(dim=1, keepdim=True) - x
        point = x + moved * (eps / moved.norm(dim=1, keepdim=True)).clamp_max(1)
    torch.testing.assert_close(last, point.detach()[:, None] + noise)
    assert float((point - x).detach().norm(dim=1).min()) > 0.25
    loss.backward()  # type: ignore[no-untyped-call]
    own = torch.nn.functional.cross_entropy(model.net(seen[-1]), y.repeat_interleave(4))
    torch.testing.assert_close(loss, own)
    slopes = torch.autograd.grad(own, list(model.net.parameters()))
    for p, g in zip(model.net.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_bad_input() -> None:
    for make, message in (
        (lambda: smooth_adv(sigma=0.0, eps=0.1), "^sigma: want"),
        (lambda: smooth_adv(sigma=1.0, eps=0.0), "^eps: want"),
        (lambda: smooth_adv(sigma=1.0, eps=0.1, draws=0), "^draws: want"),
        (lambda: stability_training(sigma=-1.0), "^sigma: want"),
        (lambda: stability_training(sigma=1.0, beta=-1.0), "^beta: want"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match=r"^x: "):
        smooth_adv(sigma=1.0, eps=0.1)(line(), torch.full((2, 1), 200.0).double(), torch.tensor([0, 1]),
                                       ids=torch.arange(2), seed=0)  # fmt: skip
