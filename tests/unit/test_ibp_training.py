"""Training on interval bounds: its worst logits, its schedules, its cost, and a net whose certificate grows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.defenses import crown_ibp, ibp_training
from robustlab.models.modes import evaluating
from robustlab.training.fit import fit
from robustlab.verification import Ball, bounds, certify
from robustlab.verification.propagation.specification import margins
from tests.unit.multiplications import multiplications

BOTH = pytest.mark.parametrize("trainer", [ibp_training, crown_ibp])


def by_signs(weight: Tensor, bias: Tensor | float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of W·x + b: each weight meets the end that its sign asks for."""
    plus, minus = weight.clamp_min(0), weight.clamp_max(0)
    return plus @ low + minus @ high + bias, plus @ high + minus @ low + bias


def as_matrix(layers: nn.Module, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Affine layers, written out."""
    size = torch.Size(shape).numel()
    with torch.no_grad():
        offset = layers(torch.zeros(1, *shape).to(like)).flatten()
        columns = layers(torch.eye(size).to(like).reshape(size, *shape)).flatten(1) - offset
    return columns.T, offset


def hidden_box(model: nn.Module, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one sample x, of a net affine–activation–affine: matrix and offset before the activation, and its box."""
    weight, offset = as_matrix(model[:2], tuple(x.shape), x)
    low, high = (x - eps).clamp(0, 1).flatten(), (x + eps).clamp(0, 1).flatten()
    return weight, offset, *by_signs(weight, offset, low, high)


def surprise(lower: Tensor) -> Tensor:
    """log(1 + Σ exp(−m)) of the lower bounds of the margins."""
    return (1 + (-lower).exp().sum()).log()


def clean_surprise(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = model(x)
    return (z.exp().sum(dim=1).log() - z[torch.arange(len(y), device=z.device), y]).mean()


def formula(
    model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, kappa: float = 0.5
) -> Tensor:
    """Sample by sample, with the weights split by their signs."""
    lost, last = [], model[-1]
    for one, label in zip(x, y.tolist(), strict=True):
        _, _, low, high = hidden_box(model, one, eps)
        rows = last.weight[label] - torch.cat([last.weight[:label], last.weight[label + 1 :]])
        shift = last.bias[label] - torch.cat([last.bias[:label], last.bias[label + 1 :]])
        lost.append(surprise(by_signs(rows, shift, F.softplus(low), F.softplus(high))[0]))
    return kappa * clean_surprise(model, x, y) + (1 - kappa) * torch.stack(lost).mean()


def small_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8 * 36, 40), nn.ReLU(), nn.Linear(40, 10)).to(dtype)


def batch(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, 14, 14, generator=generator, dtype=torch.float64).to(dtype), torch.arange(n) % 10


@pytest.mark.parametrize("beta", [None, 0.0, 1.0])
def test_the_worst_logits_are_the_verifiers_bounds(beta: float | None) -> None:
    """In float64 exactly; in float32 the verifier's are lower by its margin for rounding."""
    objective = ibp_training(eps=0.05) if beta is None else crown_ibp(eps=0.05, beta=beta)
    method, options = ("crown_ibp", {"intersect": False}) if beta else ("ibp", {})
    for dtype in (torch.float64, torch.float32):
        model, (x, y) = small_net(dtype), batch(6, dtype)
        C, region = margins(y, 10, dtype), Ball(x, 0.05)
        theirs = -bounds(model, region, C, method=method, **options).lower
        worst = objective.worst(model, x, y, 0.05)
        assert bool((worst.gather(1, y[:, None]) == 0).all())
        ours = torch.stack([torch.cat([row[:label], row[label + 1 :]]) for row, label in zip(worst, y, strict=True)])
        if dtype == torch.float64:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if beta is None else 1e-12)
        else:
            assert bool((ours < theirs).all()) and bool((theirs - ours < 1e-3).all())


@BOTH
def test_no_point_of_the_ball_is_worse(trainer: object) -> None:
    model, (x, y) = small_net(), batch(8)
    worst = F.cross_entropy(trainer(eps=0.03).worst(model, x, y, 0.03), y, reduction="none")  # type: ignore[operator]
    for seed in range(20):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype).sign()
        there = F.cross_entropy(model((x + 0.03 * noise).clamp(0, 1)), y, reduction="none")
        assert bool((there <= worst + 1e-9).all())


def test_a_step_costs_at_most_3_3_plain_ones() -> None:
    """In products, forward and backward, the clean term included; in float32 no more than in float64."""
    objective = ibp_training(eps=0.1)

    def counted(dtype: torch.dtype) -> tuple[int, int]:
        model, (x, y) = small_net(dtype), batch(20, dtype)
        plain = multiplications(lambda: F.cross_entropy(model(x), y).backward())
        return plain, multiplications(lambda: objective(model, x, y, ids=torch.arange(20), seed=0).backward())

    plain, ours = counted(torch.float32)
    assert 2 * plain < ours <= 3.3 * plain, ours / plain
    assert counted(torch.float64) == (plain, ours)
    objective.set_progress(0.01)  # before the growth, the clean loss alone
    assert counted(torch.float32) == (plain, plain)


@BOTH
def test_kappa_weighs_the_clean_loss(trainer: object) -> None:
    model, (x, y) = small_net(), batch(4)
    loss = {k: trainer(eps=0.05, kappa=k)(model, x, y, ids=torch.arange(4), seed=0) for k in (0.0, 0.2, 1.0)}  # type: ignore[operator]
    torch.testing.assert_close(loss[1.0], F.cross_entropy(model(x), y))
    torch.testing.assert_close(loss[0.2], 0.2 * loss[1.0] + 0.8 * loss[0.0])
    assert float((loss[0.0] - loss[1.0]).detach()) > 0.01


@BOTH
def test_schedules(trainer: object) -> None:
    objective = trainer(eps=0.4, kappa=0.2, ramp=(0.1, 0.6))  # type: ignore[operator]
    assert (objective.growth.eps, objective.growth.kappa) == pytest.approx((0.4, 0.2)), "outside fit, as at the end"
    table = {0.0: (0.0, 1.0), 0.1: (0.0, 1.0), 0.35: (0.2, 0.6), 0.6: (0.4, 0.2), 0.99: (0.4, 0.2)}
    for done, (eps, kappa) in table.items():
        objective.set_progress(done)
        assert (objective.growth.eps, objective.growth.kappa) == pytest.approx((eps, kappa))
        if trainer is crown_ibp:
            assert objective.beta == pytest.approx(1 - eps / 0.4)
    objective.set_progress(0.05)  # nothing is bounded while it weighs nothing
    model, (x, y) = small_net(), batch(3)
    loss = objective(model, x, y, ids=torch.arange(3), seed=0)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y))
    steep = trainer(eps=0.4, ramp=(0.0, 0.0))  # type: ignore[operator]
    steep.set_progress(0.0)
    assert steep.growth.eps == 0.4


@BOTH
def test_a_schedule_that_ends_below_its_evaluation_is_named(trainer: object) -> None:
    make = trainer
    with pytest.raises(ValueError, match=r"^eps: want at least evaluated_at = 0\.3, .* got 0\.1"):
        make(eps=0.1, evaluated_at=0.3)  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"^ramp: want an end below 1, got \(0\.0, 2\.0\); .* ε = 0\.15"):
        make(eps=0.3, ramp=(0.0, 2.0))  # type: ignore[operator]
    assert make(eps=0.3, evaluated_at=0.3)  # type: ignore[operator]
    wrong = {"kappa": 1.5, "eps": 2.0, "ramp": (0.5, 0.2), "evaluated_at": -1.0, "bounds": (1.0, 0.0)}
    for name, value in wrong.items():
        with pytest.raises((TypeError, ValueError), match=f"^{name}"):
            make(**{"eps": 0.1, name: value})  # type: ignore[operator]


@BOTH
def test_an_operator_without_bounds_is_named_before_training(trainer: object) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.calls += 1
            return torch.cumprod(self.layer(x), dim=1)

    model, data = Odd(), (torch.rand(10, 4), torch.arange(10) % 3)
    before = model.layer.weight.clone()
    with pytest.raises(ValueError, match=r"node 'cumprod'"):
        fit(model, data, objective=trainer(eps=0.1), epochs=3)  # type: ignore[operator]
    assert model.calls == 0 and torch.equal(model.layer.weight, before)


def checkerboard(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four squares of two classes in the plane, at a distance of 0.2 from each other."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 2, (n, 2), generator=generator)
    return 0.05 + 0.55 * corner + 0.35 * torch.rand(n, 2, generator=generator), corner.sum(dim=1) % 2


@pytest.mark.slow
@BOTH
def test_the_certificate_grows(trainer: object) -> None:
    """At ε = 0.05 most points are certified by intervals, few after plain training."""
    share = []
    for objective in (None, trainer(eps=0.06, ramp=(0.1, 0.6), evaluated_at=0.05)):  # type: ignore[operator]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2))
        how = {} if objective is None else {"objective": objective}
        fit(model, checkerboard(400, 0), epochs=25, batch_size=50, lr=0.02, **how)
        x, y = checkerboard(300, 1)
        with evaluating(model):
            share.append(float(certify(model, x, y, eps=0.05, method="ibp").verified.double().mean()))
    assert share[1] > 0.8 and share[1] > share[0] + 0.2, share
