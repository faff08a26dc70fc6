"""Poisons: rates exact, seeds reproducible, the clean part untouched bit for bit, the truth out of reach."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
import torch

from robustlab import attacks, defenses
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.backdoor.input_aware_backdoor import Backdoored
from robustlab.attacks.backdoor.poisoned_dataset import PoisonedDataset
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.training.cases import (
    CLASSES,
    DETECTORS,
    POISONS,
    STUDIES,
    TARGET,
    Case,
    net,
    over,
    same,
    tensors,
    twice,
)

# Those that return data; the others train a model, or change an update to one.
MAKERS = [case for case in POISONS if re.search("Poison", str(inspect.signature(case.function).return_annotation))]
DOORS = [case for case in MAKERS if case.row.kind == "backdoor"]
# What no method may take, wherever it has such an argument: name → values.
WRONG: dict[str, tuple[Any, ...]] = {
    "rate": (0.0, -0.1, 1.5, math.nan, "much"),
    "cross_rate": (0.0, -0.1, 1.5),
    "eps": (-0.1, math.nan),
    "epochs": (-1, 1.5),
    "steps": (0,),
    "restarts": (0,),
    "target": (-1, 0.5, True, torch.tensor(True)),
    "lr": (0.0, -1.0),
    "share": (-0.1, 1.5, math.nan),
}


def truth(case: Case, arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The data as they were."""
    return arguments["data"]


def check_rate_and_clean_part(case: Case, dtype: torch.dtype, device: torch.device) -> Poisoned:
    arguments = case.arguments(dtype, device)
    x, y = truth(case, arguments)
    poisoned = case.run(**arguments)
    assert isinstance(poisoned, Poisoned)
    count = int(poisoned.is_poison.sum())
    rate = arguments.get("rate", case.parameters["rate"].default if case.takes("rate") else None)
    if rate is not None and "budget" not in arguments:
        assert count == round(rate * len(x)), f"{count} poisons, want {round(rate * len(x))} of {len(x)}"
    assert count > 0, "nothing was poisoned"
    for made, given in ((poisoned.x, x), (poisoned.y, y)):
        assert made.dtype == given.dtype and made.device == given.device and made.shape[1:] == given.shape[1:]
    assert poisoned.x.min() >= 0 and poisoned.x.max() <= 1, "inputs left the box"
    touched = poisoned.is_poison | getattr(poisoned, "is_cover", torch.zeros_like(poisoned.is_poison))
    clean = poisoned.row[~touched]
    assert (clean >= 0).all() and len(clean.unique()) == len(clean), "a clean sample comes from no row, or twice"
    assert torch.equal(poisoned.x[~touched], x[clean]), "the clean part was touched"
    assert torch.equal(poisoned.y[~touched], y[clean]), "a clean label was changed"
    known = poisoned.row >= 0
    assert torch.equal(poisoned.original_y[known], y[poisoned.row[known]]), "original_y is wrong"
    changed = (poisoned.x != x[poisoned.row]).flatten(1).any(dim=1) | (poisoned.y != y[poisoned.row])
    assert bool((changed | ~known)[poisoned.is_poison].any()), "the poison changes nothing"
    return poisoned


def check_seed(case: Case) -> None:
    first, again = twice(case)
    assert same(first, again), "the same arguments gave other data"
    if case.row.kind == "backdoor":
        other = case.run(**case.arguments(seed=1))
        assert not torch.equal(first.is_poison, other.is_poison), "the seed does not matter"


def check_no_side_effects(case: Case) -> None:
    """Data, model and the global random state are as before; the result shares no memory with the data."""
    arguments = case.arguments()
    given = [t for t in tensors([v for v in arguments.values() if not isinstance(v, torch.nn.Module)]) if t.numel()]
    modules = [
        m for v in arguments.values() for m in (v if isinstance(v, list) else [v]) if isinstance(m, torch.nn.Module)
    ]
    for module in modules:  # flags that a careless method would lose
        module.train()
        next(module.children()).eval()
        next(module.parameters()).requires_grad_(False)
    whole = torch.nn.ModuleList(modules or [net()])
    before = snapshot(whole, *given)
    result = case.run(**arguments)
    assert_unchanged(before, whole, *given)
    if isinstance(result, Poisoned):
        result.x.zero_()
        result.y.zero_()
        assert_unchanged(before, whole, *given)


def check_truth_is_out_of_reach(poisoned: Poisoned) -> None:
    """Iteration and ``data`` give tensors alone, and the order of the samples tells nothing."""
    pairs = list(poisoned)
    assert len(pairs) == len(poisoned) == len(poisoned.x)
    for i, pair in [*enumerate(pairs), *((i, poisoned[i]) for i in range(len(poisoned)))]:
        assert type(pair) is tuple and len(pair) == 2 and all(type(part) is torch.Tensor for part in pair)
        assert torch.equal(pair[0], poisoned.x[i]) and torch.equal(pair[1], poisoned.y[i])
        assert not vars(pair[0]) and not vars(pair[1])
    assert type(poisoned.data) is tuple and len(poisoned.data) == 2
    assert all(type(part) is torch.Tensor and not vars(part) for part in poisoned.data)
    places = poisoned.is_poison.nonzero().flatten()
    if len(places) >= 4:
        assert int(places[-1] - places[0]) >= len(places), "the poisons stand in one block"


def check_radius(case: Case, eps: float = 1e-3) -> None:
    """No element of a poison moves farther than ε, on a net so unsure that some would; a rate of steps is generous."""
    generous: dict[str, Any] = {"attack_rate": 10.0} if case.takes("attack_rate") else {}
    if case.takes("model") and case.parameters["model"].default is inspect.Parameter.empty:
        generous["model"] = net().double()
    arguments = case.arguments(torch.float64, eps=eps, **generous)
    poisoned = case.run(**arguments)
    known = poisoned.row >= 0
    moved = (poisoned.x - truth(case, arguments)[0][poisoned.row])[known].abs()
    assert float(moved.max()) <= eps * (1 + 1e-9), "a poison left its ball"
    assert float(moved.max()) > 0.9 * eps, "the ball was not reached: this shows nothing"


def check_bad_arguments(case: Case) -> None:
    for name, values in WRONG.items():
        for value in values if case.takes(name) else ():
            if value is None or (name in case.row.quick and case.row.quick[name] is None):
                continue
            with pytest.raises((ValueError, TypeError), match=name):
                case.run(**case.arguments(**{name: value}))


def test_nothing_public_is_left_out() -> None:
    """Whatever returns a poison, a backdoored model or a Detection is a case of this suite."""
    controls = {attacks.poisoning_control}  # no attack, but what one is held against
    public = [value for package in (attacks, defenses) for _, value in inspect.getmembers(package, inspect.isfunction)]
    makers = {
        function
        for function in public
        if re.search(r"Poison(?!ingReport)|Backdoored|Detection", str(inspect.signature(function).return_annotation))
    }
    assert len(makers) > 20
    assert makers - controls - {case.function for case in POISONS + DETECTORS + STUDIES} == set()


@over(MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_rate_and_clean_part(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    check_truth_is_out_of_reach(check_rate_and_clean_part(case, dtype, device))


@over([case for case in MAKERS if case.takes("eps")])
def test_radius(case: Case) -> None:
    check_radius(case)


@pytest.mark.slow
@over(POISONS + STUDIES)
def test_same_seed_same_result(case: Case) -> None:
    if case in MAKERS:
        check_seed(case)
    else:
        assert same(*twice(case)), "the same arguments gave another result"


@over(POISONS + STUDIES)
def test_no_side_effects(case: Case) -> None:
    check_no_side_effects(case)


@pytest.mark.slow
@over(POISONS + STUDIES + DETECTORS)
def test_bad_arguments(case: Case) -> None:
    check_bad_arguments(case)


@over(DOORS)
def test_labels_and_the_target_class(case: Case) -> None:
    check_labels_and_the_target_class(case)


def check_labels_and_the_target_class(case: Case) -> None:
    """Dirty labels: only other classes, all relabeled. Clean labels: only the target class, none relabeled."""
    dirty: PoisonedDataset = case.run(**case.arguments(rate=0.3))
    assert (dirty.y[dirty.is_poison] == TARGET).all() and not (dirty.original_y[dirty.is_poison] == TARGET).any()
    both: PoisonedDataset = case.run(**case.arguments(rate=0.6, include_target=True))
    assert (both.y[both.is_poison] == TARGET).all() and (both.original_y[both.is_poison] == TARGET).any()
    clean: PoisonedDataset = case.run(**case.arguments(rate=0.2, clean_label=True))
    assert torch.equal(clean.y, clean.original_y) and (clean.y[clean.is_poison] == TARGET).all()
    part: PoisonedDataset = case.run(**case.arguments(rate=0.25, rate_of="eligible"))
    assert int(part.is_poison.sum()) == round(0.25 * int((part.original_y != TARGET).sum()))
    turn = [(k + 1) % CLASSES for k in range(CLASSES)]
    everyone: PoisonedDataset = case.run(**case.arguments(rate=0.3, target=turn))
    assert torch.equal(everyone.y[everyone.is_poison], (everyone.original_y[everyone.is_poison] + 1) % CLASSES)
    for impossible in ({"rate": 0.9}, {"rate": 0.5, "clean_label": True}):
        with pytest.raises(ValueError, match="rate"):
            case.run(**case.arguments(**impossible))


@over(DOORS)
def test_a_larger_rate_poisons_more_of_the_same(case: Case) -> None:
    few, many = (case.run(**case.arguments(rate=rate)) for rate in (0.1, 0.2))
    assert bool(many.is_poison[few.is_poison].all())


@over([c for c in POISONS if "Backdoored" in str(inspect.signature(c.function).return_annotation)])
def test_an_attacker_who_trains_returns_a_model_and_a_trigger(case: Case) -> None:
    arguments = case.arguments()
    result = case.run(**arguments)
    assert isinstance(result, Backdoored)
    assert result.model is not arguments["model"] and not same(result.model, arguments["model"])
    assert not any(module.training for module in [*result.model.modules(), *result.trigger.modules()])
    x = arguments["data"][0]
    assert result.trigger(x).shape == x.shape
