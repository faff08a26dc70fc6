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
from robustlab.defenses import coordinate_median, krum_scores, norm_clipping, trimmed_mean
from robustlab.defenses.aggregation.vectors import lexicographic
from robustlab.evaluation import autoattack
from tests.suite.kinds import test_aggregators as aggregator
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


@pytest.mark.slow
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


# Aggregators ---------------------------------------------------------------------------------------------------------


def first_of_ties(updates: Tensor, *, f: int) -> Tensor:
    """Krum that breaks ties by the client's number."""
    return updates[krum_scores(updates, f=f).argmin()]


def from_zero(updates: Tensor, *, f: int) -> Tensor:
    """Krum by length instead of by distance."""
    return updates[lexicographic(torch.cat([updates.norm(dim=1, keepdim=True), updates], dim=1))[0]]


def one_neighbor(updates: Tensor, *, f: int) -> Tensor:
    """Krum that asks for a single neighbor, so that two outliers vouch for each other."""
    krum_scores(updates, f=f)
    distances = torch.cdist(updates, updates).fill_diagonal_(torch.inf)
    return updates[distances.amin(dim=1).argmin()]


def one_side(updates: Tensor, *, f: int) -> Tensor:
    """A trimmed mean that keeps the smallest."""
    trimmed_mean(updates, f=f)
    return updates.sort(dim=0).values[: len(updates) - f].mean(dim=0)


def summed(updates: Tensor, *, f: int) -> Tensor:
    return trimmed_mean(updates, f=f) * (len(updates) - 2 * f)


def unclipped(updates: Tensor, *, bound: float, sigma: float = 0.0, seed: int = 0) -> Tensor:
    """Clips the mean instead of each update."""
    mean = norm_clipping(updates, bound=1e30, sigma=sigma, seed=seed)
    return mean / max(1.0, float(mean.norm()) / bound)


def fixed_bound(updates: Tensor, *, bound: float, sigma: float = 0.0, seed: int = 0) -> Tensor:
    return norm_clipping(updates, bound=min(bound, 1.0), sigma=sigma, seed=seed)


def global_noise(updates: Tensor, *, bound: float, sigma: float = 0.0, seed: int = 0) -> Tensor:
    return norm_clipping(updates, bound=bound) + sigma * torch.randn(updates.shape[1:], dtype=updates.dtype)


def in_the_rows(updates: Tensor) -> Tensor:
    merged = coordinate_median(updates)
    updates[0] = merged
    return merged


def lower(updates: Tensor) -> Tensor:
    """A float32 median whatever the dtype, that forgives NaN."""
    return coordinate_median(updates.nan_to_num().float())


def with_batch(updates: Tensor) -> Tensor:
    return coordinate_median(updates)[None]


AGGREGATORS: list[tuple[str, Callable[..., Any], Callable[..., None]]] = [
    ("krum", first_of_ties, aggregator.check_order),
    ("krum", from_zero, aggregator.check_origin_and_scale),
    ("krum", one_neighbor, aggregator.check_breakdown),
    ("trimmed_mean", one_side, aggregator.check_breakdown),
    ("trimmed_mean", summed, aggregator.check_agreement),
    ("coordinate_median", lambda updates: updates.mean(dim=0), aggregator.check_breakdown),
    ("coordinate_median", with_batch, aggregator.check_as_a_rule),
    ("coordinate_median", in_the_rows, aggregator.check_aggregator_manners),
    ("coordinate_median", lower, aggregator.check_aggregator_manners),
    (
        "coordinate_median",
        lambda updates: coordinate_median(updates.nan_to_num()),
        aggregator.check_aggregator_bad_input,
    ),
    ("norm_clipping", unclipped, aggregator.check_breakdown),
    ("norm_clipping", fixed_bound, aggregator.check_origin_and_scale),
    ("norm_clipping", global_noise, aggregator.check_aggregator_manners),
]


@pytest.mark.parametrize(("key", "bug", "check"), AGGREGATORS)
def test_broken_aggregators_are_seen(key: str, bug: Callable[..., Any], check: Callable[..., None]) -> None:
    case = of(aggregator.CASES, key)
    check(case, CPU)
    with pytest.raises((*CAUGHT, RuntimeError, ValueError)):
        check(with_function(case, bug), CPU)
