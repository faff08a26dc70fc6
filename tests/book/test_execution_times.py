"""The page of execution times counts the checkout, and says of everything else when and where it was measured."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path

import yaml

from book import generate_times
from book.generate_times import (
    COUNTED,
    checkout_bytes,
    projected_minutes,
    projection_blocks,
    repository_blocks,
    times_page,
)

MEASURED = {
    "machine": "an abacus",
    "date": date(1642, 3, 2),
    "rows": [{"what": "`make test`", "measured": "3 days"}, {"what": "Import", "measured": "2 s", "limit": "9 s"}],
}


def test_what_git_tracks_is_counted(tmp_path: Path) -> None:
    assert checkout_bytes(root=tmp_path) is None, "no checkout"
    (tmp_path / "a b").write_bytes(b"x" * 300)
    (tmp_path / "untracked").write_bytes(b"x" * 5000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "c").write_bytes(b"x" * 20)
    for command in (["init", "--quiet"], ["add", "a b", "data"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert checkout_bytes(root=tmp_path) == 320
    assert checkout_bytes("data/", tmp_path) == 20


def test_what_is_shipped_keeps_to_its_limits() -> None:
    for what, under, most in COUNTED:
        size = checkout_bytes(under)
        assert size is None or most is None or 1e6 < size <= most * 1e6, what


def test_the_rest_is_stated_with_its_day_and_machine() -> None:
    heading, origin, table = repository_blocks(MEASURED, [38_740_000, 18_240_000, 8_000_000])
    assert heading.startswith("## ")
    assert " ".join(origin.split()).endswith("are not: they were measured on March 2, 1642, on an abacus.")
    cells = [[line.strip(" -") for line in row.splitlines()[:3]] for row in table.split("\n* - ")[2:]]
    assert [row[1:] for row in cells] == [
        ["38.7 MB", "–"], ["18.2 MB", "20 MB"], ["8.0 MB", "25 MB"], ["3 days", "–"], ["2 s", "9 s"],
    ]  # fmt: skip
    assert "not counted" in repository_blocks(MEASURED, [None] * 3)[2]


def test_what_the_tests_will_take_is_the_sum_of_their_parts() -> None:
    parts = [
        {"part": "chapters", "today": 300, "number": 32, "of": "chapters", "each": 30},
        {"part": "suites", "today": 60, "number": 100, "of": "methods", "each": 2.4},
        {"part": "types", "today": 0, "number": 1, "each": 60},
    ]
    _, text, table = projection_blocks(parts)
    assert projected_minutes(parts) == (960 + 240 + 60) / 120
    assert "are 3 minutes today" in text and "be 10 minutes" in " ".join(text.split())
    assert "100 methods, 2.4 s each" in table and "one sum" in table


def test_the_projection_keeps_to_its_limit() -> None:
    parts = yaml.safe_load(generate_times.MEASURED.read_text(encoding="utf-8"))["parts"]
    assert 0 < projected_minutes(parts) <= generate_times.LIMIT_MINUTES


def test_the_page_holds_this_table() -> None:
    text = times_page([])  # the page of book/repository_times.yml
    for word in ("MB", "`import robustlab`", "`make book`", "`make test`", "`make test-fast`"):
        assert word in text.partition("## The repository as a whole")[2]
