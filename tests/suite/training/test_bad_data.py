"""Data that a method cannot use: one clear error that names the argument, and nothing kept of data that it can use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.suite.training.cases import CLASSES, DETECTORS, POISONS, STUDIES, Case, over, same, tensors, trained

pytestmark = pytest.mark.slow

CASES = POISONS + STUDIES + DETECTORS
PAIRS = ("data",)  # arguments that are a pair (inputs, labels)
INPUTS = ("x", "clean", "x_target")  # arguments that are inputs alone
Change = Callable[[Tensor], Tensor]


def holes(x: Tensor) -> Tensor:
    """x with one NaN in its second sample, or in its only one."""
    return x.clone().index_fill(0, torch.tensor([min(1, len(x) - 1)]), torch.nan)


# What becomes of floating inputs that no method may take: name → change.
WRONG_INPUTS: dict[str, Change] = {"NaN": holes}
# The same where a model in float32 looks at them.
WRONG_FOR_A_MODEL: dict[str, Change] = {"float64": Tensor.double, "uint8": lambda x: (255 * x).to(torch.uint8)}
# What becomes of class labels that no method may take.
WRONG_LABELS: dict[str, Change] = {
    "(N, 1)": lambda y: y[:, None],
    "float": Tensor.float,
    "all -1": lambda y: torch.full_like(y, -1),
    "one -1": lambda y: y.index_fill(0, torch.tensor([1]), -1),
    "too short": lambda y: y[:-1],
}
# And where a model says how many classes there are.
WRONG_FOR_ITS_CLASSES: dict[str, Change] = {"too large": lambda y: y + CLASSES}


def arguments(case: Case) -> dict[str, Any]:
    """The case's arguments; a surrogate that is not asked for is asked for, so that a model looks at the data."""
    given = case.arguments()
    if case.takes("model") and given.get("model") is None:
        given["model"] = trained()
        given |= {"how": "adversarial"} if case.takes("how") else {}
    return given


def inputs_of(given: dict[str, Any]) -> list[str]:
    return [name for name in (*PAIRS, *INPUTS) if name in given]


def labels_of(given: dict[str, Any]) -> list[str]:
    """Arguments that hold class labels: none where the responses are real."""
    return [
        name
        for name in (*PAIRS, "y")
        if name in given and not (given[name][1] if name in PAIRS else given[name]).is_floating_point()
    ]


def looks_with_a_model(given: dict[str, Any]) -> bool:
    parts = [part for value in given.values() for part in (value if isinstance(value, list) else [value])]
    return any(isinstance(part, nn.Module) for part in parts)


def with_inputs(given: dict[str, Any], name: str, change: Change) -> dict[str, Any]:
    value = given[name]
    return given | {name: (change(value[0]), value[1]) if name in PAIRS else change(value)}


def with_labels(given: dict[str, Any], name: str, change: Change) -> dict[str, Any]:
    value = given[name]
    return given | {name: (value[0], change(value[1])) if name in PAIRS else change(value)}


def check_refused(case: Case, name: str, what: str, given: dict[str, Any]) -> None:
    """One error that begins with the argument, or with what the pair holds, and says what was wanted."""
    names = "|".join((name, "x", "y", "x_target") if name in PAIRS else (name,))  # a target must agree with the pair
    with pytest.raises((TypeError, ValueError), match=rf"^({names}): want .*got") as caught:
        case.run(**given)
    assert type(caught.value) in (TypeError, ValueError), f"{name} as {what}"


def check_wrong_inputs(case: Case) -> None:
    given = arguments(case)
    wrong = WRONG_INPUTS | (WRONG_FOR_A_MODEL if looks_with_a_model(given) else {})
    for name in inputs_of(given):
        for what, change in wrong.items():
            check_refused(case, name, what, with_inputs(given, name, change))


def check_inputs_of_another_dtype_than_the_model(case: Case) -> None:
    """The same where all inputs agree with each other, and only the model does not."""
    given = arguments(case)
    if not looks_with_a_model(given):
        return
    names = inputs_of(given)
    for name in names:
        given = with_inputs(given, name, Tensor.double)
    named = "|".join([*names, "model"])
    if names:
        with pytest.raises(TypeError, match=rf"^({named}): want .*(float32.*float64|float64.*float32)"):
            case.run(**given)


def check_wrong_labels(case: Case) -> None:
    given = arguments(case)
    wrong = WRONG_LABELS | (WRONG_FOR_ITS_CLASSES if "model" in given and not case.takes("target") else {})
    for name in labels_of(given):
        for what, change in wrong.items():
            check_refused(case, name, what, with_labels(given, name, change))


def check_small_integers_are_labels(case: Case) -> None:
    given = case.arguments()
    for name in labels_of(given):
        result = case.run(**with_labels(given, name, lambda y: y.to(torch.int32)))
        assert same(result, case.run(**given)), f"int32 labels in {name} gave another result"


def check_keeps_no_graph(case: Case) -> None:
    """Data that require gradients give the same result, which leads back to none of them."""
    given = case.arguments()
    leaves: list[Tensor] = []

    def required(x: Tensor) -> Tensor:
        leaves.append(x.clone().requires_grad_())
        return leaves[-1]

    changed = given
    for name in inputs_of(given):
        changed = with_inputs(changed, name, required)
    if not leaves:
        return
    result = case.run(**changed)
    assert same(result, case.run(**given))
    kept = [t for t in tensors(result) if t.grad_fn is not None or any(t is leaf for leaf in leaves)]
    assert not kept, "the result keeps the graph of the caller's data"
    assert all(x.grad is None for x in leaves), "gradients were written into the caller's data"


def check_inference_tensors(case: Case) -> None:
    """Data that were made in inference mode, of which autograd can save nothing, give the same result."""
    given = changed = case.arguments()
    with torch.inference_mode():
        for name in inputs_of(given):
            changed = with_inputs(changed, name, torch.clone)
    assert same(case.run(**changed), case.run(**given))


@over(CASES)
def test_wrong_inputs(case: Case) -> None:
    check_wrong_inputs(case)


@over(CASES)
def test_inputs_of_another_dtype_than_the_model(case: Case) -> None:
    check_inputs_of_another_dtype_than_the_model(case)


@over(CASES)
def test_wrong_labels(case: Case) -> None:
    check_wrong_labels(case)


@over(CASES)
def test_small_integers_are_labels(case: Case) -> None:
    check_small_integers_are_labels(case)


@over(CASES)
def test_keeps_no_graph(case: Case) -> None:
    check_keeps_no_graph(case)


@over(CASES)
def test_inference_tensors(case: Case) -> None:
    check_inference_tensors(case)
