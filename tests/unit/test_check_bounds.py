"""The checks of interval and CROWN bounds: each diagnosis is that of the mutant which causes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.teaching import check
from robustlab.teaching.check.linear_bounds import bent, bounds_case, reference, sampled, values
from tests.every import every
from tests.planted import cause_of, run

BOUNDS = """
def intervals(layers, lower, upper):
    found = []
    for number, (W, b) in enumerate(layers):
        if number:
            turns = (lower < 0) & (upper > 0)
            ends = act(lower), act(upper)
            lower = torch.where(turns, torch.minimum(*ends).clamp(max=0), torch.minimum(*ends))
            upper = torch.maximum(*ends)
        plus, minus = W.clamp(min=0), W.clamp(max=0)
        lower, upper = lower @ plus.T + upper @ minus.T + b, upper @ plus.T + lower @ minus.T + b
        found.append((lower, upper))
    return found


def lines(lower, upper):
    unstable = (lower < 0) & (upper > 0)
    side = torch.where(lower >= 0, RIGHT, LEFT)
    alpha = torch.where(unstable, torch.where(upper >= -lower, RIGHT, LEFT), side)
    beta = torch.where(unstable, (act(upper) - act(lower)) / (upper - lower).clamp(min=1e-30), side)
    return alpha, beta, torch.where(unstable, act(upper) - beta * upper, 0.0)


def backward(layers, hidden, lower, upper, C):
    A, constant = C.expand(len(lower), *C.shape), 0
    for number in reversed(range(len(layers))):
        constant = constant + A @ layers[number][1]
        A = A @ layers[number][0]
        if number:
            alpha, beta, gamma = hidden[number - 1]
            plus, minus = A.clamp(min=0), A.clamp(max=0)
            constant = constant + (minus @ gamma[:, :, None]).squeeze(2)
            A = plus * alpha[:, None] + minus * beta[:, None]
    plus, minus = A.clamp(min=0), A.clamp(max=0)
    return constant + (plus @ lower[:, :, None] + minus @ upper[:, :, None]).squeeze(2)


def crown(layers, lower, upper, C):
    hidden = []
    for number in range(1, len(layers)):
        eye = torch.eye(len(layers[number - 1][1])).to(lower)
        low = backward(layers[:number], hidden, lower, upper, eye)
        high = -backward(layers[:number], hidden, lower, upper, -eye)
        hidden.append(lines(low, high))
    return backward(layers, hidden, lower, upper, C)
"""
RELU, VEE = (0.0, 1.0), (-0.6, 1.1)
CUT = "lower = torch.where(turns, torch.minimum(*ends).clamp(max=0), torch.minimum(*ends))"

INTERVALS = {
    "the bounds of one layer too many or too few": ("return found", "return found[:-1]"),
    "wrong shape": ("found.append((lower, upper))", "found.append((lower.T, upper.T))"),
    "W applied to both ends, whatever its signs": (
        "lower @ plus.T + upper @ minus.T + b, upper @ plus.T + lower @ minus.T + b",
        "lower @ W.T + b, upper @ W.T + b",
    ),
    "two corners of the box are looked at, of all that it has": (
        "lower @ plus.T + upper @ minus.T + b, upper @ plus.T + lower @ minus.T + b",
        "torch.minimum(lower @ W.T, upper @ W.T) + b, torch.maximum(lower @ W.T, upper @ W.T) + b",
    ),
    "the affine layer is not bounded as a whole": ("minus.T + b", "minus.T"),
    "the function between the layers is not monotone": (CUT, "lower = torch.minimum(*ends)"),
    "the function is applied before the bounds are kept": (
        "found.append((lower, upper))",
        "found.append((act(lower), act(upper)))",
    ),
    "wider than intervals need to be": ("upper = torch.maximum(*ends)", "upper = torch.maximum(*ends) + 0.1"),
    "batch-dependent: samples share something that each should have alone": (
        "turns = (lower < 0) & (upper > 0)",
        "turns = ((lower < 0) & (upper > 0)).any(dim=0)",
    ),
}
CROWN = {
    "wrong shape": (
        "return backward(layers, hidden, lower, upper, C)",
        "return backward(layers, hidden, lower, upper, C[:1])",
    ),
    "a division by zero": ("squeeze(2)\n\n", "squeeze(2) * 0 / 0\n\n"),
    "the wrong end of the box": (
        "plus @ lower[:, :, None] + minus @ upper[:, :, None]",
        "plus @ upper[:, :, None] + minus @ lower[:, :, None]",
    ),
    "the biases are lost": ("constant = constant + A @ layers[number][1]", "constant = constant + 0"),
    "the backward pass of an affine layer, or the minimum over the box": (
        "A @ layers[number][0]",
        "-A @ layers[number][0]",
    ),
    "stable neurons are relaxed as if they were not, or not passed at all": (
        "side = torch.where(lower >= 0, RIGHT, LEFT)",
        "side = torch.where(lower >= 0, 0.9 * RIGHT, LEFT)",
    ),
    "batch-dependent: samples share something that each should have alone": (
        "hidden.append(lines(low, high))",
        "hidden.append(lines(low.amin(dim=0).expand_as(low), high.amax(dim=0).expand_as(low)))",
    ),
    "a line on the wrong side, or chosen by the wrong sign": (
        "constant = constant + (minus @ gamma[:, :, None]).squeeze(2)",
        "constant = constant + (plus @ gamma[:, :, None]).squeeze(2)",
    ),
    "a line with more area than CROWN's": (
        "torch.where(upper >= -lower, RIGHT, LEFT)",
        "torch.where(upper < -lower, RIGHT, LEFT)",
    ),
    "the layers are passed in another order, or with each other's lines": ("hidden[number - 1]", "hidden[0]"),
    "hidden layers are bounded by intervals": (
        "hidden.append(lines(low, high))",
        "hidden.append(lines(*intervals(layers, lower, upper)[number - 1]))",
    ),
    "hidden bounds are wider than CROWN's": (
        "hidden.append(lines(low, high))",
        "hidden.append(lines(low - 0.5 * (number > 1), high + 0.5 * (number > 1)))",
    ),
}


def made(bend: tuple[float, float], *replaced: tuple[str, str]) -> dict[str, Any]:
    """The functions above, with some text replaced."""
    left, right = (torch.tensor(slope, dtype=torch.float64) for slope in bend)
    return run(BOUNDS, *replaced, LEFT=left, RIGHT=right, act=lambda z: bent(z, bend))


@every("bend", [RELU, VEE])
def test_right_answers_pass(bend: tuple[float, float]) -> None:
    for seed in (0, 50):
        check.intervals(made(bend)["intervals"], bend=bend, seed=seed)
        check.crown(made(bend)["crown"], bend=bend, seed=seed)
    cut = "by = intervals(layers, lower, upper)[number - 1]\n        "
    cut += "hidden.append(lines(low.maximum(by[0]), high.minimum(by[1])))"
    check.crown(made(bend, ("hidden.append(lines(low, high))", cut))["crown"], bend=bend)


@every("cause", [*INTERVALS])
def test_intervals_are_diagnosed(cause: str) -> None:
    assert cause_of(check.intervals, made(VEE, INTERVALS[cause])["intervals"], bend=VEE) == cause


@every("cause", [*CROWN])
def test_crown_is_diagnosed(cause: str) -> None:
    with pytest.raises(check.Wrong) as wrong:
        check.crown(made(VEE, CROWN[cause])["crown"], bend=VEE)
    assert wrong.value.cause == cause
    assert f"Hint 1 of {len(wrong.value.hints)}" in str(wrong.value) and "hints=2" in str(wrong.value)


def test_what_the_relu_takes_for_granted_is_named() -> None:
    """A box that is not sent through the function, where it is monotone and where it is not."""
    for bend, cause in ((RELU, "is not applied to the box"), (VEE, "is not monotone")):
        slipped = made(bend, ("        if number:", "        if number < 0:"))["intervals"]
        assert cause in cause_of(check.intervals, slipped, bend=bend)


@every("bend", [RELU, VEE])
def test_bounds_after_the_function_are_named(bend: tuple[float, float]) -> None:
    turned = "ends = act(lower), act(upper); turns = (lower < 0) & (upper > 0); found.append((torch.where(turns, "
    turned += "torch.minimum(*ends).clamp(max=0), torch.minimum(*ends)), torch.maximum(*ends)))"
    slipped = made(bend, ("found.append((lower, upper))", turned))["intervals"]
    assert "before the bounds are kept" in cause_of(check.intervals, slipped, bend=bend)


def test_the_reference_is_a_bound_of_the_network() -> None:
    layers, lower, upper = bounds_case((3, 6, 6, 2), seed=9)
    C: Tensor = torch.eye(2, dtype=torch.float64)
    least = values(layers, sampled(lower, upper), VEE)[-1].amin(dim=0)
    by = {name: reference(layers, lower, upper, C, VEE, by=name) for name in ("ibp", "crown_ibp", "crown")}
    assert all(bool((found <= least + 1e-9).all()) for found in by.values())
    assert bool((by["crown"].mean() > by["crown_ibp"].mean()) & (by["crown_ibp"].mean() > by["ibp"].mean()))
