"""SingleProp: its deviation by a few lines of its own, against intervals, and where it is no bound."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustlab.verification
from robustlab.attacks import pgd
from robustlab.defenses import singleprop
from robustlab.models.modes import evaluating
from robustlab.training.fit import fit
from robustlab.verification import Ball, bounds, certify, trace
from tests.unit.multiplications import multiplications
from tests.unit.test_ibp_training import as_matrix, batch, checkerboard, clean_surprise, small_net

LINES = pytest.mark.parametrize("relu", ["zero", "parallel", "adaptive"])


def formula(
    model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, kappa: float = 0.5
) -> Tensor:
    """Sample by sample, on a net affine–softplus–affine: half the range of softplus around its nominal value."""
    lost, last = [], model[-1]
    for one, label in zip(x, y.tolist(), strict=True):
        weight, offset = as_matrix(model[:2], tuple(one.shape), one)
        z, v = weight @ one.flatten() + offset, weight.abs() @ torch.full_like(one.flatten(), eps)
        after = (F.softplus(z + v) - F.softplus(z - v)) / 2
        z, v = last.weight @ F.softplus(z) + last.bias, last.weight.abs() @ after
        worst = torch.stack([z[j] - v[j] if j == label else z[j] + v[j] for j in range(len(z))])
        lost.append(worst.exp().sum().log() - worst[label])
    return kappa * clean_surprise(model, x, y) + (1 - kappa) * torch.stack(lost).mean()


def by_hand(z: float, v: float, relu: str) -> float:
    """Half of what the two lines of a ReLU span over [z − v, z + v], from the lines themselves, on a grid."""
    low, high = z - v, z + v
    if low >= 0 or high <= 0:
        return v if low >= 0 else 0.0
    at = torch.linspace(low, high, 5, dtype=torch.float64)
    chord = high / (high - low)
    below = {"zero": 0.0, "parallel": chord, "adaptive": float(z >= 0)}[relu]
    return float(((chord * (at - low)).max() - (below * at).min()) / 2)


@LINES
def test_the_deviation_of_a_relu(relu: str) -> None:
    """By the lines, and by the formulas of the authors' code."""
    objective, identity = singleprop(eps=0.1, relu=relu), nn.Sequential(nn.ReLU())
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.rand(300, 1, generator=generator, dtype=torch.float64) - 1
    v = 0.01 + torch.rand(300, generator=generator, dtype=torch.float64)
    graph = trace(identity, z)
    found = objective.propagate(graph, Ball(z, v, box=None))[1][:, 0].tolist()
    for middle, half, ours in zip(z[:, 0].tolist(), v.tolist(), found, strict=True):
        assert ours == pytest.approx(by_hand(middle, half, relu), abs=1e-12)
        if abs(middle) < half:
            fast_lin = 3 * half / 4 + middle / 2 - middle**2 / (4 * half)
            zero = (middle + half) / 2
            want = {"zero": zero, "parallel": fast_lin, "adaptive": half if middle >= 0 else zero}[relu]
            assert ours == pytest.approx(want, abs=1e-12)


@LINES
def test_layer_by_layer(relu: str) -> None:
    """A convolutional net with three hidden layers, as matrices, one sample at a time."""
    model, (x, y) = small_net(), batch(2)
    worst = singleprop(eps=0.03, relu=relu).worst(model, x, y, 0.03)
    affine = [(model[:1], (1, 14, 14)), (model[2:3], (8, 14, 14)), (model[4:6], (8, 6, 6)), (model[7:], (40,))]
    for i in range(2):
        z, v = x[i].flatten(), torch.full((196,), 0.03, dtype=torch.float64)
        for number, (layers, shape) in enumerate(affine):
            weight, offset = as_matrix(layers, shape, x)
            z, v = weight @ z + offset, weight.abs() @ v
            if number < 3:
                after = [by_hand(*pair, relu) for pair in zip(z.tolist(), v.tolist(), strict=True)]
                z, v = z.relu(), torch.tensor(after, dtype=torch.float64)
        moved = torch.where(torch.arange(10) == y[i], z - v, z + v)
        torch.testing.assert_close(worst[i].detach(), (moved - moved[y[i]]).detach(), rtol=0, atol=1e-9)


def test_against_intervals() -> None:
    """One hidden layer: the radius of intervals around another center. No unstable neuron: the intervals themselves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).double()
        deep = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    x = torch.rand(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph, ball = trace(model, x), Ball(x, 0.2, box=None)
    z, v = singleprop(eps=0.2).propagate(graph, ball)
    box = bounds(model, ball, method="ibp")
    torch.testing.assert_close(v, box.radius)
    assert float((z - box.center).abs().max().detach()) > 0.01, "the centers differ"
    for bias, shift in ((deep[0].bias, 5.0), (deep[2].bias, 40.0)):
        bias.data += shift  # all neurons are active on the balls
    ball = Ball(x, 0.05, box=None)
    box = bounds(deep, ball, method="ibp")
    for relu in ("zero", "parallel", "adaptive"):
        z, v = singleprop(eps=0.05, relu=relu).propagate(trace(deep, x), ball)  # type: ignore[arg-type]
        torch.testing.assert_close(z - v, box.lower)
        torch.testing.assert_close(z + v, box.upper)


def fooling_net() -> tuple[nn.Module, Tensor, Tensor]:
    """z₀ = 0.3 and z₁ = relu(x − ½): class 0 as long as x < 0.8."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(-0.5)  # 0 at x = ½
        model[2].weight.copy_(torch.tensor([[0.0], [1.0]]))
        model[2].bias.copy_(torch.tensor([0.3, 0.0]))
    return model, torch.full((1, 1), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)


def test_it_is_no_certificate() -> None:
    """relu(x − ½) on [0.1, 0.9] reaches 0.4 and passes 0.3; the deviation says 0 ± 0.2. The verifier is not fooled."""
    model, x, y = fooling_net()
    worst = singleprop(eps=0.4).worst(model, x, y, 0.4)
    torch.testing.assert_close(worst.detach(), torch.tensor([[0.0, -0.1]], dtype=torch.float64))
    assert bool(pgd(model, x, y, eps=0.4).success), "yet an attack succeeds"
    assert not bool(certify(model, x, y, eps=0.4, method="crown").verified)
    assert bool(certify(model, x, y, eps=0.25, method="crown").verified)
    there = F.cross_entropy(model(x + 0.4), y)
    assert float(there.detach()) > float(F.cross_entropy(worst, y).detach()), "and the loss is no bound"


def test_no_verifier_knows_it() -> None:
    assert not hasattr(robustlab.verification, "singleprop")
    with pytest.raises(ValueError, match=r"^method"):
        certify(*fooling_net(), eps=0.1, method="singleprop")  # type: ignore[arg-type]


def test_a_step_costs_two_plain_ones() -> None:
    """In products, forward and backward, the clean term included; where batch norm needs it, one more pass."""
    objective, model, (x, y) = singleprop(eps=0.1), small_net(), batch(20)
    plain = multiplications(lambda: F.cross_entropy(model(x), y).backward())
    ours = multiplications(lambda: objective(model, x, y, ids=torch.arange(20), seed=0).backward())
    assert 1.5 * plain < ours <= 2.1 * plain, ours / plain
    normed = nn.Sequential(model[0], nn.BatchNorm2d(8), *model[1:]).double().train()
    third = multiplications(lambda: objective(normed, x, y, ids=torch.arange(20), seed=0).backward())
    assert 2.1 * plain < third <= 3.3 * plain
    assert int(normed[1].num_batches_tracked) == 1, "statistics move once per step"


def test_clean_logits_are_the_models() -> None:
    """With and without the shared pass, the loss is the same."""
    model, (x, y) = small_net(), batch(5)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    for kappa in (0.0, 0.3, 1.0):
        objective = singleprop(eps=0.05, kappa=kappa)
        shared = objective(model, x, y, ids=torch.arange(5), seed=0)
        torch.testing.assert_close(objective(Wrapped(), x, y, ids=torch.arange(5), seed=0), shared)


@pytest.mark.slow
@LINES
def test_the_certificate_of_another_method_grows(relu: str) -> None:
    """CROWN certifies most points at ε = 0.05 after this training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2))
    objective = singleprop(eps=0.06, relu=relu, ramp=(0.1, 0.6), evaluated_at=0.05)  # type: ignore[arg-type]
    fit(model, checkerboard(400, 0), epochs=25, batch_size=50, lr=0.02, objective=objective)
    x, y = checkerboard(300, 1)
    with evaluating(model):
        share = float(certify(model, x, y, eps=0.05, method="crown").verified.double().mean())
    assert share > 0.8, share


def test_wrong_arguments_are_named() -> None:
    for change in ({"relu": "one"}, {"eps": 0.0}, {"kappa": 2.0}, {"ramp": (0.5, 1.0)}, {"evaluated_at": 0.3}):
        name = "eps" if "evaluated_at" in change else next(iter(change))
        with pytest.raises((TypeError, ValueError), match=f"^{name}"):
            singleprop(**{"eps": 0.1, **change})  # type: ignore[arg-type]


def test_an_operator_without_bounds_is_named_before_training() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumprod(x, dim=1)

    model, x = nn.Sequential(nn.Linear(4, 3), Odd()), torch.rand(10, 4)
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=r"node '.*cumprod'"):
        fit(model, (x, torch.arange(10) % 3), objective=singleprop(eps=0.1), epochs=1)
    assert torch.equal(before, model[0].weight)
