"""Threat models and a first attack: what each student gets, and the tests of what comes back.

A threat model is data here: for each feature of a table, the box in which its values lie, how far an attacker moves it,
in which direction, and whether it counts whole things. The instructor's copy works out a table in which all features
are real numbers that move both ways or not at all. Every student's has features that only grow, only shrink, or count.

The judge asks of each value only whether it is allowed, and whether the next one would be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assignments.grading.task import METHODS, Lost, Test, require, tensor_like
from robustlab.teaching.check.gradient_attacks import Case, corner_case
from robustlab.teaching.handout import linear_network

BLOCKED = METHODS
FEATURES = 8
SCALES = 0.25, 0.5, 1.0


def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: a threat model, an affine model of two classes, a table of 200 rows, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    threat = _threat(generator, worked)
    x = _rows(threat, 200, generator)
    model = _model(threat, generator)
    z = model(x).detach()
    y = z.argmax(dim=1)
    mislabeled = torch.rand(200, generator=generator) < 0.05
    return {"threat": threat, "model": model, "x": x, "y": torch.where(mislabeled, 1 - y, y)}


def _threat(generator: torch.Generator, worked: bool) -> dict[str, Any]:
    low = torch.randint(-5, 5, (FEATURES,), generator=generator).float()
    high = low + torch.randint(6, 20, (FEATURES,), generator=generator)
    reach = (0.04 + 0.1 * torch.rand(FEATURES, generator=generator)) * (high - low)
    order = torch.randperm(FEATURES, generator=generator).tolist()
    ways = ["both"] * 6 + ["none"] * 2 if worked else ["both", "both", "both", "none", "up", "up", "down", "down"]
    whole = [False] * FEATURES if worked else [True, False, False, False, True, False, True, False]
    reach = torch.where(torch.tensor([whole[i] for i in order]), reach.clamp_min(0.2) + 1, reach)
    return {
        "low": low,
        "high": high,
        "reach": reach,
        "way": [ways[i] for i in order],
        "whole": [whole[i] for i in order],
    }


def _rows(threat: dict[str, Any], count: int, generator: torch.Generator) -> Tensor:
    x = threat["low"] + torch.rand(count, FEATURES, generator=generator) * (threat["high"] - threat["low"])
    return torch.where(torch.tensor(threat["whole"]), x.round(), x)


def _model(threat: dict[str, Any], generator: torch.Generator) -> nn.Sequential:
    """Whose decision depends on all features alike, and is at the middle of the box."""
    width, middle = threat["high"] - threat["low"], (threat["high"] + threat["low"]) / 2
    size = 0.5 + torch.rand(2, FEATURES, generator=generator)
    weight = size * torch.tensor([[1.0], [-1.0]]) * torch.randn(FEATURES, generator=generator).sign() / width
    return linear_network(weight, -weight @ middle)


def allowed(value: Tensor, x: Tensor, threat: dict[str, Any], slack: float = 1e-4) -> Tensor:
    """Whether each value (N, d) is one to which the attacker may move x, up to rounding."""
    delta, way = value - x, threat["way"]
    inside = (value >= threat["low"] - slack) & (value <= threat["high"] + slack)
    near = delta.abs() <= threat["reach"] + slack
    up = torch.tensor([word in ("both", "up") for word in way])
    down = torch.tensor([word in ("both", "down") for word in way])
    whole = ~torch.tensor(threat["whole"]) | ((value - value.round()).abs() <= slack)
    return inside & near & (up | (delta <= slack)) & (down | (delta >= -slack)) & whole


def require_farthest(value: Tensor, x: Tensor, threat: dict[str, Any], sign: Tensor) -> None:
    """Raises `Lost` unless each value is allowed, and none farther in the direction ``sign`` (±1, 0: any) is."""
    right = allowed(value, x, threat)
    if not bool(right.all()):
        raise Lost(f"a value is not allowed, such as one of feature {int((~right).nonzero()[0, 1])}")
    step = torch.where(torch.tensor(threat["whole"]), 1.0, 1e-2 * threat["reach"])
    more = allowed(value + sign * step, x, threat) & (sign != 0)
    if bool(more.any()):
        raise Lost(f"a value could be moved farther, such as one of feature {int(more.nonzero()[0, 1])}")


def robust(mine: dict[str, Any], scale: float, fixed: int | None = None) -> float:
    """The share of rows that no allowed change fools, where every reach is ``scale`` times as long."""
    threat, x, y = mine["threat"], mine["x"].double(), mine["y"]
    threat = threat | {"reach": threat["reach"].double() * scale}
    weight, bias = mine["model"][1].weight.detach().double(), mine["model"][1].bias.detach().double()
    slope = weight[y] - weight[1 - y]
    ends = [threat["low"].expand_as(x), threat["high"].expand_as(x), x, x - threat["reach"], x + threat["reach"]]
    tried = torch.stack([*ends, *(end.ceil() for end in ends), *(end.floor() for end in ends)]).double()
    fits = torch.stack([allowed(value, x, threat, 1e-9) for value in tried])
    gain = (slope * (tried - x)).masked_fill(~fits, torch.inf).amin(dim=0)
    if fixed is not None:
        gain[:, fixed] = 0
    lead = (slope * x).sum(dim=1) + bias[y] - bias[1 - y]
    return float((lead + gain.sum(dim=1) > 0).double().mean())


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Twelve points by the program; the rest by hand."""
    return [*_fgsm(seed), *_allowed(seed + 1, mine), *_attack(seed + 2, mine), *_numbers(mine)]


def _fgsm(seed: int) -> list[Test]:
    """FGSM on images: 3 points."""
    single = corner_case((2, 3, 3), seed=seed, count=12, eps=0.07, dtype=torch.float32)
    double = corner_case((5,), seed=seed + 1, count=6, eps=0.07)
    single.model.insert(1, nn.Dropout(0.9).eval())  # who puts the model into training mode meets another one

    def corner(case: Case, aim: Tensor, tolerance: float) -> Callable[[Any], None]:
        def judge(out: Any) -> None:
            gap = float((tensor_like(out, case.x) - aim.double()).abs().max())
            require(gap <= tolerance, f"on an affine model the result is {gap:.2g} away from the best corner")

        return judge

    towards = (double.x + 0.07 * double.uphill).clamp(0, 1)
    cell = "test-fgsm"
    return [
        Test("fgsm", 1, cell, "fgsm", corner(single, single.expected, 1e-5), [single.model, single.x, single.y, 0.07]),
        Test(
            "double", 1, cell, "fgsm", corner(double, double.expected, 1e-10), [double.model, double.x, double.y, 0.07]
        ),
        Test(
            "target", 1, cell, "fgsm_to", corner(double, towards, 1e-10), [double.model, double.x, 1 - double.y, 0.07]
        ),
    ]


def _allowed(seed: int, mine: dict[str, Any]) -> list[Test]:
    """The values that the student's threat model allows: 3 points."""
    threat = mine["threat"]
    x = _rows(threat, 100, torch.Generator().manual_seed(seed))
    real, whole = (torch.tensor([flag == want for flag in threat["whole"]]) for want in (False, True))
    whole = whole if bool(whole.any()) else real

    def ends(columns: Tensor) -> Callable[[Any], None]:
        def judge(out: Any) -> None:
            require(isinstance(out, list) and len(out) == 2, "it returned no pair of tensors")
            for value, sign in zip((tensor_like(part, x) for part in out), (-1.0, 1.0), strict=True):
                kept = torch.where(columns, value, x.double())
                try:
                    require_farthest(kept, x, threat, sign * columns.double())
                except Lost as lost:
                    raise Lost(f"{'lowest' if sign < 0 else 'highest'}: {lost}") from None

        return judge

    cell, asks = "test-allowed", "allowed"
    return [
        Test("real", 2, cell, asks, ends(real), [x, threat]),
        Test("whole", 1, cell, asks, ends(whole), [x, threat]),
    ]


def _attack(seed: int, mine: dict[str, Any]) -> list[Test]:
    """The attack under the student's threat model: 3 points."""
    threat, generator = mine["threat"], torch.Generator().manual_seed(seed)
    x, model = _rows(threat, 60, generator), _model(threat, generator)
    y = torch.arange(60) % 2
    weight = model[1].weight.detach()
    uphill = (weight[1 - y] - weight[y]).sign().double()

    def best(out: Any) -> None:
        require_farthest(tensor_like(out, x), x, threat, uphill)

    def grows(out: Any) -> None:
        out = tensor_like(out, x)
        require(allowed(out, x, threat).all(), "a value is not allowed")
        require((((out - x) * uphill).sum(dim=1) > 0).all(), "the loss of a row does not grow")

    cell, asks = "test-attack", "attack"
    return [
        Test("grows", 1, cell, asks, grows, [model, x, y, threat]),
        Test("best", 2, cell, asks, best, [model, x, y, threat]),
    ]


def _numbers(mine: dict[str, Any]) -> list[Test]:
    """Numbers about the student's own model: 3 points."""
    curve = [robust(mine, scale) for scale in SCALES]
    gains = [robust(mine, 1.0, fixed) for fixed in range(FEATURES)]

    def accuracies(value: Any) -> None:
        numbers = isinstance(value, list) and all(isinstance(one, int | float) for one in value)
        require(numbers or isinstance(value, Tensor), "robust_accuracies is no list of three numbers")
        given = tensor_like(torch.tensor(value).float() if numbers else value, torch.zeros(3))
        for scale, said, right in zip(SCALES, given.tolist(), curve, strict=True):
            # By how much it is off would be the answer, since what was said is known.
            require(abs(said - right) <= 0.0051, f"at {scale:g} of the reach {said:.3f} is not that of your table")

    def feature(value: Any) -> None:
        require(type(value) is int and 0 <= value < FEATURES, f"want the number of a feature, got {str(value)[:40]!r}")
        require(gains[value] >= max(gains) - 1e-9, f"fixing another feature than {value} helps more")

    cell = "test-numbers"
    return [
        Test("curve", 2, cell, "robust_accuracies", accuracies, call=False),
        Test("feature", 1, cell, "feature_to_fix", feature, call=False),
    ]
