"""The board: ranks with ties, aliases that need the key, and a file that is no table of grades."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assignments import leaderboard
from assignments.grading.grade import grade_class
from assignments.grading.task import Assignment, Test, load, names, require


def grades(folder: Path, rows: list[tuple[str, int]]) -> Path:
    folder.mkdir(exist_ok=True)
    with open(folder / "grades.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("student", "points", "of", "t"), *((who, n, 9, n) for who, n in rows)])
    return folder


def test_equal_points_share_a_rank() -> None:
    places = leaderboard.ranked([("c", 5, 9), ("a", 7, 9), ("b", 5, 9), ("d", 9, 9), ("e", 0, 9)])
    assert [(p.rank, p.who) for p in places] == [(1, "d"), (2, "a"), (3, "b"), (3, "c"), (5, "e")]
    assert leaderboard.ranked([]) == []


def test_the_board_shows_aliases_and_names_only_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = grades(tmp_path / "grades", [("Ada Lovelace", 3), ("Emmy", 9), ("instructor", 9)])
    key = tmp_path / "autograder" / "02_pgd" / leaderboard.KEY_FILE
    key.parent.mkdir(parents=True)
    key.write_text("secret", encoding="utf-8")
    monkeypatch.setattr(leaderboard, "OUT", tmp_path)
    assert leaderboard.main(["02_pgd", "--grades", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Ada" not in shown and "Emmy" not in shown and (folder / "leaderboard.txt").read_text() == shown
    with open(folder / "aliases.csv", newline="", encoding="utf-8") as file:
        told = {row["student"]: row["alias"] for row in csv.DictReader(file)}
    assert shown.split()[3:5] == ["1", told["Emmy"]] and told["Ada Lovelace"] in shown
    assert leaderboard.alias("secret", "02_pgd", "Emmy") == told["Emmy"]
    assert len({leaderboard.alias(k, a, "Emmy") for k in ("secret", "other") for a in ("02_pgd", "03")}) == 4
    assert leaderboard.main(["02_pgd", "--grades", str(folder), "--names"]) == 0
    assert "Ada Lovelace  3 of 9" in (named := capsys.readouterr().out) and "instructor" not in named


class Data:
    """An assignment of which data are handed in: three numbers, a point for each that is positive."""

    BLOCKED = ()
    DATA = {"a": (3,)}  # noqa: RUF012

    @staticmethod
    def draw(seed: int, worked: bool) -> dict[str, Any]:
        return {}

    @staticmethod
    def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
        return [Test(f"{i}", 1, "c", "a", lambda out, i=i: require(out["a"][i] > 0, "none")) for i in range(3)]


@pytest.mark.parametrize("name", [name for name in names() if load(name).data is not None])
def test_data_that_are_handed_in_are_ranked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the files to the board, with one file that cannot be read."""
    (tmp_path / "tasks.py").write_text("")
    (tmp_path / "in").mkdir()
    for who, values in {"ada": [1, 1, 1], "bob": [1, -1, 1], "eve": [1, 1, -1]}.items():
        np.savez(tmp_path / "in" / f"{who}.npz", a=np.array(values))
    (tmp_path / "in" / "zoe.npz").write_bytes(b"junk")
    assignment = Assignment(name, tmp_path, Data, tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(Assignment, "variant", lambda *_: {})
    list(grade_class(assignment, "k", tmp_path / "in", tmp_path / "out", None))  # type: ignore[arg-type]
    assert leaderboard.main([name, "--grades", str(tmp_path / "out"), "--names"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [
        ["1", "ada", "3", "of", "3"],
        ["2", "bob", "2", "of", "3"],
        ["2", "eve", "2", "of", "3"],
        ["4", "zoe", "0", "of", "3"],
    ]


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leaderboard, "OUT", tmp_path)
    folder = grades(tmp_path / "grades", [("Emmy", 9)])
    assert leaderboard.main(["02_pgd", "--grades", str(folder)]) == 2, "there is no key"
    assert leaderboard.KEY_FILE in capsys.readouterr().err and not (folder / "leaderboard.txt").exists()
    assert leaderboard.main(["02_pgd", "--grades", str(tmp_path)]) == 2
    assert "which `make grade` writes" in capsys.readouterr().err
    (tmp_path / "grades.csv").write_text("name,mark\nEmmy,9\n", encoding="utf-8")
    with pytest.raises(ValueError, match="want the columns student, points and of"):
        leaderboard.read_grades(tmp_path / "grades.csv")
