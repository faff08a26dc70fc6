"""Checks of the attack suite that hold for inputs of any domain, by name: what suites of one domain begin with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

import tests.suite.test_batch as in_batch
import tests.suite.test_counts as counts
import tests.suite.test_invariance as invariance
import tests.suite.test_no_side_effects as side_effects
import tests.suite.test_success as success

Check = Callable[[Any, torch.device], object]

OF_ANY_DOMAIN: dict[str, Check] = {
    "counts": counts.check_counts,
    "large budget": counts.check_large_budget_changes_nothing,
    "batch": in_batch.check_batch_independence,
    "ids": in_batch.check_ids_permute,
    "determinism": in_batch.check_determinism,
    "side effects": lambda case, device: side_effects.check_no_side_effects(case, device, "eval"),
    "error": lambda case, device: side_effects.check_no_side_effects_of_errors(
        case, device, "asis", 2, RuntimeError("planted")
    ),
    "untouched": lambda case, device: success.check_untouched_where_goal_is_met(case, device, False),
    "untouched, all": lambda case, device: success.check_untouched_where_goal_is_met(case, device, True),
    "prediction": success.check_own_prediction_by_default,
    "inference mode": lambda case, device: invariance.check_gradient_mode(case, device, "inference_mode"),
    "shift": lambda case, device: invariance.check_logit_shift(case, device, -300.0),
    **{f"budget {k}": functools.partial(counts.check_budget_of_queries, budget=k) for k in (2, 3, 7)},
}
