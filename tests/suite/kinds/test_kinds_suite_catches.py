"""Each check of the suites by kind, seen to fail on a method that is broken on purpose."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.evaluation import autoattack
from tests.suite.kinds import test_evaluation as evaluation
from tests.suite.kinds import test_repair as repair
from tests.suite.kinds.cases import CPU
from tests.suite.training.cases import Case

CAUGHT = (AssertionError, pytest.fail.Exception)


def of(cases: list[Case], key: str) -> Case:
    return next(case for case in cases if case.row.key == key)


def with_function(case: Case, function: Callable[..., Any]) -> Case:
    return replace(case, function=functools.wraps(case.function)(function))


# Repairs -------------------------------------------------------------------------------------------------------------

TUNED = of(repair.CASES, "fine_tuning")


def changed(result: Any, model: nn.Module) -> Any:
    """The same result with another repaired model."""
    return replace(result, model=model)


def in_place(model: nn.Module, data: Any, **kw: Any) -> Any:
    result = TUNED.function(model, data, **kw)
    model.load_state_dict(repair.repaired(result).state_dict())
    return changed(result, model)


def in_training(model: nn.Module, data: Any, **kw: Any) -> Any:
    result = TUNED.function(model, data, **kw)
    return changed(result, repair.repaired(result).train())


def another_net(model: nn.Module, data: Any, **kw: Any) -> Any:
    parts = list(copy.deepcopy(model).children())
    return changed(TUNED.function(model, data, **kw), nn.Sequential(*parts[:1], nn.Identity(), *parts[1:]))


def to_nothing(model: nn.Module, data: Any, **kw: Any) -> Any:
    result = TUNED.function(model, data, **kw)
    with torch.no_grad():
        for p in repair.repaired(result).parameters():
            p.zero_()
    return result


def by_the_clock(model: nn.Module, data: Any, **kw: Any) -> Any:
    return TUNED.function(model, data, **{**kw, "seed": int(torch.randint(10**6, ()))})


def untouched(model: nn.Module, data: Any, **kw: Any) -> Any:
    return changed(TUNED.function(model, data, **kw), copy.deepcopy(model))


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (in_place, repair.check_repair_manners),
        (by_the_clock, repair.check_repair_manners),
        (in_training, repair.check_architecture_and_mode),
        (another_net, repair.check_architecture_and_mode),
        (untouched, repair.check_architecture_and_mode),
        (to_nothing, repair.check_accuracy_is_kept),
    ],
)
def test_broken_repairs_are_seen(bug: Callable[..., Any], check: Callable[..., None]) -> None:
    with pytest.raises(CAUGHT):
        check(with_function(TUNED, bug), CPU)


# Evaluations ---------------------------------------------------------------------------------------------------------

AUTO = of(evaluation.CASES, "autoattack")


def reports(**changes: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """AutoAttack whose report has other fields: name → function of the report and the model."""

    def broken(model: Any, *data: Any, **kw: Any) -> Any:
        report = autoattack(model, *data, **kw)
        return replace(report, **{name: change(report, model) for name, change in changes.items()})

    return broken


def one_more_broken(report: Any, model: Any) -> Tensor:
    first = int((report.broken_by < 0).nonzero()[0])
    return report.broken_by.index_fill(0, torch.tensor([first]), 1)


def pairs_only(model: Any, x: Any, y: Any = None, **kw: Any) -> Any:
    if isinstance(x, torch.utils.data.DataLoader):
        x, y = next(iter(x))  # the first batch of it
    return autoattack(model, x, y, **kw)


def looks_twice(model: Any, *data: Any, **kw: Any) -> Any:
    if isinstance(data[0], Tensor):
        Victim.of(model).model(data[0])
    return autoattack(model, *data, **kw)


def no_zero(model: Any, *data: Any, eps: float, **kw: Any) -> Any:
    return autoattack(model, *data, eps=max(eps, 0.05), **kw)


def four_at_least(model: Any, *data: Any, **kw: Any) -> Any:
    report = autoattack(model, *data, **kw)
    return replace(report, broken_by=report.broken_by.clamp_max(0)) if "few_classes" in report.flags else report


def in_training_mode(model: Any, *data: Any, **kw: Any) -> Any:
    Victim.of(model).model.train()
    return autoattack(model, *data, **{**kw, "seed": int(torch.randint(10**6, ()))})


def repairs_data(model: Any, x: Any, y: Any = None, **kw: Any) -> Any:
    return autoattack(model, x.nan_to_num(0.5).clamp(0, 1) if isinstance(x, Tensor) else x, y, **kw)


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (reports(broken_by=one_more_broken), evaluation.check_numbers),
        (reports(x_adv=lambda r, _: (r.x_adv + 0.02).clamp(0, 1)), evaluation.check_numbers),
        (pairs_only, evaluation.check_forms_of_data),
        (reports(queries=lambda r, _: r.queries - 1), evaluation.check_counts),
        (looks_twice, evaluation.check_counts),
        (no_zero, evaluation.check_zero_budget),
        (four_at_least, evaluation.check_few_classes),
        (in_training_mode, evaluation.check_evaluation_manners),
        (repairs_data, evaluation.check_bad_data),
    ],
)
def test_broken_evaluations_are_seen(bug: Callable[..., Any], check: Callable[..., None]) -> None:
    with pytest.raises(CAUGHT):
        check(with_function(AUTO, bug), CPU)
