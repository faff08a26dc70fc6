"""Verifiers and estimates on the pretend device: where the inputs are, as on the CPU, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate, Estimate
from robustlab.teaching.catalogue import Row
from tests.pretend.twins import twins
from tests.suite.models import IMAGE, mlp
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.verification.cases import CASES, EPS, ONE_HIDDEN, PIECEWISE_LINEAR, SHAPES, Case, net_for
from tests.suite.verification.test_estimates import batch, each_case, estimate

# Each verifier in each norm on a small net with a shortcut; on images that one convolves. Smooth nets take longer.
PROBLEMS = [
    pytest.param(case, "relu" if case.row.key in ONE_HIDDEN else "residual", kind)
    for case in CASES
    for kind in SHAPES
    if kind in case.row.dims
]
PROBLEMS += [
    pytest.param(case, "tanh", "flat", marks=() if str(case) == "crown-linf" else pytest.mark.full)
    for case in CASES
    if case.row.key not in PIECEWISE_LINEAR and "flat" in case.row.dims
]


def check_twin(case: Case, net: str, kind: str) -> None:
    """One point with its own label and one with another; model, inputs and random states are as they were."""

    def run(device: torch.device) -> Certificate:
        model = net_for(case, net, SHAPES[kind]).to(device)
        x = torch.rand(2, *SHAPES[kind], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
        with torch.no_grad():
            y = (model(x).argmax(dim=1) + torch.arange(2, device=device)) % 3
        before = snapshot(model, x, y)
        certificate = case.run(model, x, y, EPS[case.norm] / 3)
        assert_unchanged(before, model, x, y)
        return certificate

    twins(run, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "net", "kind"), PROBLEMS, ids=str)
def test_twin(case: Case, net: str, kind: str) -> None:
    check_twin(case, net, kind)


@pytest.mark.slow
@each_case
def test_twin_of_an_estimate(row: Row, norm: str) -> None:
    def run(device: torch.device) -> Estimate:
        model, x = mlp(IMAGE).double().to(device), batch(2, device)
        before = snapshot(model, x)
        found = estimate(row, model, x, norm)
        assert_unchanged(before, model, x)
        return found

    twins(run, rtol=1e-6, atol=1e-9)


# The check, seen to fail ---------------------------------------------------------------------------------------------


def planted(bug: Callable[[Certificate, Tensor], Certificate]) -> Case:
    """CROWN with a bug that shows on a GPU alone."""
    good = next(case for case in CASES if str(case) == "crown-linf")

    def broken(model: nn.Module, x: Tensor, y: Tensor, **arguments: Any) -> Certificate:
        return bug(good.verifier(model, x, y, **arguments), x)

    return replace(good, verifier=broken)


def radius_on_the_cpu(certificate: Certificate, x: Tensor) -> Certificate:
    return replace(certificate, radius=certificate.radius.cpu())


def widened_on_the_cpu(certificate: Certificate, x: Tensor) -> Certificate:
    return replace(certificate, radius=certificate.radius * torch.ones(len(x)))


def other_radius(certificate: Certificate, x: Tensor) -> Certificate:
    return replace(certificate, radius=certificate.radius * (1 + int(x.is_cuda)))


@pytest.mark.parametrize("bug", [radius_on_the_cpu, widened_on_the_cpu, other_radius])
def test_the_twin_is_seen_to_differ(bug: Callable[[Certificate, Tensor], Certificate]) -> None:
    check_twin(next(case for case in CASES if str(case) == "crown-linf"), "residual", "flat")
    with pytest.raises((AssertionError, RuntimeError), match=r"radius is on cpu|same device|radius: "):
        check_twin(planted(bug), "residual", "flat")
