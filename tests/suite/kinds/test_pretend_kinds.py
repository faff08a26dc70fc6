"""Aggregators, certified defenses, universal and physical attacks on the pretend device: where their inputs are, as on
the CPU. The other kinds are there in the suites beside: attacks and what evaluates them, the training phase, verifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pretend.twins import twins
from tests.suite.kinds import test_aggregators as aggregators
from tests.suite.kinds import test_certified as certified
from tests.suite.kinds import test_physical as physical
from tests.suite.kinds import test_universal as universal
from tests.suite.kinds.cases import specimen
from tests.suite.training.cases import Case

Run = Callable[[torch.device], Any]


def aggregated(case: Case) -> Run:
    """Two outliers among nine, and noise where the rule has any."""

    def run(device: torch.device) -> Tensor:
        updates = aggregators.honest(9, device)
        updates[:2] += 5.0
        return aggregators.run(case, updates, sigma=0.1, seed=1)

    return run


def certificate(case: Case) -> Run:
    """Three samples, of which one is misread; a defense of training gets the data of its suite."""

    def run(device: torch.device) -> Any:
        if case not in certified.DEPLOYED:
            return case.run(**case.arguments(torch.float64, device))
        model, x, y, _, _ = certified.problem(device)
        labels = torch.cat([y[:2], 1 - y[2:3]])
        return vars(certified.run(case, model, x[:3], labels)) | {"counterexample": None}

    return run


def one_for_all(case: universal.Case) -> Run:
    def run(device: torch.device) -> Any:
        model, x = universal.problem(device, n=4)
        return case.run(model, x)

    return run


def painted(case: physical.Case) -> Run:
    def run(device: torch.device) -> Any:
        model, x = physical.problem(case, device)
        return case.run(model, x[:3])

    return run


CASES: list[tuple[Callable[..., Run], Any]] = [
    *((aggregated, case) for case in aggregators.CASES),
    *((certificate, case) for case in certified.CASES),
    *((one_for_all, case) for case in universal.CASES),
    *((painted, case) for case in physical.CASES),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "case"), [pytest.param(make, case, id=str(case)) for make, case in CASES])
def test_twin(make: Callable[..., Run], case: Any) -> None:
    twins(make(case), rtol=1e-9, atol=1e-9)


# The check, seen to fail ---------------------------------------------------------------------------------------------


def left_on_the_cpu(updates: Tensor) -> Tensor:
    return updates.mean(dim=0).cpu()


def weighed_on_the_cpu(updates: Tensor) -> Tensor:
    return (updates * torch.ones(len(updates), 1)).mean(dim=0)


def picked_from_the_cpu(updates: Tensor) -> Tensor:
    return updates.index_select(0, torch.arange(3)).mean(dim=0)


def through_numpy(updates: Tensor) -> Tensor:
    return torch.from_numpy(updates.numpy().mean(axis=0)).to(updates)


def other_there(updates: Tensor) -> Tensor:
    return updates.mean(dim=0) + int(updates.is_cuda)


@pytest.mark.parametrize("rule", [left_on_the_cpu, weighed_on_the_cpu, picked_from_the_cpu, through_numpy, other_there])
def test_rules_that_a_gpu_would_break(rule: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((AssertionError, RuntimeError, TypeError)):
        twins(aggregated(specimen("aggregator", rule)))
