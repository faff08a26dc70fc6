"""BPDA: the transformation's values, the stand-in's gradient, and defenses that fall to the undefended level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacks import cw, deepfool, pgd
from robustlab.data import load
from robustlab.defenses.broken import Quantize, Ripple
from robustlab.evaluation import bpda


def digits(n: int) -> tuple[Tensor, Tensor]:
    data = load("mnist5k")
    return data.x_test[:n], data.y_test[:n]


def gradient(function: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    point = x.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad((function(point) * weight).sum(), point)
    return grad


def test_values_are_the_transforms_and_gradients_the_stand_ins() -> None:
    x, weight = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    matrix = torch.rand(2, 3, dtype=torch.float64)
    wrapped = bpda(lambda t: (t @ matrix.T).round(), lambda t: torch.sin(t @ matrix.T))
    assert torch.equal(wrapped(x), (x @ matrix.T).round())
    # By the chain rule, on paper.
    torch.testing.assert_close(gradient(wrapped, x, weight), (weight * torch.cos(x @ matrix.T)) @ matrix)


def test_the_identity_passes_gradients_through() -> None:
    x, weight = torch.rand(4, 1, 6, 6), torch.randn(4, 1, 6, 6)
    wrapped = bpda(Quantize(4))
    assert torch.equal(wrapped(x), Quantize(4)(x))
    assert torch.equal(gradient(wrapped, x, weight), weight)
    assert torch.equal(gradient(Quantize(4), x, weight), torch.zeros_like(x))


def test_it_works_inside_a_network() -> None:
    """Gradients reach the layers in front of the wrapper as well."""
    torch.manual_seed(0)
    first, last = nn.Linear(4, 4).double(), nn.Linear(4, 2).double()
    x = torch.rand(3, 4, dtype=torch.float64)
    grad = gradient(nn.Sequential(first, bpda(torch.round), last), x, torch.ones(3, 2))
    torch.testing.assert_close(grad, torch.ones(3, 2).double() @ last.weight @ first.weight)


def test_the_stand_in_costs_nothing_without_gradients() -> None:
    calls = []
    wrapped = bpda(torch.round, lambda t: calls.append(1) or t)
    with torch.no_grad():
        wrapped(torch.rand(2, 2))
    assert not calls
    wrapped(torch.rand(2, 2))
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.parametrize("layer", [Quantize(), Ripple()], ids=["quantization", "shattering"])
def test_masked_defenses_fall_to_the_undefended_level(layer: nn.Module) -> None:
    x, y = digits(100)
    net = zoo.load("mnist_cnn")
    settings = {"eps": 0.2, "steps": 40}
    undefended = pgd(net, x, y, **settings).success.float().mean()
    masked = pgd(nn.Sequential(layer, net), x, y, **settings)
    adaptive = pgd(nn.Sequential(bpda(layer), net), x, y, **settings)
    assert masked.success.float().mean() < 0.1 < 0.95 < undefended
    assert adaptive.success.float().mean() > undefended - 0.03
    # What it found fools the defense itself.
    assert torch.equal(nn.Sequential(layer, net)(adaptive.x_adv).argmax(1) != y, adaptive.success)


@pytest.mark.slow
def test_every_attack_works_through_it() -> None:
    x, y = digits(20)
    net, layer = zoo.load("mnist_cnn"), Quantize()
    for attack, settings in (
        (deepfool, {"overshoot": 0.3}),
        (cw, {"steps": 60, "search_steps": 3, "c": 5.0, "lr": 0.1}),
    ):
        masked = attack(nn.Sequential(layer, net), x, y, **settings).success.float().mean()
        adaptive = attack(nn.Sequential(bpda(layer), net), x, y, **settings).success.float().mean()
        assert adaptive > masked + 0.3, attack


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match=r"^transform: want a callable, got int"):
        bpda(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^backward: want a callable or None, got str"):
        bpda(torch.round, "identity")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^backward: want the shape .*\(2, 3\), got \(2, 2\)"):
        bpda(torch.round, lambda t: t[:, :2])(torch.rand(2, 3))
