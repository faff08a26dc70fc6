"""The reader of VNN-LIB against the package vnnlib, by the authors of the format (MIT).

It reads version 2.0 of the format and ours both, so a property is drawn once and written in each. Of each
assertion it gives the disjunctive normal form. The conjunction of these is formed here, since ``vnnlib.compat`` (1.0.2)
joins two assertions with an ``or`` each by a union.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product

import pytest
import vnnlib

from robustlab.verification.complete.vnnlib import parse_vnnlib

INPUTS, OUTPUTS = 2, 3
INFINITE = float("inf")
# Low and high of each input, and rows (coefficients, constant) for "sum <= 0".
Found = tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, ...], ...]]
HEADS = {
    1: "".join(f"(declare-const {v}_{i} Real)\n" for v, n in (("X", INPUTS), ("Y", OUTPUTS)) for i in range(n)),
    2: "(vnnlib-version <2.0>)\n(declare-network f"
    f" (declare-input X float64 [{INPUTS}]) (declare-output Y float64 [{OUTPUTS}]))\n",
}


def _variable(letter: str, i: int, version: int) -> str:
    return f"{letter}_{i}" if version == 1 else f"{letter}[{i}]"


def _claim(draw: random.Random, version: int, depth: int) -> str:
    """And, or, or a comparison; in two decimals, since version 2.0 has no exponents."""

    def number() -> str:
        return f"{draw.randint(-200, 200) / 100:.2f}"

    def term(levels: int) -> str:
        kind = draw.randrange(5 if levels else 2)
        if kind == 0:
            return number()
        if kind == 1:
            return _variable("Y", draw.randrange(OUTPUTS), version)
        if kind == 2:
            return f"(* {number()} {term(levels - 1)})"
        return f"({'+' if kind == 3 else '-'} {term(levels - 1)} {term(levels - 1)})"

    if depth and draw.random() < 0.6:
        parts = " ".join(_claim(draw, version, depth - 1) for _ in range(draw.randint(2, 3)))
        return f"({draw.choice(['and', 'or'])} {parts})"
    sign = draw.choice(["<=", ">=", "<", ">"])
    if draw.random() < 0.3:
        return f"({sign} {_variable('X', draw.randrange(INPUTS), version)} {number()})"
    return f"({sign} {term(2)} {term(2)})"


def _property(seed: int, version: int) -> str:
    draw = random.Random(seed)
    box = "".join(
        f"(assert (>= {_variable('X', i, version)} -1.5)) (assert (<= {_variable('X', i, version)} 1.75))\n"
        for i in range(INPUTS)
    )
    return HEADS[version] + box + "".join(f"(assert {_claim(draw, version, 2)})\n" for _ in range(3))


def _ours(text: str) -> Iterator[Found]:
    for case in parse_vnnlib(text):
        rows = zip(case.C.tolist(), case.d.tolist(), strict=True)
        yield _found(case.low.tolist(), case.high.tolist(), [[*row, constant] for row, constant in rows])


def _theirs(text: str) -> Iterator[Found]:
    for choice in product(*(assertion.expr.to_dnf() for assertion in vnnlib.parse_query_string(text).assertions)):
        low, high, rows, true = [-INFINITE] * INPUTS, [INFINITE] * INPUTS, [], True
        for atom in (atom for conjunction in choice for atom in conjunction):
            total: dict[str, float] = {}
            for side, sign in ((atom.lhs, 1.0), (atom.rhs, -1.0)):
                linear = side.to_linear_expr()
                total[""] = total.get("", 0.0) + sign * linear.constant
                for part in linear.terms:
                    name = f"{part.var.name}{part.var.indices[0]}"
                    total[name] = total.get(name, 0.0) + sign * part.coeff
            if isinstance(atom, (vnnlib.GreaterEqual, vnnlib.GreaterThan)):
                total = {name: -value for name, value in total.items()}
            for i in range(INPUTS):
                slope = total.get(f"X{i}", 0.0)
                if slope > 0:
                    high[i] = min(high[i], -total[""] / slope)
                elif slope < 0:
                    low[i] = max(low[i], -total[""] / slope)
            if not any(
                value for name, value in total.items() if name
            ):  # numbers alone: true, or the choice has no case
                strict = isinstance(atom, (vnnlib.GreaterThan, vnnlib.LessThan))
                true &= total[""] < 0 or (total[""] == 0 and not strict)
            elif not any(name.startswith("X") for name in total):
                rows.append([*(total.get(f"Y{i}", 0.0) for i in range(OUTPUTS)), total[""]])
        if true and all(a <= b for a, b in zip(low, high, strict=True)):
            yield _found(low, high, rows)


def _found(low: list[float], high: list[float], rows: list[list[float]]) -> Found:
    """Comparable: rows in order, without rounding's traces."""
    return (
        tuple(round(value, 9) + 0.0 for value in low),
        tuple(round(value, 9) + 0.0 for value in high),
        tuple(sorted(tuple(round(value, 9) + 0.0 for value in row) for row in rows)),
    )


@pytest.mark.full("vnnlib", "vnnlib_terms")
def test_the_same_cases() -> None:
    several = 0
    for seed in range(300):
        ours = sorted(_ours(_property(seed, 1)))
        assert ours == sorted(_theirs(_property(seed, 2))), _property(seed, 1)
        assert ours == sorted(_ours(_property(seed, 2))), _property(seed, 2)
        several += len(ours) > 1
    assert several > 100, "properties of several cases are compared"
