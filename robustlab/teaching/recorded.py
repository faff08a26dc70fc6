"""What a chapter shows of a recorded experiment: the table that one command wrote, and a slice that agrees with it.

An experiment that does not fit into a chapter's time runs once, by ``python -m experiments.NAME`` in a checkout of the
book, and leaves a small table here. A chapter reads the table, and computes one of its rows again:

    table = recorded("repair")
    table.agree({"net": "mnist_badnets", "seed": 0}, {"clean": Rate(490, 500)})

Agreement is within an interval: a share of n trials agrees with a recorded one if it lies in that one's interval of
95 % (Wilson), another number if it differs by at most the tolerance that the experiment states for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlab.intervals import Rate
from robustlab.teaching.reports import check, strict

FOLDER = Path(__file__).parent / "tables"

Case = Mapping[str, Any]
Value = Rate | float | int | str | list[float]


@dataclass(frozen=True)
class Table:
    """The result of a recorded experiment.

    Attributes:
        name: of the experiment; the file is ``NAME.json``.
        question: what it asks, in one sentence.
        n: how many of each thing it varies over, and how many trials stand behind a share, by name.
        seeds: of all that is drawn or trained.
        data, nets: SHA-256 of the data sets and networks that went in, by name.
        tolerance: by which a number may differ when it is computed again; shares have their interval.
        version, commit, code: of the library, and SHA-256 of its sources and of the experiment's.
        torch, threads: that it ran with.
        seconds: of one processor that it took.
        rows: a case, which says what was measured, and its result, for each.
    """

    name: str
    question: str
    n: dict[str, int]
    seeds: list[int]
    data: dict[str, str]
    nets: dict[str, str]
    tolerance: dict[str, float]
    version: str
    commit: str
    code: str
    torch: str
    threads: int
    seconds: float
    rows: list[tuple[Case, dict[str, Value]]]

    @property
    def caption(self) -> str:
        """What a figure or a table made from it has to say."""
        took = f"{self.seconds / 60:.0f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        return f"recorded at version {self.version} by one command, `python -m experiments.{self.name}`, {took}"

    def where(self, **fixed: Any) -> list[dict[str, Any]]:
        """The rows with these values of the case, each as one dict of case and result; raises KeyError if none."""
        found = [{**case, **result} for case, result in self.rows if fixed.items() <= dict(case).items()]
        if not found:
            raise KeyError(f"{self.name}: no row has {fixed}")
        return found

    def result(self, case: Case) -> dict[str, Value]:
        """The result of one case, all of whose values are given; raises KeyError if there is none."""
        for known, result in self.rows:
            if dict(known) == dict(case):
                return result
        raise KeyError(f"{self.name}: no row is the case {dict(case)}")

    def agree(self, case: Case, now: Mapping[str, Value]) -> None:
        """Compare a row, or part of it, that was computed again: silent where it agrees, a report where it does not.

        A reader who has changed a setting to a value that was not recorded is told that there is no such row.

        Args:
            case: all values of the row's case.
            now: results by their recorded names; at least one.

        Raises:
            AssertionError: a result is outside its interval, and ``ROBUSTLAB_STRICT=1``; as for every expectation of a
                chapter, see :mod:`robustlab.teaching.reports`.
            KeyError: for a name that is not recorded; in the book's own runs (``ROBUSTLAB_STRICT=1``) also for a case.
        """
        try:
            before = self.result(case)
        except KeyError as missing:
            if strict():
                raise
            print(f"nothing to compare with: {missing.args[0]}")
            return
        if not now:
            raise ValueError("now: want at least one result, got none")
        wrong = list(differences({name: before[name] for name in now}, now, self.tolerance))
        check(not wrong, f"what {self.name} has recorded of {dict(case)} ({'; '.join(wrong)})")


def recorded(name: str) -> Table:
    """The table of a recorded experiment.

    Raises:
        ValueError: if there is none of that name.
    """
    path = file_of(name)
    if not path.is_file():
        raise ValueError(f"name: want one of {', '.join(names())}, got {name!r}")
    return from_json(json.loads(path.read_text(encoding="utf-8")))


def file_of(name: str) -> Path:
    """Where the table of an experiment is, or will be."""
    return FOLDER / f"{name}.json"


def names() -> tuple[str, ...]:
    """The experiments of which there is a table."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def differences(before: Mapping[str, Value], now: Mapping[str, Value], tolerance: Mapping[str, float]) -> Iterator[str]:
    """The results that do not agree, one line each.

    Args:
        before, now: the same names; shares as ``Rate``.
        tolerance: by name; a number that has none must be equal.
    """
    for name, old in before.items():
        new = now[name]
        if isinstance(old, Rate):
            if not isinstance(new, Rate) or new.n != old.n or not old.low <= new.value <= old.high:
                yield f"{name}: recorded {old}, got {new}"
            continue
        within = tolerance.get(name, 0.0)
        if not _near(old, new, within):
            yield f"{name}: recorded {old} ± {within:g}, got {new}"


def _near(a: Value, b: Value, within: float) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_near(one, other, within) for one, other in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= within + 1e-12
    return a == b


def to_json(table: Table) -> dict[str, Any]:
    """The table as it is stored; a share is its hits and its trials."""
    rows = [
        {"case": dict(case), "result": {name: plain(value) for name, value in result.items()}}
        for case, result in table.rows
    ]
    return {**vars(table), "rows": rows}


def from_json(stored: Mapping[str, Any]) -> Table:
    """The table that :func:`to_json` stored."""
    rows = [
        (
            row["case"],
            {name: Rate(**value) if isinstance(value, dict) else value for name, value in row["result"].items()},
        )
        for row in stored["rows"]
    ]
    return Table(**{**stored, "rows": rows})


def plain(value: Value) -> Any:
    """A result as JSON holds it."""
    return {"hits": value.hits, "n": value.n} if isinstance(value, Rate) else value
