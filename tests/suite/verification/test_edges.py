"""Edges that every verifier meets: boxes of one point, bounds that are not finite, errors inside bounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.suite.product import one_of
from tests.suite.verification.cases import CASES, EPS, Case, problem
from tests.suite.verification.test_verifiers import verified

CPU = torch.device("cpu")


def check_point_boxes(case: Case, device: torch.device) -> None:
    """lb = ub: verified where the model is right at x, and nowhere else; where ε = 0 the radius is 0."""
    model, x, y = problem(case, 6, device=device)
    labels = torch.where(torch.arange(6, device=device) % 3 == 2, (y + 1) % 3, y)
    certificate = case.run(model, x, labels, 0.0)
    assert torch.equal(verified(certificate).to(device), labels == y), "a box of one point is decided by the model"
    assert bool((certificate.radius == 0).all())
    eps = torch.where(torch.arange(6, device=device) % 2 == 0, 0.0, EPS[case.norm]).to(x)
    mixed, plain = case.run(model, x, labels, eps), case.run(model, x, labels, EPS[case.norm])
    want = torch.where(eps == 0, labels == y, verified(plain).to(device))
    assert torch.equal(verified(mixed).to(device), want), "points among boxes"


class Overflowing(nn.Module):
    """z = (w·h, 0, 0) + (1, 0, 0) with h = relu(w·Σ(x − ½)) and w so large that w·w overflows; z is finite at x = ½.

    With ``sign`` −1 the first logit falls to −∞ beside x, with +1 it rises to +∞.
    """

    def __init__(self, size: int, dtype: torch.dtype, sign: float) -> None:
        super().__init__()
        huge = torch.finfo(dtype).max ** 0.75
        self.first, self.last = nn.Linear(size, 2).to(dtype), nn.Linear(2, 3).to(dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            self.first.weight.fill_(huge)
            self.last.weight[0] = sign * huge
            self.last.bias[0] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first((x - 0.5).flatten(1)).relu())


def check_bounds_that_are_not_finite(case: Case, device: torch.device) -> None:
    """What overflows is not known: never "verified", neither where the truth is −∞ nor where it is ∞ − ∞."""
    for dtype in (torch.float32, torch.float64):
        x = torch.full((2, *case.shape), 0.5, dtype=dtype, device=device)
        y = torch.zeros(2, dtype=torch.int64, device=device)
        for sign in (-1.0, 1.0):
            model = Overflowing(x[0].numel(), dtype, sign).to(device)
            assert bool(model(x).isfinite().all())
            far = x + 0.25  # the first logit is infinite here
            found = [(case.run(model, x, y, 0.25), sign < 0), (case.run(model, far, y, 0.1), True)]
            for certificate, hopeless in found:
                assert bool(certificate.radius.isfinite().all())
                if hopeless:
                    assert not bool(verified(certificate).any()), f"verified by a bound that is not finite, {dtype}"


class FailsAt(TorchFunctionMode):
    """Raises at one of the calls of torch's functions."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("planted")
        return function(*args, **(kwargs or {}))


def check_errors_inside_bounding(case: Case, device: torch.device) -> None:
    """An error is an error, or makes a sample unknown: at a radius where nothing holds, nothing is verified."""
    model, x, y = problem(case, 3, device=device)
    eps = 12 * EPS[case.norm]
    with FailsAt(0) as count:
        certificate = case.run(model, x, y, eps)
    assert not bool(verified(certificate).any())
    for k in range(1, 10):
        try:
            with FailsAt(max(1, count.calls * k // 10)):
                certificate = case.run(model, x, y, eps)
        except (RuntimeError, ValueError) as error:
            assert "planted" in str(error)
        else:
            assert not bool(verified(certificate).any()), "an error was swallowed into a verdict"
    assert count.calls > 10


@pytest.mark.slow
@one_of(CASES)
def test_point_boxes(case: Case, device: torch.device) -> None:
    check_point_boxes(case, device)


@pytest.mark.slow
@one_of(CASES)
def test_bounds_that_are_not_finite(case: Case, device: torch.device) -> None:
    check_bounds_that_are_not_finite(case, device)


@pytest.mark.slow
@one_of(CASES)
def test_errors_inside_bounding(case: Case, device: torch.device) -> None:
    check_errors_inside_bounding(case, device)
