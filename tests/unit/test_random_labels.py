"""Memorization: what is randomized, what stays, and that a network fits it."""

from __future__ import annotations

import math

import pytest
import torch

from robustlab.attacks import random_labels, randomize
from robustlab.data import gaussians, load
from robustlab.models import mlp

DATA = gaussians(120, 60, classes=3, sigma=0.05)


def test_variants_change_what_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(400, 1, 4, 4, generator=generator), torch.arange(400) % 5
    same, labels = randomize((x, y), variant="true_labels")
    assert torch.equal(same, x) and torch.equal(labels, y) and same is not x
    same, labels = randomize((x, y))
    assert torch.equal(same, x)
    agree = float((labels == y).double().mean())
    assert abs(agree - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 400)
    assert float(((labels.bincount(minlength=5) - 80.0) ** 2 / 80).sum()) < 24  # chi-squared, 4 degrees, p < 1e-4
    _, half = randomize((x, y), share=0.5)
    assert int((half != y).sum()) <= 200 and int((half != y).sum()) > 120
    moved, labels = randomize((x, y), variant="shuffled_pixels")
    order = [int((x[0].flatten() == v).nonzero()[0]) for v in moved[0].flatten()]
    assert sorted(order) == list(range(16)) and order != sorted(order)
    assert torch.equal(moved.flatten(1), x.flatten(1)[:, order]) and torch.equal(labels, y)
    moved, _ = randomize((x, y), variant="random_pixels")
    assert torch.equal(moved.flatten(1).sort(dim=1).values, x.flatten(1).sort(dim=1).values)
    order = [int((x[0].flatten() == v).nonzero()[0]) for v in moved[0].flatten()]
    assert not torch.equal(moved[1].flatten(), x[1].flatten()[order]), "each sample has its own order"
    noise, _ = randomize((x, y), variant="gaussian")
    assert float(noise.mean()) == pytest.approx(float(x.mean()), abs=0.02)
    assert float(noise.std()) == pytest.approx(float(x.std()), rel=0.05)


def test_a_network_fits_labels_that_mean_nothing() -> None:
    """Every sample right, at chance on new ones; the true labels take fewer epochs."""
    settings = {"epochs": 20, "lr": 5e-3, "batch_size": 20}
    model = mlp(hidden=(100,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = load("mnist5k").subset(150, 300)
    true = random_labels(small, model=model, variant="true_labels", **settings)
    wrong = random_labels(small, model=model, **settings)
    assert true.epochs_to_fit is not None and wrong.epochs_to_fit is not None
    assert true.train_accuracy[-1] == wrong.train_accuracy[-1] == 1.0
    assert true.test_accuracy > 0.7 and wrong.test_accuracy < 0.2
    assert true.epochs_to_fit < wrong.epochs_to_fit
    assert len(wrong.train_accuracy) == 20 and wrong.train_accuracy[wrong.epochs_to_fit - 1] == 1.0
    assert all(value < 1 for value in wrong.train_accuracy[: wrong.epochs_to_fit - 1])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_runs_repeat_and_regularizers_reach_the_training() -> None:
    model = mlp(in_shape=(2,), hidden=(20,), classes=3)
    state = torch.get_rng_state()
    a, b = (random_labels(DATA, model=model, epochs=3, seed=4) for _ in range(2))
    assert a.train_accuracy == b.train_accuracy and torch.equal(torch.get_rng_state(), state)
    decayed = random_labels(DATA, model=model, epochs=3, seed=4, weight_decay=1.0)
    norms = [sum(p.square().sum().item() for p in run.model.parameters()) for run in (a, decayed)]
    assert norms[1] < norms[0]
    assert a.epochs_to_fit is None
    assert math.isnan(random_labels((DATA.x_train, DATA.y_train), model=model, epochs=1).test_accuracy)
    test = (DATA.x_test, DATA.y_test)
    with_test = random_labels((DATA.x_train, DATA.y_train), model=model, epochs=1, test=test).test_accuracy
    assert with_test == random_labels(DATA, model=model, epochs=1).test_accuracy


def test_bad_input() -> None:
    model = mlp(in_shape=(2,), classes=3)
    for kwargs, match in (({"variant": "none"}, "variant"), ({"share": 1.2}, "share"), ({"epochs": 0}, "epochs")):
        with pytest.raises(ValueError, match=match):
            random_labels(DATA, model=model, **kwargs)
    with pytest.raises(TypeError, match="model"):
        random_labels(DATA, model="mlp")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="data"):
        random_labels("mnist", model=model)  # type: ignore[arg-type]
