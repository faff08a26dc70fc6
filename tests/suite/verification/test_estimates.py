"""What every estimate of the catalogue must do, in every norm: new rows of kind "estimate" are tested by themselves.

An estimate is a number for each sample that is not a guarantee. Exact on affine models; the same for a sample alone and
in a batch; repeatable; nothing of the caller's changed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate, Estimate
from robustlab.geometry.norms import linear_distance
from robustlab.teaching.catalogue import Row, rows
from tests.suite.models import IMAGE, mlp

# SPROUT and CAT, which train, are estimates of another family.
ESTIMATES = [row for row in rows("estimate", done=True) if "robustlab.verification." in str(row.callable)]
CASES = [pytest.param(row, norm, id=f"{row.key}-{norm}") for row in ESTIMATES for norm in row.norms]
RADIUS = {"l1": 1.0, "l2": 0.5, "linf": 0.1}

each_case = pytest.mark.parametrize(("row", "norm"), CASES)


def function(row: Row) -> Callable[..., Estimate]:
    module, _, name = str(row.callable).partition(":")
    return getattr(importlib.import_module(module), name)


def estimate(row: Row, model: nn.Module, x: Tensor, norm: str, **more: Any) -> Estimate:
    return function(row)(model, x, norm=norm, **{"radius": RADIUS[norm], **row.quick, **more})


def batch(n: int = 4, device: torch.device | str = "cpu") -> Tensor:
    return torch.rand(n, *IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)


@each_case
def test_the_row_tells_the_signature(row: Row, norm: str) -> None:
    parameters = inspect.signature(function(row)).parameters
    assert {"norm", "seed", "ids"} <= set(parameters) and set(row.quick) <= set(parameters)
    assert ("target" in parameters) == row.targeted
    assert parameters["norm"].default in row.norms


@each_case
def test_it_returns_an_estimate_and_no_certificate(row: Row, norm: str, device: torch.device) -> None:
    found = estimate(row, mlp(IMAGE).double().to(device), batch(device=device), norm)
    assert isinstance(found, Estimate) and not isinstance(found, Certificate)
    assert (found.norm, found.method) == (norm, row.key)
    assert found.value.shape == (4,) and found.value.dtype == torch.float64 and found.value.device.type == device.type
    assert (found.value >= 0).all() and (found.value <= RADIUS[norm]).all()


@each_case
def test_exact_on_an_affine_model(row: Row, norm: str, device: torch.device) -> None:
    random = torch.Generator().manual_seed(3)
    x = batch(device=device)
    layer = nn.Linear(x[0].numel(), 3).double().to(device)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=random))
    z, w = layer(x.flatten(1)).detach(), layer.weight.detach()
    y = z.argmax(dim=1)
    parts = [linear_distance(z.amax(dim=1) - z[:, j], w[y] - w[j], norm) for j in range(3)]
    exact = torch.stack(parts, dim=1).scatter(1, y[:, None], torch.inf).amin(dim=1)
    found = estimate(row, nn.Sequential(nn.Flatten(), layer), x, norm, radius=1e3)
    torch.testing.assert_close(found.value, exact)


@each_case
def test_a_sample_alone_and_in_a_batch(row: Row, norm: str, device: torch.device) -> None:
    model, x = mlp(IMAGE).double().to(device), batch(device=device)
    ids = torch.tensor([5, 0, 9, 7], device=device)
    whole = estimate(row, model, x, norm, ids=ids)
    for i in range(4):
        alone = estimate(row, model, x[i : i + 1], norm, ids=ids[i : i + 1])
        torch.testing.assert_close(alone.value, whole.value[i : i + 1], rtol=1e-6, atol=1e-9)


@each_case
def test_the_same_on_any_device(row: Row, norm: str, device: torch.device) -> None:
    """The points are those of the CPU; gradients, and the fit, differ by rounding."""
    here = estimate(row, mlp(IMAGE).double(), batch(), norm).value
    there = estimate(row, mlp(IMAGE).double().to(device), batch(device=device), norm).value
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-9)


@each_case
def test_repeatable_and_without_side_effects(row: Row, norm: str) -> None:
    model, x = mlp(IMAGE).double().train(), batch()
    x.requires_grad_(True)
    before = x.detach().clone()
    weights = [p.detach().clone() for p in model.parameters()]
    first = estimate(row, model, x, norm, seed=3)
    torch.manual_seed(7)  # a draw from the global generator may have been put back
    random = torch.get_rng_state()
    second = estimate(row, model, x, norm, seed=3)
    assert torch.equal(first.value, second.value) and not first.value.requires_grad
    assert torch.equal(x.detach(), before) and x.grad is None and x.requires_grad
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    for p, weight in zip(model.parameters(), weights, strict=True):
        assert torch.equal(p, weight) and p.requires_grad and p.grad is None


@each_case
def test_an_empty_batch_and_bad_input(row: Row, norm: str) -> None:
    model, x = mlp(IMAGE).double(), batch()
    assert estimate(row, model, x[:0], norm).value.shape == (0,)
    for change, name in (
        ({"norm": "l7"}, "norm"),
        ({"x": x.float()}, "x"),
        ({"x": x + 2}, "x"),
        ({"radius": -1.0}, "radius"),
        ({"y": torch.tensor([0, 1])}, "y"),
    ):
        given: dict[str, Any] = {"x": x, "norm": norm, "radius": RADIUS[norm], **row.quick, **change}
        with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
            function(row)(model, given.pop("x"), **given)
