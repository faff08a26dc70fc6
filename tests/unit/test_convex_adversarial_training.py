"""Training on the convex outer polytope: exact without projections, and the estimate's scale and spread with them.

Schedules, errors and the growth of the certificate are tested with those of ``ibp_training``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.defenses import convex_adversarial_training
from robustlab.defenses.training.convex_adversarial_training import chord_band, outer_lines
from robustlab.graph.hinge import Clamp, Elementwise, Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.smooth import CURVES, Smooth
from robustlab.training.fit import fit
from robustlab.verification import Ball, bounds, trace
from robustlab.verification.propagation.specification import margins
from tests.unit.test_ibp_training import batch, by_signs, checkerboard, clean_surprise, hidden_box, small_net, surprise


def formula(
    model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, projections: None,
    kappa: float = 0.0,
) -> Tensor:  # fmt: skip
    """Sample by sample: softplus between its chord and the parallel that touches it, at f′(z) = the chord's slope."""
    lost, last = [], model[-1]
    for one, label in zip(x, y.tolist(), strict=True):
        weight, offset, low, high = hidden_box(model, one, eps)
        rows = last.weight[label] - torch.cat([last.weight[:label], last.weight[label + 1 :]])
        shift = last.bias[label] - torch.cat([last.bias[:label], last.bias[label + 1 :]])
        chord = (F.softplus(high) - F.softplus(low)) / (high - low)
        touch = (chord / (1 - chord)).log()
        under, over = F.softplus(touch) - chord * touch, F.softplus(low) - chord * low
        slopes = rows * chord
        constant = rows.clamp_min(0) @ under + rows.clamp_max(0) @ over + slopes @ offset + shift
        ends = (one - eps).clamp(0, 1).flatten(), (one + eps).clamp(0, 1).flatten()
        lost.append(surprise(by_signs(slopes @ weight, constant, *ends)[0]))
    clean = kappa * clean_surprise(model, x, y) if kappa else 0.0
    return clean + (1 - kappa) * torch.stack(lost).mean()


def relu_net() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(1, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 9), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(9, 4)).double()
    x = torch.rand(3, 1, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, x, torch.arange(3)


def test_without_projections_it_is_the_verifiers_bound() -> None:
    model, x, y = relu_net()
    theirs = bounds(model, Ball(x, 0.1), margins(y, 4, x.dtype), method="wong_kolter").lower
    worst = convex_adversarial_training(eps=0.1, projections=None).worst(model, x, y, 0.1)
    ours = torch.stack([torch.cat([row[:label], row[label + 1 :]]) for row, label in zip(worst, y, strict=True)])
    torch.testing.assert_close(-ours, theirs, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_median_of_projections_is_the_width() -> None:
    """Of the bands of the first ReLUs: 40,000 projections come within a tenth of them, 50 scatter."""
    model, x, _ = relu_net()
    graph, region = trace(model, x), Ball(x, 0.1)
    first = graph.relus[graph.pre_activations[0]]

    def width(projections: int | None, seed: int = 0) -> Tensor:
        """Of the first ReLU's band: u·(−l)/(u − l), from 0 up, at neurons that are unstable in all."""
        return outer_lines(graph, region, projections, seed)[first].upper_bias

    exact = width(None)
    open_neurons = exact > 0.02
    assert int(open_neurons.sum()) > 10
    many = width(40_000)
    assert bool(((many / exact)[open_neurons] - 1).abs().max() < 0.1)
    errors = torch.stack([(width(50, seed) - exact)[open_neurons] for seed in range(20)])
    assert 0.01 < float(errors.std()) / float(exact[open_neurons].mean()) < 1.0
    assert not torch.equal(width(50, 0), width(50, 1)) and torch.equal(width(50, 1), width(50, 1))


OPERATORS: dict[str, Elementwise] = {
    "relu": Hinge(0.0, 1.0), "leaky": Hinge(0.2, 1.0), "absolute": Hinge(-1.0, 1.0), "clamp": Clamp(0.0, 0.7),
    **{name: Smooth(name) for name in CURVES},
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_the_band_holds_the_function_and_touches_it(name: str) -> None:
    op, generator = OPERATORS[name], torch.Generator().manual_seed(0)
    l = 4 * torch.rand(60, 1, generator=generator, dtype=torch.float64) - 3
    box = Bounds(l, l + 3 * torch.rand(60, 1, generator=generator, dtype=torch.float64))
    band = chord_band(op, box)
    z = box.lower + box.width * torch.linspace(0, 1, 4001, dtype=torch.float64)
    over = op.forward(z) - band.upper_slope * z
    assert band.lower_bias is not None
    assert bool((over <= band.upper_bias + 1e-9).all() and (over >= band.lower_bias - 1e-9).all())
    torch.testing.assert_close(over.amax(dim=1, keepdim=True), band.upper_bias, rtol=0, atol=2e-3)
    torch.testing.assert_close(over.amin(dim=1, keepdim=True), band.lower_bias, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_the_certified_loss_falls_by_another_methods_word() -> None:
    """Trained with 20 projections; the worst logits by Fast-Lin, which has none, on other points."""
    loss, (x, y) = [], checkerboard(300, 1)
    for objective in (None, convex_adversarial_training(eps=0.05, projections=20, ramp=(0.0, 0.3))):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2))
        how = {} if objective is None else {"objective": objective}
        fit(model, checkerboard(300, 0), epochs=40, batch_size=50, lr=0.02, **how)
        with torch.no_grad():
            lower = bounds(model, Ball(x, 0.05), margins(y, 2), method="fast_lin").lower
        loss.append(float(F.softplus(-lower).mean()))
    assert loss[1] < 0.7 * loss[0], loss


def test_wrong_arguments_and_operators_are_named() -> None:
    for value in (0, 1.5):
        with pytest.raises((TypeError, ValueError), match=r"^projections"):
            convex_adversarial_training(eps=0.1, projections=value)  # type: ignore[arg-type]
    model, (x, y) = small_net(), batch(2)
    pooled = nn.Sequential(model[:2], nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 10)).double()
    with pytest.raises(ValueError, match=r"functions of one number, got MaxPool"):
        fit(pooled, (x, y), objective=convex_adversarial_training(eps=0.1), epochs=1)
