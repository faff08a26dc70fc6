"""Attacks whose samples share a cost: the contract of attacks, but for the counts, which do not add up by sample.

The labels that the substitute is trained on are bought for all samples together, so that its row is not one per sample.
Given a set of its own, what happens to a sample depends on nothing else in the batch; its own tests hold the counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.attacks import SubstituteResult, substitute
from robustlab.teaching.catalogue import rows
from tests.suite import test_bad_input as bad_input
from tests.suite import test_batch, test_edges, test_half_precision, test_invariance, test_pathological, test_success
from tests.suite.cases import Case, cases, noise_box
from tests.suite.test_no_side_effects import check_no_side_effects, check_no_side_effects_of_errors
from tests.suite.test_pretend import check_nothing_left_behind, check_twin

(ROW,) = [row for row in rows("attack", done=True) if row.key == "substitute"]


def on_its_own_set(victim: Any, x: Tensor, y: Tensor | None = None, **arguments: Any) -> SubstituteResult:
    """With a set that does not depend on the batch, so that what happens to a sample does not either."""
    pool = noise_box(12, tuple(x.shape[1:]), torch.float64, 9).to(x)
    return substitute(
        victim, x, y, pool=pool, classes=5, rounds=2, doublings=0, fresh=5, epochs=2, steps=3, **arguments
    )


on_its_own_set.__signature__ = inspect.signature(substitute)  # type: ignore[attr-defined]
CASES = [Case(ROW, on_its_own_set, case.norm, case.targeted) for case in cases([ROW])]
CHECKS: list[Callable[..., Any]] = [
    test_batch.check_batch_independence,
    test_batch.check_determinism,
    test_batch.check_scalars_stand_for_all,
    test_success.check_untouched_where_goal_is_met,
    test_success.check_own_prediction_by_default,
    test_edges.check_zero_budget,
    test_pathological.check_nan_rows,
    test_pathological.check_nan_away_from_x,
    test_invariance.check_gradient_mode,
    test_invariance.check_layout,
    test_half_precision.check_half_precision,
    check_no_side_effects,
    check_no_side_effects_of_errors,
    bad_input.check_access,
    bad_input.check_bad_models,
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model. want numbers")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_contract(case: Case, check: Callable[[Case, torch.device], None], device: torch.device) -> None:
    check(case, device)


@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_pretend_device(case: Case) -> None:
    check_twin(case)
    check_nothing_left_behind(case)
