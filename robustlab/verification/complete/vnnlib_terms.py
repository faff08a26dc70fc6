"""The terms of a VNN-LIB property: words, linear sums of variables, and what a comparison says of given values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import isfinite
from typing import Any

Linear = dict[str, float]
"""Σ coefficient·variable; the empty name is the constant."""
Term = Any
"""A word, or a list of terms."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
COMPARED = ("<=", "<", ">=", ">", "=")


def atoms(claim: Term, names: Mapping[str, None]) -> list[Linear]:
    """A comparison as linear ≤ 0, twice for an equation."""
    kind, left, right = claim
    one, other = _linear(left, names), _linear(right, names)
    found = [_sum(one, other, -1)] if kind != ">=" and kind != ">" else []
    found += [_sum(other, one, -1)] if kind in (">=", ">", "=") else []
    for atom in found:
        used = [name for name, value in atom.items() if name and value]
        if not used:
            _decide(atom, claim, names)
        if not all(map(isfinite, atom.values())):
            raise ValueError(f"property: want numbers of float64, got larger ones in {shown(claim)}")
        if len(used) > 1 and any(name[0] == "X" for name in used):
            raise ValueError(
                f"property: want bounds of single inputs, got a constraint on {', '.join(sorted(used)[:9])}"
            )
    return found


def _decide(atom: Linear, claim: Term, names: Mapping[str, None]) -> None:
    """Write a comparison without variables as −1 ≤ 0 or 1 ≤ 0, by what it says in exact arithmetic: Y_0 < Y_0 is false.

    Where variables cancel in float64 alone, it is left as it is.
    """
    zero = {word: Fraction(0) for word in _words(claim) if word in names}

    def gap(values: Mapping[str, Fraction]) -> Fraction:
        return _value(claim[1], values) - _value(claim[2], values)

    if all(gap(zero | {word: Fraction(1)}) == gap(zero) for word in zero):
        atom.clear()
        atom[""] = -1.0 if is_true(claim, zero) else 1.0


def _words(term: Term) -> Iterator[str]:
    if isinstance(term, str):
        yield term
    else:
        for part in term:
            yield from _words(part)


def _linear(term: Term, names: Mapping[str, None]) -> Linear:
    match term:
        case str(word):
            return {word: 1.0} if word in names else {"": float(_number(word))}
        case ["-", only]:
            return _sum({}, _linear(only, names), -1)
        case ["+" | "-" as sign, first, *rest]:
            total = _linear(first, names)
            for part in rest:
                _add(total, _linear(part, names), 1 if sign == "+" else -1)
            return total
        case ["*", one, other]:
            left, right = _linear(one, names), _linear(other, names)
            if set(left) - {""}:
                left, right = right, left
            if not set(left) - {""}:
                return {name: left.get("", 0.0) * value for name, value in right.items()}
    raise ValueError(f"property: want a linear term, got {shown(term)}")


def _number(word: str) -> str:
    if not _NUMBER.fullmatch(word):
        raise ValueError(f"property: want a number or a declared variable, got {word[:70]}")
    return word


def is_true(claim: Term, values: Mapping[str, Fraction]) -> bool:
    """What an assertion says of numbers, exactly."""
    kind, *parts = claim
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(is_true(part, values) for part in parts)
    left, right = (_value(part, values) for part in parts)
    return (kind[0] == "<" and left < right) or (kind[0] == ">" and left > right) or ("=" in kind and left == right)


def _value(term: Term, values: Mapping[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        return values[term] if term in values else Fraction(_number(term))
    sign, first, *rest = (term[0], *(_value(part, values) for part in term[1:]))
    if sign == "*":
        return first * rest[0]
    if not rest:
        return -first if sign == "-" else first
    return first + sum(rest) if sign == "+" else first - sum(rest)


def _sum(left: Linear, right: Linear, factor: float) -> Linear:
    total = dict(left)
    _add(total, right, factor)
    return total


def _add(total: Linear, other: Linear, factor: float) -> None:
    for name, value in other.items():
        total[name] = total.get(name, 0.0) + factor * value


def numbered(names: Mapping[str, None], letter: str) -> int:
    """How many variables of a letter there are; they must be numbered from 0."""
    found = sorted(int(name[2:]) for name in names if name[0] == letter)
    if found != list(range(len(found))):
        raise ValueError(f"property: want {letter}_0, {letter}_1, …, each declared once, got {len(found)} declarations")
    return len(found)


def shown(expression: Term) -> str:
    """The beginning of an expression."""
    words: list[str] = []
    todo = [expression]
    while todo and sum(map(len, words)) < 80:
        at = todo.pop()
        if isinstance(at, str):
            words.append(at[:80])
        else:
            todo += [")", *at[:40:][::-1], "("]
    text = re.sub(r"\( | (?=\))", lambda found: found.group().strip(), " ".join(words))
    return text if len(text) < 80 else text[:77] + "..."
