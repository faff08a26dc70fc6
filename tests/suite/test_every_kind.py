"""Every kind of the catalogue has a contract suite, and every finished method falls under its kind's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import tests.suite.cases as attacks
import tests.suite.training.cases as training
import tests.suite.verification.cases as verification
from robustlab.teaching.catalogue import KINDS, rows
from tests.suite import test_graphs, test_pretend, test_together, test_tokens
from tests.suite.kinds import (
    test_aggregators,
    test_applications,
    test_certified,
    test_evaluation,
    test_physical,
    test_pretend_kinds,
    test_repair,
    test_solvers,
    test_trainers,
    test_universal,
)
from tests.suite.training.test_poisons import MAKERS
from tests.suite.training.test_pretend_training import METHODS, TRAINERS
from tests.suite.verification.test_estimates import ESTIMATES
from tests.suite.verification.test_semantic import VERIFIERS as SEMANTIC

WITHOUT = {"study"}  # its claim is its test
SUITES: dict[str, Iterable[Any]] = {
    "attack": [*attacks.CASES, *test_together.CASES, *test_graphs.CASES, *test_tokens.CASES],
    "universal": test_universal.CASES,
    "physical": test_physical.CASES,
    "poisoning": training.POISONS,
    "backdoor": training.POISONS,
    "solver": test_solvers.CASES,
    "detector": training.DETECTORS,
    "repair": test_repair.CASES,
    "trainer": [*training.STUDIES, *test_trainers.CASES],
    "aggregator": test_aggregators.CASES,
    "certified_defense": test_certified.CASES,
    "verifier": [*verification.CASES, *SEMANTIC],
    "estimate": ESTIMATES,
    "evaluation": test_evaluation.CASES,
    "application": test_applications.CASES,
}
# Attacks on words have no box, no norm and no suite in common: a test of their own holds each.
DISCRETE = {row.key for row in rows("attack") if not row.dims}


def test_every_kind_has_a_suite() -> None:
    assert set(SUITES) == set(KINDS) - WITHOUT
    assert all(list(cases) for cases in SUITES.values()), "a suite that runs nothing"


@pytest.mark.parametrize("kind", SUITES)
def test_every_finished_method_is_under_it(kind: str) -> None:
    under = {getattr(case, "row", case).key for case in SUITES[kind]}
    done = {row.key for row in rows(kind, done=True)} - DISCRETE
    assert done <= under, f"in no suite: {sorted(done - under)}"


def test_every_finished_method_has_a_twin_on_the_pretend_device() -> None:
    cases: list[Any] = [
        *test_pretend.FIRST, *test_together.CASES, *test_graphs.CASES, *test_tokens.CASES,
        *METHODS, *TRAINERS, *(case for _, case in test_pretend_kinds.CASES),
        *verification.CASES, *SEMANTIC, *ESTIMATES,
    ]  # fmt: skip
    there = {getattr(case, "row", case).key for case in cases} | {*test_pretend.EVALUATIONS}
    done = {row.key for kind in SUITES for row in rows(kind, done=True)} - DISCRETE
    assert done <= there, f"have no twin there: {sorted(done - there)}"


def test_makers_of_poisons_are_found_by_what_they_return() -> None:
    assert {"badnets", "label_flipping", "gradient_matching"} <= {case.row.key for case in MAKERS}


def test_no_suite_asks_for_a_chapter() -> None:
    """But for a specimen's row, which must have one."""
    for path in Path(__file__).parent.rglob("*.py"):
        text = re.sub(r'chapter="\d\d"', "", path.read_text(encoding="utf-8"))
        if path.name != Path(__file__).name:
            assert not re.search(r"\.chapter|\.section", text), path.name
