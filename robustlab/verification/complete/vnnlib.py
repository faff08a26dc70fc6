"""Reading VNN-LIB, the language in which the verification competition states properties.

Demarchi, Guidotti, Pulina and Tacchella, "Supporting standardization of neural networks verification with VNN-LIB and
CoCoNet" (2023). A file declares inputs ``X_i`` and outputs ``Y_j`` and asserts, in the prefix notation of SMT-LIB, what
an *unsafe* input-output pair meets. Its disjunctive normal form is never written out: the conjunctions, each one
:class:`~robustlab.verification.complete.query.Case`, are made one after the other, since k choices of two make 2^k.

Accepted: ``and``, ``or``, ``<=``, ``>=``, ``<``, ``>``, ``=`` between terms that are linear (numbers, variables,
``+ - *``). Constraints on inputs must bound single inputs, in every conjunction from both sides, and none may mix
inputs and outputs.

A case is closed: it has ``<`` as ``<=``, so that what is proved of it holds for the property. Where nothing is left of
it but the edge that ``<`` takes away, as of ``X_0 < 0`` and ``X_0 >= 0``, there is no case. That, and whether a pair
*is* unsafe (:meth:`Property.holds`), is decided in rational numbers, as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch

from robustlab.graph.files import named, read_file
from robustlab.graph.time_limit import tick
from robustlab.verification.complete.query import Case
from robustlab.verification.complete.vnnlib_second import as_first_version
from robustlab.verification.complete.vnnlib_terms import (
    COMPARED,
    Atom,
    Term,
    atoms,
    contradict,
    is_true,
    numbered,
    shown,
    without_a_number,
)

__all__ = ["read_vnnlib"]

DEEPEST = 100  # levels of parentheses


@dataclass(frozen=True, eq=False)
class Property:
    """What a file asserts: an iterable of cases, whose union is the unsafe set.

    Attributes:
        inputs, outputs: how many variables of each kind are declared.
        common: what every case has.
        choices: for each assertion with an ``or``, its claim.
        claims: all assertions, as they were read.
    """

    inputs: int
    outputs: int
    common: tuple[Atom, ...]
    choices: tuple[Term, ...]
    claims: tuple[Term, ...]

    def __iter__(self) -> Iterator[Case]:
        """The cases one after the other; conjunctions whose box is empty are left out."""
        start = _Part.of(self.inputs, self.common)
        if start is None:
            return
        for part in _chosen(start, self.choices):
            yield part.case(self.outputs)

    def holds(self, values: Mapping[str, float | Fraction]) -> bool:
        """Whether numbers for all X_i and Y_j, as they are written, meet every assertion in exact arithmetic."""
        exact = {name: Fraction(str(value)) for name, value in values.items()}
        return all(is_true(claim, exact) for claim in self.claims)


def read_vnnlib(path: str | Path) -> Property:
    """The property of a file.

    Args:
        path: of a ``.vnnlib`` file, which may be compressed with gzip.

    Returns:
        A :class:`Property`: iterate over it for the cases of the unsafe set.

    Raises:
        ValueError: with the file's name and the expression that is not understood.

    Source: Demarchi et al. (2023).
    """
    path = Path(path)
    with named(path.name):
        try:
            text = read_file(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"want text in UTF-8, got {error.reason} at byte {error.start}") from None
        return parse_vnnlib(text)


def parse_vnnlib(text: str) -> Property:
    """As :func:`read_vnnlib`, from the text itself: version 1.0, or 2.0 where it says what 1.0 says."""
    text = as_first_version(text)
    names: dict[str, None] = {}
    claims: list[Term] = []
    common: list[Atom] = []
    choices: list[Term] = []
    for expression in _expressions(text):
        match expression:
            case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                if not re.fullmatch(r"[XY]_(0|[1-9][0-9]{0,8})", name):
                    raise ValueError(f"property: want variables X_i and Y_j, got {name}")
                if name in names:
                    raise ValueError(f"property: want each variable declared once, got {name} again")
                names[name] = None
            case ["assert", claim]:
                claims.append(claim)
                for part in _parts(claim):
                    if part[0] == "or":
                        choices.append(_checked(part, names))
                    else:
                        common += atoms(part, names)
            case _:
                raise ValueError(f"property: want declare-const or assert, got {shown(expression)}")
    inputs, outputs = numbered(names, "X"), numbered(names, "Y")
    if not inputs:
        raise ValueError("property: want X_0, X_1, …, got no inputs")
    found = Property(inputs, outputs, tuple(common), tuple(choices), tuple(claims))
    next(iter(found), None)  # what is wrong with the first case is wrong with the file
    return found


def _expressions(text: str) -> Iterator[Term]:
    """Nested lists of words."""
    stack: list[list[Term]] = [[]]
    for count, match in enumerate(re.finditer(r";[^\n]*|[()]|[^\s();]+", text)):
        if count % 4096 == 0:
            tick()
        word = match.group()
        if word == "(":
            stack.append([])
            if len(stack) > DEEPEST:
                raise ValueError(f"property: want at most {DEEPEST} levels of parentheses, got more")
        elif word == ")":
            if len(stack) == 1:
                raise ValueError("property: want balanced parentheses, got one too many )")
            done = stack.pop()
            if len(stack) > 1:
                stack[-1].append(done)
            else:
                yield done
        elif word[0] != ";":
            if len(stack) == 1:
                raise ValueError(f"property: want declare-const or assert, got {word[:70]}")
            stack[-1].append(word)
    if len(stack) > 1:
        raise ValueError("property: want balanced parentheses, got one too many (")


def _parts(claim: Term) -> Iterator[Term]:
    """The members of a conjunction, without the conjunctions in it."""
    match claim:
        case ["and", *members]:
            for member in members:
                yield from _parts(member)
        case ["or", only]:
            yield from _parts(only)
        case [str(kind), *_] if kind == "or" or (kind in COMPARED and len(claim) == 3):
            yield claim
        case _:
            raise ValueError(f"property: want and, or or a comparison, got {shown(claim)}")


def _checked(claim: Term, names: Mapping[str, None]) -> Term:
    """A disjunction with its comparisons as atoms: every one of them is read once, and errors come first."""
    return [
        [_checked(part, names) if part[0] == "or" else atoms(part, names) for part in _parts(choice)]
        for choice in claim[1:]
    ]


def _chosen(part: _Part, choices: Sequence[Term]) -> Iterator[_Part]:
    """Every way to take one member of each choice, depth first; what contradicts itself is cut off at once."""
    stack = [(part, list(choices))]
    while stack:
        tick()
        at, left = stack.pop()
        if not left:
            yield at
            continue
        choice, *rest = left
        ways = []
        for members in choice:
            atoms = [atom for member in members if _plain(member) for atom in member]
            further = at.met(atoms)
            if further is not None:
                ways.append((further, [member for member in members if not _plain(member)] + rest))
        stack += reversed(ways)


def _plain(member: Term) -> bool:
    """Whether this is a list of atoms, not a choice."""
    return bool(member) and isinstance(member[0], Atom)


@dataclass(frozen=True, eq=False)
class _Part:
    """A conjunction: a box, the bounds that made it, by input, and rows for the outputs."""

    low: list[float]
    high: list[float]
    bounds: Mapping[int, tuple[Atom, ...]]
    rows: tuple[Atom, ...]

    @classmethod
    def of(cls, inputs: int, atoms: Sequence[Atom]) -> _Part | None:
        return cls([-float("inf")] * inputs, [float("inf")] * inputs, {}, ()).met(atoms)

    def met(self, atoms: Sequence[Atom]) -> _Part | None:
        """With more atoms; None if no input is left then, or one is false, or two contradict each other."""
        low, high, bounds, rows = self.low, self.high, dict(self.bounds), list(self.rows)
        for atom in atoms:
            used, constant = atom.variables, atom.linear.get("", 0.0)
            if not used and abs(constant) == 1.0:  # decided, as true or false
                if constant > 0:
                    return None
                continue
            if not used or used[0][0] == "Y":
                if any(contradict(atom, row) for row in rows):
                    return None
                rows.append(atom)
                continue
            if low is self.low:
                low, high = low.copy(), high.copy()
            ((name, slope),) = ((name, atom.linear[name]) for name in used)
            bound, i = -constant / slope, int(name[2:])
            if slope > 0:
                high[i] = min(high[i], bound)
            else:
                low[i] = max(low[i], bound)
            bounds[i] = (*bounds.get(i, ()), atom)
            if low[i] >= high[i] and (low[i] > high[i] or any(each.strict for each in bounds[i])):
                if without_a_number(bounds[i]):
                    return None
                low[i], high[i] = min(low[i], high[i]), max(low[i], high[i])  # they differ by rounding
        return replace(self, low=low, high=high, bounds=bounds, rows=tuple(rows))

    def case(self, outputs: int) -> Case:
        low, high = (torch.tensor(end, dtype=torch.float64) for end in (self.low, self.high))
        free = (~(low.isfinite() & high.isfinite())).nonzero().flatten().tolist()
        if free:
            raise ValueError(f"property: want both bounds of every input, got none for X_{free[0]}")
        C = torch.zeros(len(self.rows), outputs, dtype=torch.float64)
        d = torch.zeros(len(self.rows), dtype=torch.float64)
        for row, atom in enumerate(self.rows):
            for name, value in atom.linear.items():
                if name and value:
                    C[row, int(name[2:])] = value
                elif not name:
                    d[row] = value
        return Case(low, high, C, d)
