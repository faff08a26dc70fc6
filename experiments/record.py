"""Recording an experiment: its cases run one by one, resumably, and their results become a small table.

A file ``experiments/NAME.py`` says what is measured in an :class:`Experiment` called ``EXPERIMENT`` and ends with
``EXPERIMENT.main()``. Then

    python -m experiments.NAME            runs what is not done yet, with a bar, and writes the table
    python -m experiments.NAME --again    forgets what is done
    python -m experiments.NAME --tenth    repeats every tenth case and compares it with the table

Finished cases are kept in ``_build/experiments/NAME.jsonl``, so that a run that was killed goes on where it was. They
are forgotten where data, networks or code have changed since: a table is of one state.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import robustlab
from experiments import nets as networks
from robustlab.data import SOURCES, TEXT_SOURCES, WORDS, Source
from robustlab.data.citations import CITATIONS
from robustlab.data.photographs import PHOTOS
from robustlab.data.spoken import SPOKEN_DIGITS
from robustlab.files import require_writable, write_together
from robustlab.progress import bar
from robustlab.teaching.recorded import (
    Case,
    Table,
    Value,
    differences,
    file_of,
    from_json,
    plain,
    recorded,
    to_json,
)

ROOT = Path(__file__).resolve().parent.parent
UNFINISHED = ROOT / "_build" / "experiments"


@dataclass(frozen=True)
class Experiment:
    """What is measured, on what.

    Attributes:
        name: of the file.
        question: in one sentence.
        cases: what is varied: each case is a dict of plain values that names one row, and takes at most a few minutes.
        measure: ``measure(**case)`` gives the row's result: shares as ``Rate``, numbers, lists of numbers, words.
        n: how many of each thing it varies over, and how many trials stand behind a share, by name.
        seeds: of all that is drawn or trained.
        data: names of embedded data sets, of texts, "words", "spoken_digits", "photos128", or those of citation graphs.
        nets: names of networks, as :func:`experiments.nets.load` has them.
        tolerance: by which each result that is no share may differ when it is computed again, by name. Rounding differs
            between machines: state what that may do, found by a run on other draws or on another thread count.
    """

    name: str
    question: str
    cases: Sequence[Case]
    measure: Callable[..., Mapping[str, Value]]
    n: Mapping[str, int]
    seeds: Sequence[int]
    data: Sequence[str]
    nets: Sequence[str] = ()
    tolerance: Mapping[str, float] = field(default_factory=dict)

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The command line of the experiment."""
        parser = argparse.ArgumentParser(prog=f"python -m experiments.{self.name}", description=self.question)
        parser.add_argument("--again", action="store_true", help="forget the cases that are done")
        parser.add_argument("--tenth", action="store_true", help="repeat every tenth case, compare it with the table")
        chosen = parser.parse_args(arguments)
        torch.set_num_threads(1)
        if chosen.tenth:
            wrong = self.repeat(self.cases[::10], progress=True)
            print("\n".join(wrong) or f"{self.name}: a tenth agrees with the table")
            raise SystemExit(bool(wrong))
        table = self.record(again=chosen.again, progress=True)
        print(f"{self.name}: {len(table.rows)} rows, {table.seconds:.0f} s, in {file_of(self.name)}")

    def record(self, *, again: bool = False, progress: bool = False) -> Table:
        """Run what is not done yet, and write the table."""
        path, notes = file_of(self.name), UNFINISHED / f"{self.name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        require_writable(path)
        notes.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "data": hashes_of_data(self.data), "nets": networks.hashes(self.nets), "code": self.code(),
            "version": robustlab.__version__, "commit": commit(), "torch": torch.__version__.split("+")[0],
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        done = {} if again else _finished(notes, state)
        kept = "".join(json.dumps(line) + "\n" for line in (state, *done.values()))  # all but what was cut short
        notes.write_text(kept, encoding="utf-8")
        for case in bar(self.cases, show=progress, label=self.name):
            if _key(case) not in done:
                start = time.process_time()
                result = {name: plain(value) for name, value in self.measure(**case).items()}
                row = {"case": dict(case), "result": result, "seconds": time.process_time() - start}
                with notes.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                done[_key(case)] = row
        rows = [done[_key(case)] for case in self.cases]
        table = from_json({
            "name": self.name, "question": self.question, "n": dict(self.n), "seeds": list(self.seeds), **state,
            "seconds": round(sum(row["seconds"] for row in rows), 1), "tolerance": dict(self.tolerance),
            "rows": [{key: row[key] for key in ("case", "result")} for row in rows],
        })  # fmt: skip
        write_together({path: dumped(table).encode()})
        return table

    def repeat(self, cases: Sequence[Case], *, progress: bool = False) -> list[str]:
        """Measure some cases again; the results that do not agree with the table, one line each."""
        table, wrong = recorded(self.name), []
        for case in bar(cases, show=progress, label=self.name):
            found = differences(table.result(case), self.measure(**case), table.tolerance)
            wrong += [f"{dict(case)}: {line}" for line in found]
        return wrong

    def complaints(self, table: Table) -> list[str]:
        """Why a table is not, or no longer, that of this experiment. That only code has changed is no complaint."""
        wrong = [
            f"{what} {name!r} has changed since the table was recorded"
            for what, now, then in (
                ("data", hashes_of_data(self.data), table.data),
                ("net", networks.hashes(self.nets), table.nets),
            )
            for name in sorted(now.keys() | then.keys())
            if now.get(name) != then.get(name)
        ]
        if [_key(case) for case in self.cases] != [_key(case) for case, _ in table.rows]:
            wrong.append("the table's cases are not those of the experiment")
        if table.name != self.name or table.tolerance != dict(self.tolerance):
            wrong.append("the table has another name or other tolerances than the experiment")
        return wrong

    def code(self) -> str:
        """SHA-256 of the library's sources and of this experiment's."""
        return sha256(*sorted((ROOT / "robustlab").rglob("*.py")), ROOT / "experiments" / f"{self.name}.py")


def hashes_of_data(names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files of embedded data sets."""
    also: dict[str, Source] = {"words": WORDS, "spoken_digits": SPOKEN_DIGITS, "photos128": PHOTOS, **CITATIONS}
    known = {**SOURCES, **TEXT_SOURCES, **also}
    return {name: known[name].sha256 for name in names}


def sha256(*paths: Path) -> str:
    """Of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def commit() -> str:
    """The commit that is checked out, with a mark where sources differ from it; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"


def dumped(table: Table) -> str:
    """The table as text, one row a line, so that a change of it can be read."""
    stored = to_json(table)
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in stored.pop("rows"))
    head = json.dumps(stored, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{head},\n "rows": [\n{rows}\n ]\n}}\n'


def _key(case: Case) -> str:
    return json.dumps(dict(case), sort_keys=True)


def _finished(notes: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that an earlier run has left, by case; none where it had another state. A line cut short is left out."""
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the run was killed while it wrote
            continue
    if not found or found[0] != dict(state):
        return {}
    return {_key(row["case"]): row for row in found[1:]}
