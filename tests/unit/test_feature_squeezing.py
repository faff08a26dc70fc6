"""Feature squeezing: the squeezers against NumPy and SciPy, the score from its definition, images that it catches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacks import pgd
from robustlab.data import load
from robustlab.defenses import feature_squeezing
from robustlab.defenses.detection.feature_squeezing import Squeezed, medians, round_to


@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_medians_are_those_of_scipy(window: int) -> None:
    x = torch.rand(3, 2, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wish = median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    assert np.array_equal(medians(x, window).numpy(), wish)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_rounding_takes_the_nearest_level(bits: int) -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.linspace(0, 1, 2**bits, dtype=torch.float64)
    nearest = levels[(x[:, None] - levels).abs().argmin(dim=1)]
    assert torch.allclose(round_to(x, bits), nearest, atol=1e-12)


def test_the_score_is_the_largest_distance_of_probabilities() -> None:
    d, model = load("mnist5k"), zoo.load("mnist_cnn")
    x = d.x_test[:30]
    found = feature_squeezing(model, x, d.x_test[500:600], bits=1, window=2)
    with torch.no_grad():
        p = model(x).softmax(dim=1).numpy()
        q = model((x > 0.5).float()).softmax(dim=1).numpy()
        r = model(torch.from_numpy(median_filter(x.numpy(), size=(1, 1, 2, 2), mode="reflect"))).softmax(dim=1).numpy()
    wish = np.maximum(np.abs(p - q).sum(axis=1), np.abs(p - r).sum(axis=1))
    assert np.allclose(found.scores.numpy(), wish, atol=1e-5)
    assert int((found.details.clean_scores > found.threshold).sum()) <= 5 and found.false_alarm_rate == 0.05
    one = feature_squeezing(model, x, x, window=None)
    assert np.allclose(one.scores.numpy(), np.abs(p - q).sum(axis=1), atol=1e-5)
    assert torch.equal(Squeezed(model, 1, 2)(x).detach(), found.scores)


def test_straight_gradients_move_the_squeezed_image_as_the_image() -> None:
    """Against differences of ‖f(x + e) − f(q(x) + e)‖₁ in e; the score itself is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for bits, window, squeeze in ((2, None, lambda t: round_to(t, 2)), (None, 3, lambda t: medians(t, 3))):
        q, plain, straight = squeeze(x), Squeezed(model, bits, window), Squeezed(model, bits, window, straight=True)

        def apart(e: Tensor, q: Tensor = q) -> Tensor:
            return (model(x + e).softmax(1) - model(q + e).softmax(1)).abs().sum(dim=1)

        leaf = x.clone().requires_grad_(True)
        value = straight(leaf)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        assert torch.allclose(value, plain(x))
        for k in range(16):
            e = 1e-6 * torch.eye(16, dtype=torch.float64)[k].reshape(1, 1, 4, 4)
            assert torch.allclose(grad.flatten(1)[:, k], (apart(e) - apart(-e)) / 2e-6, atol=1e-7)


def test_it_finds_an_attack_that_does_not_know_of_it() -> None:
    d, model = load("mnist5k"), zoo.load("mnist_cnn")
    x, y = d.x_test[:60], d.y_test[:60]
    attacked = pgd(model, x, y, eps=0.15, steps=20)
    found = feature_squeezing(model, torch.cat([x, attacked.x_adv[attacked.success]]), d.x_test[500:700])
    scores = found.score(torch.arange(len(found.scores)) >= 60)
    assert scores["auroc"] > 0.9 and scores["false_positive_rate"] < 0.15


def test_bad_input() -> None:
    model, x = zoo.load("mnist_cnn"), torch.rand(4, 1, 28, 28)
    for told, message in (
        ({"bits": None, "window": None}, "bits, window: want at least one"),
        ({"bits": 0}, "bits: want at least 1"),
        ({"window": 1}, "window: want at least 2"),
        ({"window": 29}, "window: want"),
        ({"rejection_rate": 0.0}, "rejection_rate: want"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            feature_squeezing(model, x, x, **told)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^clean: want at least 1 input of shape \(1, 28, 28\)"):
        feature_squeezing(model, x, x[:, :, :14])
