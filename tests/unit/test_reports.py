"""Numbers and expectations as the chapters show them."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import torch

from robustlab.teaching.reports import MARK, MOVING, about, check, number_text, show_table

ROOT = Path(__file__).resolve().parents[2]


def test_a_number_is_marked_and_held_to_its_interval() -> None:
    assert about(torch.tensor(0.9731), 0.9, 1) == "≈0.973"
    assert about(12, 10, 15, ".0f", interval=(11, 13.4)) == "≈12 [11, 13]"
    for value in (0.89, 1.01, float("nan")):
        with pytest.raises(AssertionError, match=r"between 0\.9 and 1, not"):
            about(value, 0.9, 1)


def test_an_expectation_is_silent_an_error_or_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(torch.tensor(True), "one is below two")
    with pytest.raises(AssertionError, match="two is below one"):
        check(2 < 1, "two is below one")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("ROBUSTLAB_STRICT", "0")
    check(2 < 1, "two is below one")
    assert about(3, 0, 1) == "≈3"
    assert capsys.readouterr().out.splitlines() == [
        "expected: two is below one; here it does not hold",
        "expected: between 0 and 1, not 3; here it does not hold",
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("≈0.973 of them", "≈1 of them"),
        ("here ≈0.97 [0.95, 0.99] (300 digits)", "here ≈1 [0.999, 1.0] (300 digits)"),
        ("<td>≈−3e-05</td>", "<td>≈12 %</td>"),
        ("≈61 of 100 [52, 70]; b: ≈inf", "≈100 of 100 [97, 100]; b: ≈inf"),
        ("a ≈0.1     b", "a ≈0.12345 b"),
    ],
)
def test_the_comparison_leaves_out_the_number_behind_the_mark(one: str, other: str) -> None:
    assert MOVING.sub(MARK, one) == MOVING.sub(MARK, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("≈0.97 digits", "≈0.97 images"), ("0.97", "0.98"), ("≈1; holds", "≈1; fails"), ("a: ≈1", "b: ≈1")],
)
def test_the_comparison_keeps_all_else(one: str, other: str) -> None:
    assert MOVING.sub(MARK, one) != MOVING.sub(MARK, other)


def test_nbval_is_told_the_same() -> None:
    settings = configparser.RawConfigParser()
    settings.read(ROOT / "tests/nbval.cfg", encoding="utf-8")
    assert dict(settings["numbers that move between machines"]) == {"regex": MOVING.pattern, "replace": MARK}


def test_numbers_as_text() -> None:
    assert number_text({"b": 0.12345, "a": (1, 0.5, 2), "c": "C2"}, MARK) == "b: ≈0.123; a: ≈1 [0.5, 2]; c: C2"
    assert [number_text(v) for v in (None, True, -3, float("inf"), 12345.0)] == ["–", "yes", "−3", "∞", "12,345"]
    assert number_text("61 of 100", MARK) == "≈61 of 100"


def test_a_table_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("attack", "success"), [("PGD", about(0.5, 0, 1)), ("longer name", 3)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["attack       success", "PGD          ≈0.5", "longer name  3"]
    assert not any(re.search(r"\s$", line) for line in lines)
