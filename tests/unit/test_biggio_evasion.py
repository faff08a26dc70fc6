"""Biggio's evasion: its density against NumPy and scikit-learn, its optimum against SciPy's and a fine grid."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from robustlab.attacks import biggio_evasion
from robustlab.attacks.whitebox.biggio_evasion import KernelDensity
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp


def two_classes(weight: list[float], bias: float) -> Affine:
    """An affine model whose margin z_0 − z_1 is ⟨w, x⟩ + b."""
    w = torch.tensor(weight, dtype=torch.float64)
    return Affine(torch.stack([w, 0 * w]), torch.tensor([bias, 0.0], dtype=torch.float64))


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaussian_density_is_a_mean_of_normal_densities() -> None:
    data, at, h = points(40, 3), points(300, 3, seed=1), 0.2
    ours = KernelDensity(data, h, chunk=64)(at.reshape(300, 3, 1, 1))
    theirs = np.mean([multivariate_normal(mean, h**2).pdf(at.numpy()) for mean in data.numpy()], axis=0)
    np.testing.assert_allclose(ours.numpy(), theirs * (h * math.sqrt(2 * math.pi)) ** 3, rtol=1e-9)


def test_laplace_density_is_the_formula() -> None:
    data, at, h = points(20, 4), points(15, 4, seed=1), 0.7
    theirs = [np.mean([np.exp(-np.abs(a - d).sum() / h) for d in data.numpy()]) for a in at.numpy()]
    np.testing.assert_allclose(KernelDensity(data, h, kernel="laplace")(at).numpy(), theirs, rtol=1e-9)


@pytest.mark.parametrize("kernel", ["gauss", "laplace"])
def test_density_has_the_right_gradient(kernel: str) -> None:
    density = KernelDensity(points(6, 3), 0.5, kernel=kernel)
    assert torch.autograd.gradcheck(density, points(4, 3, seed=2).requires_grad_(True))


def objective(model: nn.Module, density: KernelDensity, lam: float, at: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(at)
        return logits[:, 0] - logits[:, 1] - lam * density(at)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "kernel"), [pytest.param("l2", "gauss", marks=pytest.mark.full), ("l1", "gauss"), ("linf", "laplace")]
)
def test_finds_the_minimum_of_a_fine_grid(norm: str, kernel: str) -> None:
    """Two dimensions, where the whole feasible set can be looked at."""
    model = two_classes([2.0, 0.5], -1.0)
    density = KernelDensity(
        torch.tensor([[0.25, 0.55], [0.3, 0.7], [0.35, 0.6]], dtype=torch.float64), 0.2, kernel=kernel
    )
    x = torch.tensor([[0.75, 0.35], [0.7, 0.5], [0.9, 0.2]], dtype=torch.float64)
    eps, lam = 0.5, 3.0
    result = biggio_evasion(model, x, norm=norm, eps=eps, density=density, lam=lam, steps=900, step_size=1.5e-3)
    axis = torch.linspace(0, 1, 501, dtype=torch.float64)
    mesh = torch.cartesian_prod(axis, axis)
    for i in range(3):
        inside = torch.linalg.vector_norm(mesh - x[i], {"l1": 1, "l2": 2, "linf": math.inf}[norm], dim=1) <= eps
        values = objective(model, density, lam, mesh[inside])
        fooled = model(mesh[inside]).argmax(1) == 1
        best = float(values[fooled].min())
        ours = float(objective(model, density, lam, result.x_adv[i : i + 1]))
        assert result.success[i] and best - 0.03 <= ours <= best + 0.01  # the mesh has steps of 0.002


@pytest.mark.slow
def test_interior_minimum_is_scipys() -> None:
    """A steep density holds the point inside the ball, where SciPy finds the same stationary point."""
    model, center = two_classes([1.0, 1.0, 1.0], -1.2), torch.full((1, 3), 0.3, dtype=torch.float64)
    density, lam = KernelDensity(center, 0.2), 5.0
    x = torch.full((1, 3), 0.5, dtype=torch.float64)
    result = biggio_evasion(model, x, eps=0.9, density=density, lam=lam, steps=2000, step_size=5e-4)

    def total(v: np.ndarray) -> float:
        return float(v.sum() - 1.2 - lam * np.exp(-((v - 0.3) ** 2).sum() / 0.08))

    best = minimize(total, np.full(3, 0.3), bounds=[(0.1, 0.5)] * 3, tol=1e-14)
    np.testing.assert_allclose(result.x_adv[0].numpy(), best.x, atol=1e-3)
    away = biggio_evasion(model, x, eps=0.9, steps=100)
    assert away.x_adv.max() == 0, "without the density it goes to the corner of the box"


def test_no_density_and_no_weight_are_the_same() -> None:
    model, x = mlp((6,), 3), noise_box(8, (6,), torch.float64)
    density = KernelDensity(points(10, 6), 0.5)
    one, other = (biggio_evasion(model, x, eps=0.3, **a) for a in ({}, {"density": density, "lam": 0.0}))
    assert torch.equal(one.x_adv, other.x_adv) and torch.equal(one.queries, other.queries)


def test_goes_on_behind_the_boundary() -> None:
    """On an affine model the whole cap is spent, straight down; where the boundary lies plays no part."""
    model = two_classes([3.0, 4.0], -2.0)
    x = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    result = biggio_evasion(model, x, eps=0.4, steps=20, trace=True)
    torch.testing.assert_close(result.x_adv - x, torch.tensor([[-0.24, -0.32]], dtype=torch.float64))
    assert result.queries.tolist() == [1 + 21 + 1] and result.gradients.tolist() == [20]
    assert result.trace is not None and result.trace["margin"].shape == (21, 1)
    assert float(result.trace["margin"][0]) == pytest.approx(1.5)
    assert float(result.trace["margin"].min()) == pytest.approx(1.5 - 0.4 * 5)


def test_success_is_preferred_to_a_lower_objective() -> None:
    """The density pulls back to where the model is right; a point that fools it is returned all the same."""
    model = two_classes([1.0, 0.0], -0.5)
    density = KernelDensity(torch.tensor([[0.7, 0.5]], dtype=torch.float64), 0.1)
    x = torch.tensor([[0.55, 0.5]], dtype=torch.float64)
    free = biggio_evasion(model, x, eps=0.3, density=density, lam=0.01, steps=40)
    held = biggio_evasion(model, x, eps=0.3, density=density, lam=100.0, steps=40)
    assert free.success.tolist() == [True] and held.success.tolist() == [False]
    torch.testing.assert_close(held.x_adv, torch.tensor([[0.7, 0.5]], dtype=torch.float64), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"data": torch.rand(0, 3), "bandwidth": 1.0}, "data: want"),
        ({"data": torch.arange(6).reshape(2, 3), "bandwidth": 1.0}, "data: want"),
        ({"data": torch.rand(2, 3), "bandwidth": 0.0}, "bandwidth: want"),
        ({"data": torch.rand(2, 3), "bandwidth": 1.0, "kernel": "box"}, "kernel: want"),
        ({"data": torch.rand(2, 3), "bandwidth": 1.0, "chunk": 0}, "chunk: want"),
    ],
)
def test_wrong_arguments_of_the_density(wrong: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=f"^{error}"):
        KernelDensity(**wrong)


def test_wrong_weight() -> None:
    with pytest.raises(ValueError, match=r"^lam: want at least 0"):
        biggio_evasion(mlp((6,), 3), noise_box(2, (6,), torch.float64), eps=0.3, lam=-1.0)


def test_a_density_that_is_a_module_is_held_still() -> None:
    """In evaluation mode with frozen parameters during the attack; afterwards as it was."""
    seen = []

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 1).double()

        def forward(self, at: Tensor) -> Tensor:
            seen.append((self.training, self.layer.weight.requires_grad))
            return self.layer(at).squeeze(1)

    density = Learned().train()
    biggio_evasion(mlp((6,), 3), noise_box(2, (6,), torch.float64), eps=0.3, density=density, steps=2)
    assert seen == [(False, False)] * 3 and density.training and density.layer.weight.requires_grad
