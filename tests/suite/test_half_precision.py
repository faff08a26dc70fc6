"""Models and inputs of half precision: every attack works, as well as it does in single precision."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.suite.cases import CASES, EPS, Case, batch, over


def check_half_precision(case: Case, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> None:
    """Points of x's dtype in box and ball, true successes, and hardly fewer than in float32 with the same weights."""
    model, x, y = batch(case, device, n=8, dtype=dtype)
    result = case.run(model, x, y)
    assert result.x_adv.dtype == dtype and case.inside(result.x_adv), "another dtype, outside the box, or NaN"
    with torch.no_grad():
        assert torch.equal(case.goal(model(result.x_adv), y), result.success), "success is not what the model says"
    assert all(d.dtype == torch.float32 and bool(d.isfinite().all()) for d in result.distances.values())
    if case.has_budget and case.norm:
        rounding = float(case.length(torch.ones_like(x[:1]))) * torch.finfo(dtype).eps
        delta = result.x_adv.float() - x.float()
        assert bool((case.length(delta) <= EPS[case.norm] * (1 + 1e-6) + rounding).all()), "outside the ball"
    plain = case.run(copy.deepcopy(model).float(), x.float(), y)
    found, wanted = int(result.success.sum()), int(plain.success.sum())
    assert found >= wanted - 1, f"{found} successes, {wanted} in float32"


@pytest.mark.slow
@over(*CASES, dtype=(torch.bfloat16, torch.float16))
def test_half_precision(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    check_half_precision(case, device, dtype)
