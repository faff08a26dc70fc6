"""The input gradient by product and fold is torch's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustlab.attacker import few_channels as convolution
from robustlab.attacker.few_channels import FewChannels
from robustlab.attacks import pgd

GEOMETRY = {
    "plain": ((2, 1, 7, 6), (4, 1, 3, 2), {}),
    "stride": ((1, 3, 9, 8), (5, 3, 4, 4), {"stride": 2}),
    "all": ((3, 2, 9, 11), (4, 2, 3, 2), {"stride": (2, 3), "padding": (1, 0), "dilation": (2, 1)}),
    "none": ((0, 1, 7, 7), (4, 1, 3, 3), {"padding": 1}),
    "same": ((2, 3, 6, 6), (4, 3, 3, 3), {"padding": "same"}),
    "grouped": ((2, 2, 6, 6), (4, 1, 3, 3), {"groups": 2}),
    "single": ((1, 6, 6), (4, 1, 3, 3), {}),
    "many": ((2, 8, 6, 6), (4, 8, 3, 3), {}),
}


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what was folded."""
    seen: list[tuple[int, ...]] = []

    def fold(columns: Tensor, **geometry: Any) -> Tensor:
        seen.append(tuple(geometry["output_size"]))
        return real(columns, **geometry)

    real: Callable[..., Tensor] = F.fold
    monkeypatch.setattr(convolution.F, "fold", fold)
    return seen


@pytest.mark.parametrize("search", ["neural_cleanse", "tnd_data_limited"])
def test_searches_for_patches_fold_and_find_the_same(
    search: str, folded: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mask by mask what torch's own gradient finds, in float64."""
    module = import_module(f"robustlab.defenses.detection.{search}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().eval()
    x, y = normal((6, 1, 6, 6), 1).sigmoid(), torch.arange(6) % 3
    settings = {"neural_cleanse": {"steps": 6}, "tnd_data_limited": {"steps": 4, "searches": 2}}[search]
    found = []
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too few steps for a verdict
            result = getattr(module, search)(model, (x, y), **settings)
        masks = result.details["masks"] if search == "tnd_data_limited" else result.details.masks
        found.append((masks, result.scores))
        monkeypatch.setattr(module, "FewChannels", nullcontext)
    assert folded
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-9, rtol=0, equal_nan=True)


@pytest.mark.parametrize("case", GEOMETRY)
def test_gradient_is_torch_s(case: str, folded: list[tuple[int, ...]]) -> None:
    shape, kernel, options = GEOMETRY[case]
    x, weight, bias = normal(shape, 0).requires_grad_(), normal(kernel, 1), normal(kernel[:1], 2)
    expected = F.conv2d(x, weight, bias, **options)
    towards = normal(tuple(expected.shape), 3)
    with FewChannels():
        found = F.conv2d(x, weight, bias, **options)
    assert torch.equal(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(out, x, towards)[0] for out in (found, expected)))
    assert bool(folded) == (case in ("plain", "stride", "all", "none"))


def test_second_derivatives() -> None:
    def wiggly(x: Tensor) -> Tensor:
        with FewChannels():
            return F.conv2d(x, normal((2, 1, 3, 3), 1), stride=2).sin()

    assert torch.autograd.gradgradcheck(wiggly, normal((1, 1, 5, 5), 0).requires_grad_())


def test_weights_that_learn_keep_their_gradient() -> None:
    x, weight = normal((2, 1, 5, 5), 0).requires_grad_(), normal((4, 1, 3, 3), 1).requires_grad_()
    with FewChannels():
        F.conv2d(x, weight).square().sum().backward()
    assert weight.grad is not None
    assert x.grad is not None


def test_attacks_use_it(folded: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    pgd(net, torch.rand(2, 1, 6, 6), norm="linf", eps=1e-6, steps=5)
    assert folded == [(6, 6)] * 5
