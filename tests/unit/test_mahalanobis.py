"""Mahalanobis distances against scikit-learn's, their gradient, and a direction in which nothing varies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor, nn

from robustlab.defenses import mahalanobis
from robustlab.defenses.detection.mahalanobis import gaussian_classes

CLASSES, D = 3, 5


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, D), nn.Tanh(), nn.Linear(D, CLASSES)).to(dtype).eval()


def data(n: int = 90, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three clouds of different sizes in [0, 1]⁴."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(n // 6)
    spread = torch.randn(n, 4, generator=generator, dtype=torch.float64) * torch.tensor([0.1, 0.03, 0.08, 0.05])
    return (0.3 + 0.2 * y[:, None] + spread).clamp(0, 1), y


def by_sklearn(net: nn.Module, x: Tensor, known: Tensor, y: Tensor) -> np.ndarray:
    """The smallest of the distances that scikit-learn's tied covariance gives."""
    with torch.no_grad():
        features, at = net[:2](known).numpy(), net[:2](x).numpy()
    means = np.stack([features[y.numpy() == c].mean(axis=0) for c in range(CLASSES)])
    tied = EmpiricalCovariance(assume_centered=True).fit(features - means[y.numpy()])
    return np.stack([tied.mahalanobis(at - mean) for mean in means]).min(axis=0)


def test_scores_are_those_of_scikit_learn() -> None:
    net, (known, y), (x, _) = model(), data(), data(60, seed=1)
    found = mahalanobis(net, x, (known, y), data(60, seed=2)[0])
    assert np.allclose(found.scores.numpy(), by_sklearn(net, x, known, y), rtol=1e-8)
    assert found.layer == "input of 2"
    inner = mahalanobis(net, x, (known, y), data(60, seed=2)[0], layer="1")
    assert torch.allclose(inner.scores, found.scores) and inner.layer == "output of 1"
    single = mahalanobis(model(torch.float32), x.float(), (known.float(), y), data(60, seed=2)[0].float())
    assert single.scores.dtype == torch.float32 and torch.allclose(single.scores.double(), found.scores, rtol=1e-3)


def test_labels_need_not_be_0_to_k() -> None:
    features, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 2] * 20)
    means, whitening = gaussian_classes(features, y)
    assert torch.allclose(means[0], features[1::2].double().mean(dim=0))
    apart = features.double() - means[(y == 5).long()]
    assert torch.allclose(apart.mT @ apart / 40, torch.linalg.inv(whitening @ whitening.mT))


def test_a_direction_without_variance_counts_for_nothing() -> None:
    net, (known, y) = model(), data()
    with torch.no_grad():
        net[0].weight[1] = net[0].weight[0]
        net[0].bias[1] = net[0].bias[0]  # two features are always equal
    found = mahalanobis(net, known, (known, y), known)
    assert np.allclose(found.scores.numpy(), by_sklearn(net, known, known, y), rtol=1e-6)
    assert gaussian_classes(net[:2](known).detach(), y)[1].shape == (D, D - 1)


def test_rounding_is_no_direction() -> None:
    """Three dimensions in a layer of 32 numbers far from 0: in float32 the rest varies by rounding, and is left out."""
    draw = torch.Generator().manual_seed(0)
    wide, high = torch.randn(3, 32, generator=draw).double(), 3 * torch.randn(32, generator=draw).double()
    known = 0.01 * torch.randn(400, 3, generator=draw).double() @ wide + high
    for dtype in (torch.float32, torch.float64):
        assert gaussian_classes(known.to(dtype), torch.arange(400) % 2)[1].shape == (32, 3)


def test_the_score_is_differentiable_and_the_model_is_left_alone() -> None:
    net, (known, y) = model().train(), data()
    score = mahalanobis(net, known[:5], (known, y), known).details.score
    assert net.training and all(p.requires_grad for p in net.parameters())
    x = known[:3].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(score, (x,), atol=1e-6)


def test_it_finds_what_is_far_from_all_classes() -> None:
    net, (known, y) = model(), data(600)
    far = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 20, dtype=torch.float64) - 0.1 * torch.rand(20, 4).double()
    inputs, clean = torch.cat([data(60, seed=3)[0], far.clamp(0, 1)]), data(300, seed=4)[0]
    found = mahalanobis(net, inputs, (known, y), clean).score(torch.arange(80) >= 60)
    assert found["auroc"] > 0.99 and found["false_positive_rate"] < 0.2


def test_bad_input() -> None:
    net, (known, y) = model(), data()
    with pytest.raises(ValueError, match=r"^y: want"):
        mahalanobis(net, known, (known, y + 1), known)
    with pytest.raises(ValueError, match=r"^data: want a class of samples whose features differ"):
        mahalanobis(net, known, (known[:2], torch.arange(2)), known)
    with pytest.raises(ValueError, match=r"^clean: want at least 1 input"):
        mahalanobis(net, known, (known, y), known[:0])
    with pytest.raises(ValueError, match=r"^layer: want a module"):
        mahalanobis(net, known, (known, y), known, layer="9")
