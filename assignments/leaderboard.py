"""Rank the grades of an assignment: ``make leaderboard ASSIGNMENT=NAME``.

It reads ``grades.csv``, which ``make grade`` wrote, and ranks by points; equal points share a rank. Students stand
there by an alias, six letters made of the course's key and their name, so the board can hang on a wall. ``aliases.csv``
beside it tells the lecturer whose is whose; ``--names`` shows names instead. The instructor's own copy, graded to try
the grader, is not ranked.
"""

from __future__ import annotations

import argparse
import base64
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assignments.build import KEY_FILE, OUT, ROOT
from assignments.grading.task import names, seed_of
from robustlab.teaching.handout import INSTRUCTOR


@dataclass(frozen=True)
class Place:
    """One row of the board."""

    rank: int
    who: str
    points: int
    of: int


def alias(key: str, assignment: str, student: str) -> str:
    """Six letters that say nothing without the key, and differ from assignment to assignment."""
    number = seed_of(key, "leaderboard", assignment, student).to_bytes(8, "big")
    return base64.b32encode(number).decode().lower()[3:9]


def ranked(rows: Sequence[tuple[str, int, int]]) -> list[Place]:
    """(who, points, of) → places, best first; who has equal points shares the better rank, and is listed by name."""
    order = sorted(rows, key=lambda row: (-row[1], row[0]))
    return [Place(1 + sum(other[1] > points for other in order), who, points, of) for who, points, of in order]


def board(places: Sequence[Place]) -> str:
    """The table as text."""
    wide = max([len(place.who) for place in places] + [4])
    lines = [f"{'rank':>4}  {'who':<{wide}}  points"]
    return "\n".join([*lines, *(f"{p.rank:>4}  {p.who:<{wide}}  {p.points} of {p.of}" for p in places)])


def read_grades(path: Path) -> list[tuple[str, int, int]]:
    """(student, points, of) per row; raises ValueError where the file is no table of grades."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [(row["student"], int(row["points"]), int(row["of"])) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: want the columns student, points and of, as `make grade` writes them") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Write and print the board of the assignment that the command line names."""
    parser = argparse.ArgumentParser(description="Rank the grades of an assignment.")
    parser.add_argument("name", metavar="NAME", choices=names())
    parser.add_argument("--grades", type=Path, help="the folder of grades.csv (default: _build/grades/NAME)")
    parser.add_argument("--names", action="store_true", help="names in place of aliases")
    arguments = parser.parse_args(argv)
    folder = arguments.grades or ROOT / "_build" / "grades" / arguments.name
    key = OUT / "autograder" / arguments.name / KEY_FILE
    if not (folder / "grades.csv").exists() or not (arguments.names or key.exists()):
        print(f"Wanted: {folder / 'grades.csv'}, which `make grade` writes, and the key in {key}.", file=sys.stderr)
        return 2
    rows = [row for row in read_grades(folder / "grades.csv") if row[0].strip().lower() != INSTRUCTOR]
    if not arguments.names:
        secret = key.read_text(encoding="utf-8")
        aliases = {student: alias(secret, arguments.name, student) for student, _, _ in rows}
        with open(folder / "aliases.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("student", "alias"), *aliases.items()])
        rows = [(aliases[student], points, of) for student, points, of in rows]
    text = board(ranked(rows))
    (folder / "leaderboard.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
