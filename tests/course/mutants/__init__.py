"""Wrong answers to the assignments, with the tests that they must lose and no other; and right ones of another make.

A mutant is the instructor's solution with some text replaced by other text. Each assignment has a module here, named
like its folder without the number, with

    MUTANTS    case → a wrong answer
    HONEST     case → a right answer of another make, which loses nothing
    ALWAYS     the names of two mutants that every run takes
    REPLAYED   the tests that the public solution loses under a student's name, at least
    COPIED     where data are handed in: the tests that the instructor's file loses under another key, at least
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

Replaced = tuple[str, str]


@dataclass(frozen=True)
class Mutant:
    """What is replaced, and the names of the tests whose points are lost."""

    replaced: tuple[Replaced, ...]
    lost: frozenset[str]


def mutant(*replaced: Replaced, lost: str = "") -> Mutant:
    """A mutant from pairs of old and new text, and the lost tests in one string."""
    return Mutant(replaced, frozenset(lost.split()))


def file_of(name: str) -> str:
    """The module with the mutants of an assignment: ``pgd`` for ``02_pgd``."""
    return name.partition("_")[2]


def of(name: str) -> ModuleType:
    """The mutants of an assignment."""
    return import_module(f"{__name__}.{file_of(name)}")
