"""Protocols that run several attacks, where the truth is known: exact on affine models."""

from __future__ import annotations

import pytest
import torch

from robustlab.attacker.victim import Victim
from robustlab.evaluation import autoattack
from robustlab.geometry.norms import get_norm
from tests.suite.oracles import affine_problem, free_optimum

WIDE = (-50.0, 50.0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("protocol", [autoattack], ids=["autoattack"])
@pytest.mark.slow
def test_exact_on_affine_models(protocol, norm: str, device: torch.device) -> None:
    """Five classes, no box: what is left at ε are the samples whose nearest boundary is farther."""
    model, x, y = affine_problem(5, 24, 8, device, spread=1.0)
    truth = free_optimum(model, x, y, norm).cpu()
    eps = float(truth.sort().values[11:13].mean())
    clear = (truth / eps - 1).abs() > 0.002
    assert int(clear.sum()) >= 20
    report = protocol(Victim(model, bounds=WIDE), (x, y), norm=norm, eps=eps, attacks=["apgd-ce", "apgd-t", "fab-t"])
    assert torch.equal(report.robust[clear], (truth > eps)[clear])
    assert report.clean_accuracy == 1.0
    assert float(get_norm(norm).length(report.x_adv - x).max()) <= eps * (1 + 1e-9)


@pytest.mark.slow
def test_exact_just_beside_the_optimum(device: torch.device) -> None:
    """One sample, at a radius 0.1 % above and below its own."""
    model, x, y = affine_problem(5, 1, 8, device, spread=1.0)
    best = float(free_optimum(model, x, y, "linf"))
    for factor, robust in ((1.001, 0.0), (0.999, 1.0)):
        run = {"eps": factor * best, "attacks": ["apgd-ce", "apgd-t", "fab-t"]}
        assert autoattack(Victim(model, bounds=WIDE), x, y, **run).robust_accuracy == robust
