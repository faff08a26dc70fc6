"""The terms of a VNN-LIB property: words, linear sums of variables, and what a comparison says of given values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Any

Linear = dict[str, float]
"""Σ coefficient·variable; the empty name is the constant."""
Term = Any
"""A word, or a list of terms."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
COMPARED = ("<=", "<", ">=", ">", "=")


@dataclass(frozen=True, eq=False)
class Atom:
    """A linear sum that is at most 0, or below 0 where it is strict.

    Attributes:
        linear: the sum in float64.
        claim: the comparison that it comes from.
        side: the sum is the left term less the right one (1), or the right one less the left one (−1).
    """

    linear: Linear
    claim: Term
    side: int

    @property
    def strict(self) -> bool:
        return self.claim[0] in ("<", ">")

    @property
    def variables(self) -> list[str]:
        return [name for name, value in self.linear.items() if name and value]

    def exact(self) -> dict[str, Fraction]:
        """The sum as it is written, in rational numbers; the empty name is the constant."""
        names = [name for name in self.linear if name]
        zero = {name: Fraction(0) for name in names}
        constant = self.side * _gap(self.claim, zero)
        slopes = {name: self.side * _gap(self.claim, zero | {name: Fraction(1)}) - constant for name in names}
        return slopes | {"": constant}


def atoms(claim: Term, names: Mapping[str, None]) -> list[Atom]:
    """A comparison as linear ≤ 0, twice for an equation."""
    kind, left, right = claim
    one, other = _linear(left, names), _linear(right, names)
    found = [Atom(_sum(one, other, -1), claim, 1)] if kind != ">=" and kind != ">" else []
    found += [Atom(_sum(other, one, -1), claim, -1)] if kind in (">=", ">", "=") else []
    for atom in found:
        used = atom.variables
        if not used:
            _decide(atom.linear, claim, names)
        if not all(map(isfinite, atom.linear.values())):
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
    if all(_gap(claim, zero | {word: Fraction(1)}) == _gap(claim, zero) for word in zero):
        atom.clear()
        atom[""] = -1.0 if is_true(claim, zero) else 1.0


def _gap(claim: Term, values: Mapping[str, Fraction]) -> Fraction:
    """Left less right."""
    return _value(claim[1], values) - _value(claim[2], values)


def without_a_number(bounds: Sequence[Atom]) -> bool:
    """Whether no number meets all of these bounds of one variable, in exact arithmetic."""
    low, high = [], []
    for atom in bounds:
        sum_ = atom.exact()
        (slope,) = (value for name, value in sum_.items() if name)
        if slope > 0:
            high.append((-sum_[""] / slope, not atom.strict))  # the least is the tightest: open before closed
        elif slope < 0:
            low.append((-sum_[""] / slope, atom.strict))
    if not low or not high:
        return False
    (least, above), (most, with_end) = max(low), min(high)
    return least > most or (least == most and (above or not with_end))


def contradict(one: Atom, other: Atom) -> bool:
    """Whether two sums are each other's negatives and one of them is strict, so that they cannot both hold."""
    if not (one.strict or other.strict):
        return False
    left, right = ({name: value for name, value in atom.linear.items() if value} for atom in (one, other))
    if left.keys() != right.keys() or any(left[name] != -right[name] for name in left):
        return False
    left_, right_ = one.exact(), other.exact()
    return all(left_.get(name, 0) + right_.get(name, 0) == 0 for name in left_ | right_)


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
