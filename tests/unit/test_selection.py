"""Which tests a run takes: those of changed files, and of the marked ones those that the machine and the run allow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests import changed, conftest


def item(nodeid: str, *marks: str, names: tuple[str, ...] = ()) -> Any:
    found = {mark: SimpleNamespace(args=names) for mark in marks}
    return SimpleNamespace(nodeid=nodeid, get_closest_marker=found.get)


def test_a_long_test_runs_in_the_full_run_and_where_its_file_changed() -> None:
    suite = item("tests/suite/test_counts.py::test_counts[cpu-sigma_zero-l0]", "full")
    assert conftest._left_out(suite, True, set()) == "" == conftest._left_out(item(suite.nodeid), False, set())
    assert conftest._left_out(suite, False, {"sigma", "zero", "pgd"}) == "full"
    for name in ("sigma_zero", "test_counts"):  # the method's file, the test's file
        assert conftest._left_out(suite, False, {name}) == ""
    told = item("tests/unit/test_benchmarks.py::test_smoke_run", "full", names=("verification",))
    assert conftest._left_out(told, False, {"verification"}) == "" != conftest._left_out(told, False, {"attacks"})
    unit = item("tests/unit/test_strattack.py::test_the_optimum", "full")
    assert conftest._left_out(unit, False, {"strattack"}) == "" != conftest._left_out(unit, False, {"attack"})


def test_a_test_on_cuda_runs_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, why in ((False, "gpu"), (True, "")):
        monkeypatch.setattr(conftest, "_CUDA", cuda)
        assert conftest._left_out(item("tests/test_a.py::test_a", "gpu"), True, {"test_a"}) == why


def test_threads_do_not_run_on_the_pretend_device() -> None:
    threads = item("tests/suite/test_edges.py::test_two_threads[cpu-pgd]", "threads")
    assert conftest._left_out(threads, True, set(), pretend=True) == "threads"
    assert conftest._left_out(threads, True, set()) == "" == conftest._left_out(item("a"), True, set(), pretend=True)


def test_the_tests_of_a_changed_file() -> None:
    assert "tests/unit/test_pgd.py" in changed.tests_of(["robustlab/attacks/whitebox/pgd.py"])
    assert "tests/suite" in changed.tests_of(["robustlab/attacks/whitebox/pgd.py"])
    assert changed.tests_of(["tests/unit/test_pgd.py"]) == {"tests/unit/test_pgd.py"}
    assert changed.tests_of(["tests/suite/cases.py"]) == {"tests/suite"}
    assert {"chapters/07_white_box.ipynb", "book"} <= changed.tests_of(["chapters/07_white_box.ipynb"])
    assert "book" in changed.tests_of(["book/notation.md"])
    assert changed.tests_of(["pyproject.toml"]) == {"tests"}
    assert changed.tests_of(["robustlab/verification/propagation/crown.py"]) >= {"tests/suite/verification"}
    assert changed.tests_of(["robustlab/checks.py"]) >= {"tests/suite", "tests/unit/test_checks.py"}
