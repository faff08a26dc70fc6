"""Reading VNN-LIB 1.0, the language in which the verification competition states properties.

Demarchi, Guidotti, Pulina and Tacchella, "Supporting standardization of neural networks verification with VNN-LIB and
CoCoNet" (2023). A file declares inputs ``X_i`` and outputs ``Y_j`` and asserts, in the prefix notation of SMT-LIB, what
an *unsafe* input-output pair meets. It is brought into disjunctive normal form; each conjunction becomes one
:class:`~robustlab.verification.complete.query.Case`.

Accepted: ``and``, ``or``, ``<=``, ``>=``, ``<``, ``>``, ``=`` between terms that are linear (numbers, variables,
``+ - *``). Constraints on inputs must bound single inputs, in every conjunction from both sides, and none may mix
inputs and outputs. Strict inequalities are read as weak ones: the unsafe set is closed.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from robustlab.verification.complete.query import Case

__all__ = ["read_vnnlib"]

Linear = dict[str, float]
"""Σ coefficient·variable; the empty name is the constant."""


def read_vnnlib(path: str | Path) -> list[Case]:
    """The cases of a property file.

    Args:
        path: of a ``.vnnlib`` file, or one compressed with gzip (``.gz``).

    Returns:
        The unsafe set as a list of cases; conjunctions whose box is empty are left out.

    Raises:
        ValueError: naming the expression that is not understood.

    Source: Demarchi et al. (2023).
    """
    path = Path(path)
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return parse_vnnlib(text)


def parse_vnnlib(text: str) -> list[Case]:
    """As :func:`read_vnnlib`, from the text itself."""
    names: list[str] = []
    cases: list[list[Linear]] = [[]]  # a disjunction of conjunctions of atoms "linear ≤ 0"
    for expression in _expressions(text):
        match expression:
            case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                if not re.fullmatch(r"[XY]_\d+", name):
                    raise ValueError(f"path: want variables X_i and Y_j, got {name}")
                names.append(name)
            case ["assert", claim]:
                choices = _normal_form(claim, set(names))
                cases = [known + choice for known in cases for choice in choices]
            case _:
                raise ValueError(f"path: want declare-const or assert, got {_show(expression)}")
    inputs, outputs = (_numbered(names, letter) for letter in "XY")
    made = (_case(atoms, inputs, outputs) for atoms in cases)
    return [case for case in made if case is not None]


def _expressions(text: str) -> Iterator[Any]:
    """Nested lists of words."""
    stack: list[list[Any]] = [[]]
    for word in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if word == "(":
            stack.append([])
        elif word == ")":
            if len(stack) == 1:
                raise ValueError("path: want balanced parentheses, got one too many )")
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(word)
    if len(stack) > 1:
        raise ValueError("path: want balanced parentheses, got one too many (")
    yield from stack[0]


def _normal_form(claim: Any, names: set[str]) -> list[list[Linear]]:
    """Disjunctive normal form: a list of conjunctions."""
    match claim:
        case ["and", *parts]:
            cases: list[list[Linear]] = [[]]
            for part in parts:
                cases = [known + choice for known in cases for choice in _normal_form(part, names)]
            return cases
        case ["or", *parts]:
            return [choice for part in parts for choice in _normal_form(part, names)]
        case ["<=" | "<", left, right]:
            return [[_sum(_linear(left, names), _linear(right, names), -1)]]
        case [">=" | ">", left, right]:
            return [[_sum(_linear(right, names), _linear(left, names), -1)]]
        case ["=", left, right]:
            one, other = _linear(left, names), _linear(right, names)
            return [[_sum(one, other, -1), _sum(other, one, -1)]]
    raise ValueError(f"path: want and, or or a comparison, got {_show(claim)}")


def _linear(term: Any, names: set[str]) -> Linear:
    match term:
        case str(word) if word in names:
            return {word: 1.0}
        case str(word):
            try:
                return {"": float(word)}
            except ValueError:
                raise ValueError(f"path: want a number or a declared variable, got {word}") from None
        case ["-", only]:
            return _sum({}, _linear(only, names), -1)
        case ["+" | "-" as sign, first, *rest]:
            total = _linear(first, names)
            for part in rest:
                total = _sum(total, _linear(part, names), 1 if sign == "+" else -1)
            return total
        case ["*", one, other]:
            left, right = _linear(one, names), _linear(other, names)
            if set(left) - {""}:
                left, right = right, left
            if not set(left) - {""}:
                return {name: left.get("", 0.0) * value for name, value in right.items()}
    raise ValueError(f"path: want a linear term, got {_show(term)}")


def _sum(left: Linear, right: Linear, factor: float) -> Linear:
    return {name: left.get(name, 0.0) + factor * right.get(name, 0.0) for name in left | right}


def _case(atoms: list[Linear], inputs: int, outputs: int) -> Case | None:
    """One conjunction; None if its box is empty."""
    low = torch.full((inputs,), -torch.inf, dtype=torch.float64)
    high = -low
    rows: list[Linear] = []
    for atom in atoms:
        used = {name: value for name, value in atom.items() if name and value}
        letters = {name[0] for name in used}
        if letters == {"X"} and len(used) == 1:
            ((name, slope),) = used.items()
            bound, i = -atom.get("", 0.0) / slope, int(name[2:])
            if slope > 0:
                high[i] = min(float(high[i]), bound)
            else:
                low[i] = max(float(low[i]), bound)
        elif "X" in letters:
            raise ValueError(f"path: want bounds of single inputs, got a constraint on {', '.join(sorted(used))}")
        else:
            rows.append(atom)
    free = (~(low.isfinite() & high.isfinite())).nonzero().flatten().tolist()
    if free:
        raise ValueError(f"path: want both bounds of every input, got none for X_{free[0]}")
    if bool((low > high).any()):
        return None
    C, d = torch.zeros(len(rows), outputs, dtype=torch.float64), torch.zeros(len(rows), dtype=torch.float64)
    for row, atom in enumerate(rows):
        for name, value in atom.items():
            if name:
                C[row, int(name[2:])] = value
            else:
                d[row] = value
    return Case(low, high, C, d)


def _numbered(names: list[str], letter: str) -> int:
    """How many variables of a letter there are; they must be numbered from 0."""
    found = sorted(int(name[2:]) for name in names if name[0] == letter)
    if not found or found != list(range(len(found))):
        raise ValueError(f"path: want {letter}_0, {letter}_1, …, each declared once, got {len(found)} declarations")
    return len(found)


def _show(expression: Any) -> str:
    if isinstance(expression, str):
        return expression
    text = "(" + " ".join(map(_show, expression)) + ")"
    return text if len(text) < 80 else text[:77] + "..."
