"""Closed sets of strings are Literals, of exactly what a method takes; an editor finds all types from anywhere."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from robustlab.attacker.losses import ATTACKER_LOSSES, LossName
from robustlab.attacker.session import LEVEL, Access
from robustlab.evaluation.protocol.autoattack import VERSIONS, Version
from robustlab.geometry.norms import NORMS, NormName, ProperNorm
from robustlab.teaching.catalogue import Row, rows
from robustlab.verification.propagation.certify import METHODS, BoundName
from tests.every import every

OPEN = {"attacks", "layer", "models", "state"}  # names that a caller or a model gives

each_method = every("row", rows(done=True), label=lambda row: row.key)


def function_of(row: Row) -> Callable[..., Any]:
    """What the row's ``callable`` names."""
    module, _, name = str(row.callable).partition(":")
    return getattr(importlib.import_module(module), name)


def strings_of(hint: object) -> set[str]:
    """The strings that a type allows, inside of unions too."""
    return {text for part in get_args(hint) for text in ({part} if isinstance(part, str) else strings_of(part))}


def allows(hint: object, what: object) -> bool:
    """Whether a type is ``what``, or a union that has it."""
    return hint is what or any(part is what for part in get_args(hint))


@each_method
def test_the_literal_of_a_norm_has_exactly_those_of_the_row(row: Row) -> None:
    if row.norms:
        assert strings_of(get_type_hints(function_of(row))["norm"]) == set(row.norms)


@each_method
def test_no_argument_is_just_any_or_any_string(row: Row) -> None:
    hints = get_type_hints(function_of(row))
    given = [name for name in inspect.signature(function_of(row)).parameters if name in hints]
    assert [name for name in given if hints[name] is Any] == []
    loose = [name for name in given if allows(hints[name], str) and not allows(hints[name], Path)]
    assert sorted(set(loose) - OPEN - {"device", "victim", "model"}) == []


@each_method
def test_a_default_is_one_of_its_literal(row: Row) -> None:
    hints = get_type_hints(function_of(row))
    for name, parameter in inspect.signature(function_of(row)).parameters.items():
        if isinstance(parameter.default, str) and name in hints:
            assert parameter.default in strings_of(hints[name]), name


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (NormName, NORMS),
        (ProperNorm, set(NORMS) - {"l0"}),
        (LossName, ATTACKER_LOSSES),
        (Access, LEVEL),
        (BoundName, METHODS),
        (Version, VERSIONS),
    ],
    ids=["norms", "norms-with-a-dual", "losses", "access", "bounds", "versions"],
)
def test_a_literal_names_all_entries_of_its_table(names: object, known: Collection[str]) -> None:
    assert strings_of(names) == set(known)


@pytest.mark.full
def test_an_editor_outside_the_checkout_knows_the_types(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("from robustlab.attacks import pgd\nreveal_type(pgd)\n")
    told = subprocess.run(
        [sys.executable, "-m", "mypy", "two.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Success" in told.stdout, told.stdout + told.stderr
    assert "Literal['linf']" in told.stdout
    assert "AttackResult" in told.stdout
