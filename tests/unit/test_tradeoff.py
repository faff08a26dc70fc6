"""The study of architectures: distances of affine networks in closed form, the line by NumPy, the front."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from robustlab import data
from robustlab.defenses import Tradeoff, architectures, tradeoff
from robustlab.geometry.norms import linear_distance
from robustlab.training.fit import fit


def affine(tilt: float) -> nn.Module:
    """Two classes by the first element, and by another one to a share."""
    model = nn.Linear(4, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1.0, tilt, 0, 0]]))
        model.bias.copy_(torch.tensor([0.5 * (1 + tilt), 0.0]))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_of_affine_networks_are_their_margins(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(40, 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0.5).long()
    models = {f"tilt {tilt}": affine(tilt) for tilt in (0.0, 0.3, 1.0)}
    found = tradeoff(models, (x, y), norm=norm, steps=100)
    margins = {name: (m(x)[:, 1] - m(x)[:, 0]).detach() for name, m in models.items()}
    right = {name: ((margin > 0).long() == y) for name, margin in margins.items()}
    common = torch.stack(list(right.values())).all(dim=0)
    errors, medians = [], []
    for i, (name, model) in enumerate(models.items()):
        slope = (model.weight[1] - model.weight[0]).detach().expand(40, 4)
        exact = linear_distance(margins[name], slope, norm)[common]
        assert bool((found.distances[i] >= exact * (1 - 1e-9)).all())
        assert float((found.distances[i] / exact).median()) < 1.02
        assert float(found.accuracy[i]) == pytest.approx(float(right[name].double().mean()))
        errors.append(max(1 - float(found.accuracy[i]), 0.5 / 40))
        medians.append(float(found.distances[i].median()))
    assert found.distortion.tolist() == pytest.approx(medians) and found.distances.shape == (3, int(common.sum()))
    assert found.slope == pytest.approx(np.polyfit(np.log(errors), medians, 1)[0])
    assert found.correlation == pytest.approx(np.corrcoef(np.log(errors), medians)[0, 1])
    assert found.names == tuple(models) and found.parameters == (10,) * 3


def test_the_front_holds_whom_nobody_beats() -> None:
    accuracy, distortion = [0.9, 0.8, 0.85, 0.95, 0.95, 0.8], [0.1, 0.3, 0.2, 0.05, 0.05, 0.25]
    names = tuple("abcdef")
    given = Tradeoff(names, torch.tensor(accuracy), torch.tensor(distortion), torch.zeros(6, 1), (1,) * 6, 0.0, 0.0)
    assert given.front == ("b", "c", "a", "d", "e")


def test_nine_architectures_are_trained_and_measured() -> None:
    nets = architectures()
    assert len(nets) == 9 and all(net(torch.rand(2, 1, 28, 28)).shape == (2, 10) for net in nets.values())
    assert all(
        net(torch.rand(2, 3, 32, 32)).shape == (2, 4) for net in architectures(in_shape=(3, 32, 32), classes=4).values()
    )
    d = data.load("mnist5k").subset(300, 20)
    few = {name: nets[name] for name in ("linear", "mlp-20", "cnn-4-8")}
    for net in few.values():
        fit(net, d, epochs=3, batch_size=30, lr=1e-2)
    found = tradeoff(few, d, steps=10)
    assert bool((found.accuracy > 0.3).all()) and bool((found.distortion > 0).all())
    assert math.isfinite(found.slope) and set(found.front) <= set(few) and found.front
    assert repr(found).count("\n") < 12


def test_wrong_arguments_are_named() -> None:
    x, y = torch.rand(6, 4), torch.arange(6) % 2
    models = {"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)}
    for change, kind, match in (
        ({"models": [nn.Linear(4, 2)]}, TypeError, "models"),
        ({"models": {"a": nn.Linear(4, 2)}}, ValueError, "models"),
        ({"norm": "l0"}, ValueError, "norm"),
        ({"steps": 0}, ValueError, "steps"),
        ({"data": (x, y + 1)}, ValueError, "y"),
        ({"data": (x + 1, y)}, ValueError, "x"),
    ):
        given = {"models": models, "data": (x, y), **change}
        with pytest.raises(kind, match=f"^{match}:"):
            tradeoff(given.pop("models"), given.pop("data"), **given)
    with torch.no_grad():
        for sign, model in zip((1, -1), models.values(), strict=True):
            model.weight.zero_()
            model.bias.copy_(torch.tensor([float(sign), 0.0]))
    with pytest.raises(ValueError, match=r"^data: want samples that all models get right, got none"):
        tradeoff(models, (x, y))
