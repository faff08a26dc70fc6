"""The kernel density against scikit-learn's, its bandwidth by leaving one out, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, LeaveOneOut
from sklearn.neighbors import KernelDensity
from torch import Tensor, nn

from robustlab.defenses import kernel_density
from robustlab.defenses.detection.kernel_density import best_bandwidth
from tests.unit.test_mahalanobis import CLASSES, D, data, model


def constant(h: float) -> float:
    """log of the factor by which scikit-learn's kernel integrates to 1, and the paper's does not."""
    return D * np.log(h * np.sqrt(2 * np.pi))


def looked_at(net: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return net[:2](x).numpy(), net(x).argmax(dim=1).numpy()


@pytest.mark.parametrize("h", [0.02, 0.3])
def test_scores_are_those_of_scikit_learn(h: float) -> None:
    net, (known, y), (x, _) = model(), data(), data(60, seed=1)
    net[2].bias.data -= net(known).mean(dim=0).detach()  # more than one class is predicted then
    features, (at, said) = looked_at(net, known)[0], looked_at(net, x)
    assert len(set(said.tolist())) > 1
    found = kernel_density(net, x, (known, y), data(60, seed=2)[0], bandwidth=h)
    for c in range(CLASSES):
        mine = said == c
        if mine.any():
            fitted = KernelDensity(bandwidth=h).fit(features[y.numpy() == c])
            wish = -(fitted.score_samples(at[mine]) + constant(h))
            assert np.allclose(found.scores.numpy()[mine], wish, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_bandwidth_is_the_likeliest_of_its_grid() -> None:
    """scikit-learn leaves one out of a single class, over the same grid."""
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = best_bandwidth(features, torch.zeros(60, dtype=torch.int64))
    apart = torch.cdist(features, features).fill_diagonal_(torch.inf).amin(dim=1).median().item()
    grid = {"bandwidth": [apart * 2 ** (j / 2) for j in range(-4, 9)]}
    best = GridSearchCV(KernelDensity(), grid, cv=LeaveOneOut()).fit(features.numpy()).best_params_["bandwidth"]
    assert ours == pytest.approx(best, rel=1e-6) and min(grid["bandwidth"]) < ours < max(grid["bandwidth"])
    net, (known, y) = model(), data()
    chosen = kernel_density(net, known[:6], (known, y), known)
    told = kernel_density(net, known[:6], (known, y), known, bandwidth=chosen.details.score.bandwidth)
    assert torch.equal(chosen.scores, told.scores)


def test_far_from_everything_the_score_is_large_and_still_has_a_gradient() -> None:
    net, (known, y) = model(), data()
    score = kernel_density(net, known[:2], (known, y), known, bandwidth=0.01).details.score
    x = known[:3].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(score, (x,), atol=1e-4)
    far = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = score(far)
    (grad,) = torch.autograd.grad(value.sum(), far)
    assert 100 < float(value.detach()) < 1e6 and bool(grad.abs().sum() > 0)


def test_a_class_without_training_samples_has_no_density() -> None:
    net, (known, y) = model(), data()
    net[2].bias.data += torch.tensor([0.0, 0.0, 99.0])  # everything is taken for class 2
    few = y != 2
    found = kernel_density(net, known[:4], (known[few], y[few]), known, bandwidth=0.1)
    assert bool((found.scores > 600).all()) and bool(torch.isfinite(found.scores).all())


def test_bad_input() -> None:
    net, (known, y) = model(), data()
    with pytest.raises(ValueError, match=r"^bandwidth: want"):
        kernel_density(net, known, (known, y), known, bandwidth=0.0)
    with pytest.raises(ValueError, match=r"^data: want at least two different samples of a class"):
        kernel_density(net, known, (known[3:6:2], y[3:6:2]), known)
