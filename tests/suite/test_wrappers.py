"""What is no attack itself, but lets attacks loose on a model: nothing of the caller's is changed, and it repeats."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import pgd, spatial
from robustlab.evaluation import Claim, bpda, checklist, eot, unrestricted
from tests.suite.cases import noise_box
from tests.suite.models import IMAGE, convnet
from tests.suite.test_no_side_effects import assert_unchanged, snapshot


def jitter(x: Tensor) -> Tensor:
    return (x + 0.1 * torch.randn(x.shape[1:], dtype=x.dtype, device=x.device)).clamp(0, 1)


def by_bpda(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return pgd(nn.Sequential(bpda(torch.round), model), x, y, eps=0.3, steps=3).x_adv


def by_eot(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return pgd(eot(model, jitter, samples=2), x, y, eps=0.3, steps=3).x_adv


def by_checklist(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    report = checklist(model, x, y, claim=Claim(eps=0.1), steps=4, queries=5)
    return torch.tensor([value for check in report.checks for value in check.evidence.values()])


def by_contest(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (
        unrestricted(model, x, y, attacks={"random": partial(spatial, search="random", k=3)})
        .attacks["random"]
        .confidence
    )


RUNS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "bpda": by_bpda,
    "eot": by_eot,
    "checklist": by_checklist,
    "unrestricted": by_contest,
}


@pytest.mark.parametrize("key", RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_nothing_is_changed_and_runs_repeat(key: str, dtype: torch.dtype, device: torch.device) -> None:
    model = convnet(dtype=dtype).to(device)
    x = noise_box(6, IMAGE, dtype).to(device)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    before = snapshot(model, x, y)
    first = RUNS[key](model, x, y)
    assert_unchanged(before, model, x, y)
    torch.manual_seed(99)
    assert torch.equal(RUNS[key](model, x, y), first)
    assert bool(first.isfinite().all())
