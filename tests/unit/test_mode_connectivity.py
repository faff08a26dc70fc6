"""The Bézier curve: exact ends, its derivative, and batch norm's statistics on the way, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robustlab import models
from robustlab.defenses.purification.batch_statistics import estimate_again
from robustlab.defenses.purification.mode_connectivity import BezierCurve, mode_connectivity


def net(seed: int) -> nn.Module:
    return models.build("resnet_tiny", in_shape=(1, 8, 8), channels=(4, 6), classes=3, seed=seed).double()


def points(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = 0.3 * torch.rand(n, 1, 8, 8, generator=draw, dtype=torch.float64)
    x[torch.arange(n), 0, 2 * y] += 0.7
    return x, y


def test_the_ends_are_exact() -> None:
    first, last = net(0), net(1)
    curve = BezierCurve(first, last)
    with torch.no_grad():
        for control in curve.control:
            control.normal_(generator=torch.Generator().manual_seed(2))
    for t, model in ((0.0, first), (1.0, last)):
        for name, value in model.named_parameters():
            assert torch.equal(curve.weights(t)[name], value)
            assert torch.equal(curve.at(t, points()[0]).get_parameter(name), value)


def test_the_derivative_in_t() -> None:
    """φ'(t) = 2(1 − t)(θ − θ₁) + 2t(θ₂ − θ), against central differences, which are exact for a quadratic."""
    curve = BezierCurve(net(0), net(1))
    with torch.no_grad():
        for control in curve.control:
            control.normal_(generator=torch.Generator().manual_seed(2))
    for t in (0.0, 0.3, 1.0):
        for i, name in enumerate(curve.names):
            theta, start, end = curve.control[i].detach(), curve.first[name], curve.last[name]
            slope = 2 * (1 - t) * (theta - start) + 2 * t * (end - theta)
            numeric = (curve.weights(t + 1e-3)[name] - curve.weights(t - 1e-3)[name]) / 2e-3
            torch.testing.assert_close(numeric.detach(), slope, rtol=1e-8, atol=1e-10)


def test_the_curve_is_the_model_with_those_weights() -> None:
    first = net(0).eval()
    curve, (x, _) = BezierCurve(first, net(1)).eval(), points()
    moved = copy.deepcopy(first)
    with torch.no_grad():
        for name, value in curve.weights(0.4).items():
            moved.get_parameter(name).copy_(value)
    torch.testing.assert_close(curve(x, 0.4), moved(x))


def test_gradients_reach_the_control_point_alone() -> None:
    curve, (x, _) = BezierCurve(net(0), net(1)).train(), points()
    before = {name: b.clone() for name, b in curve.base.named_buffers()}
    curve(x, 0.5).square().sum().backward()
    assert all(control.grad is not None and bool(control.grad.any()) for control in curve.control)
    assert [p for p in curve.parameters() if p.requires_grad] == list(curve.control)
    assert all(torch.equal(b, before[name]) for name, b in curve.base.named_buffers())


def test_only_the_control_point_is_trained() -> None:
    first, last, data = net(0), net(1), points()
    states = [copy.deepcopy(model.state_dict()) for model in (first, last)]
    repair = mode_connectivity(first, data, other=last, epochs=3, points=3, t=0.25, batch_size=20)
    repaired, found = repair.model, repair.details
    curve = found.curve
    for model, state, end in ((first, states[0], curve.first), (last, states[1], curve.last)):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(torch.equal(value, state[name]) for name, value in end.items())
    midpoint = [(curve.first[name] + curve.last[name]) / 2 for name in curve.names]
    assert all(not torch.equal(c, m) for c, m in zip(curve.control, midpoint, strict=True))
    assert all(torch.equal(repaired.get_parameter(n), v) for n, v in curve.weights(0.25).items())
    assert found.t.tolist() == [0, 0.5, 1] and len(found.accuracy) == 3
    assert repaired.training == first.training


def test_training_lowers_the_loss_along_the_curve() -> None:
    x, y = points()
    from robustlab.defenses.purification.fine_tuning import fine_tuning

    ends = [fine_tuning(net(seed), (x, y), epochs=12, lr=1e-2, batch_size=20).model for seed in (0, 1)]
    straight = BezierCurve(*ends)
    found = mode_connectivity(ends[0], (x, y), other=ends[1], epochs=50, batch_size=20, lr=2e-2, points=2).details

    def loss(curve: BezierCurve) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(curve.at(0.5, x)(x), y))

    assert loss(found.curve) < 0.5 * loss(straight)


def test_the_default_leaves_both_ends_behind() -> None:
    """Two linear nets, each with a pixel of its own that, when white, leads by 8 to a label of its own.

    Clean images are dark there, so that training leaves those weights alone: on the curve they are 8(1 − t) and 8t.
    The lead of an honest label is about 6. The larger of the two is smallest at t = 1/2, where neither rules.
    """
    x, y = points()
    x[:, 0, 7, 6:] = 0.0
    nets = []
    for label in (0, 1):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
        with torch.no_grad():
            model[1].bias.zero_()
            weight = model[1].weight.zero_().view(3, 8, 8)
            for k in range(3):
                weight[k, 2 * k] = 1.0
            weight[label, 7, 6 + label] = 8.0
        nets.append(model)

    def obeys(model: nn.Module) -> list[float]:
        shares = []
        for label in (0, 1):
            marked = x[y != label].clone()
            marked[:, 0, 7, 6 + label] = 1.0
            shares.append(float((model(marked).argmax(1) == label).double().mean()))
        return shares

    def joined(**where: float) -> list[float]:
        return obeys(mode_connectivity(nets[0], (x, y), other=nets[1], epochs=2, lr=1e-3, points=2, **where).model)

    assert joined(t=0.1)[0] > 0.9 and joined(t=0.9)[1] > 0.9
    assert joined() == [0, 0]


def test_statistics_are_those_of_the_data() -> None:
    """One batch: exactly mean and unbiased variance. Several: the averages of those of the batches."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).double()
    x = points(30)[0]
    estimate_again(model, x)
    with torch.no_grad():
        before = model[0](x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean, before.mean(dim=1))
    torch.testing.assert_close(model[1].running_var, before.var(dim=1))
    estimate_again(model, x, batch_size=8)  # three batches; six samples are left out
    with torch.no_grad():
        parts = [model[0](part).transpose(0, 1).flatten(1) for part in x[:24].split(8)]
    torch.testing.assert_close(model[1].running_mean, torch.stack([p.mean(dim=1) for p in parts]).mean(dim=0))
    torch.testing.assert_close(model[1].running_var, torch.stack([p.var(dim=1) for p in parts]).mean(dim=0))
    assert model[1].momentum == 0.1 and model.training


def test_models_on_the_curve_have_statistics_of_their_own() -> None:
    curve, (x, _) = BezierCurve(net(0), net(1)), points()
    model = curve.at(0.5, x)
    with torch.no_grad():
        maps = model.stem[0](model.normalize(x)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model.stem[1].running_mean, maps.mean(dim=1))
    torch.testing.assert_close(model.stem[1].running_var, maps.var(dim=1))


def test_bad_arguments() -> None:
    data = points()
    with pytest.raises(ValueError, match="t: want at most 1"):
        mode_connectivity(net(0), data, other=net(1), t=1.5)
    with pytest.raises(ValueError, match="points"):
        mode_connectivity(net(0), data, other=net(1), points=1)
    with pytest.raises(ValueError, match="other: want parameters"):
        mode_connectivity(net(0), data, other=models.build("mlp", in_shape=(1, 8, 8)).double())
    with pytest.raises(TypeError, match="data"):
        mode_connectivity(net(0), [1, 2])  # type: ignore[arg-type]
