"""Grade submissions: one for Gradescope, or a whole folder into one table, resumable."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from assignments.grading import submission
from assignments.grading.isolation import Limits
from assignments.grading.judge import LIMITS, Server
from assignments.grading.task import NETWORK, Assignment, Lost, Test, handed_out, plain
from robustlab.teaching.handout import INSTRUCTOR


@dataclass(frozen=True)
class Result:
    """Of one test.

    Attributes:
        name: of the test.
        points: what was given; all or nothing.
        of: what it is worth.
        reason: why points are lost; empty where none are.
    """

    name: str
    points: int
    of: int
    reason: str


@dataclass(frozen=True)
class Grade:
    """Of one submission."""

    student: str
    results: list[Result]
    seconds: float

    @property
    def total(self) -> int:
        """The points of all tests."""
        return sum(result.points for result in self.results)

    @property
    def lost(self) -> set[str]:
        """The names of the tests whose points are lost."""
        return {result.name for result in self.results if result.points < result.of}


def grade_file(assignment: Assignment, key: str, student: str, path: Path, server: Server) -> Grade:
    """Grade what was handed in, alone or in a zip; whatever is wrong with it is a reason, never an exception."""
    try:
        if assignment.data is not None:
            return grade_data(assignment, key, student, submission.read_data(path, assignment.data))
        if assignment.network is not None:
            return grade_data(assignment, key, student, {NETWORK: submission.read_network(path, assignment.network)})
        cells = submission.read(path)
    except submission.Unreadable as error:
        return unread(assignment, key, student, error)
    return grade_cells(assignment, key, student, cells, server)


def unread(assignment: Assignment, key: str, student: str, error: submission.Unreadable) -> Grade:
    """Zero for a file that cannot be read, for the reason that the error gives."""
    reason = plain(str(error))
    return Grade(student, [Result(t.name, 0, t.points, reason) for t in assignment.tests(key, student)], 0.0)


def grade_cells(
    assignment: Assignment, key: str, student: str, cells: Sequence[tuple[int, str]], server: Server
) -> Grade:
    """Grade code cells: each test in a process of its own."""
    started, mine = time.perf_counter(), handed_out(assignment.variant(key, student))
    results = [_result(test, cells, mine, server) for test in assignment.tests(key, student)]
    return Grade(student, results, round(time.perf_counter() - started, 2))


def grade_data(assignment: Assignment, key: str, student: str, data: Mapping[str, Tensor | nn.Module]) -> Grade:
    """Grade arrays or a network, which every test's judge gets by their names: no code of the student's is run."""
    started = time.perf_counter()
    results = [_judged(test, lambda: data) for test in assignment.tests(key, student)]
    return Grade(student, results, round(time.perf_counter() - started, 2))


def _result(test: Test, cells: Sequence[tuple[int, str]], mine: dict[str, Any], server: Server) -> Result:
    limits: Limits = {**LIMITS, "seconds": test.seconds}
    failed = ""

    def answer() -> Any:
        nonlocal failed
        back = server.ask(
            cells,
            test.asks,
            test.arguments,
            call=test.call,
            given=mine,
            limits=limits,
            model=test.model,  # type: ignore[arg-type]
        )
        failed = back.failed
        return back.value

    result = _judged(test, answer)
    if result.points == 0 and failed and not test.call:  # a variable may be what it was before the cell that sets it
        return replace(result, reason=plain(f"{result.reason} ({failed})"))
    return result


def _judged(test: Test, answer: Callable[[], Any]) -> Result:
    try:
        test.judge(answer())
    except Lost as lost:
        return Result(test.name, 0, test.points, plain(str(lost)))
    except Exception as error:  # what came back may be anything
        return Result(test.name, 0, test.points, f"the answer cannot be judged ({type(error).__name__})")
    return Result(test.name, test.points, test.points, "")


def grade_class(
    assignment: Assignment, key: str, folder: Path, out: Path, server: Server
) -> Iterator[tuple[Grade, bool]]:
    """Grade all submissions of a folder; yields each grade, and whether it was known from an earlier run.

    Args:
        assignment: which.
        key: the course's.
        folder: with one file or folder per student, named like the student.
        out: a folder for the grades: one file per student, from which an interrupted run goes on, and ``grades.csv``.
        server: that has ``folder`` and ``out`` hidden.
    """
    out.mkdir(parents=True, exist_ok=True)
    grades = []
    for student, path in submissions(folder, assignment.read):
        digest = _digest(assignment, key, student, path)
        file = out / f"{hashlib.sha256(student.encode()).hexdigest()[:16]}.json"
        grade = _known(file, digest)
        before = grade is not None
        if grade is None:
            grade = grade_file(assignment, key, student, path, server)
            whole = file.with_suffix(".part")  # a run may be killed at any time: a grade is there as a whole or not
            whole.write_text(json.dumps({"digest": digest, "grade": asdict(grade)}), encoding="utf-8")
            whole.replace(file)
        grades.append(grade)
        yield grade, before
    write_table(out / "grades.csv", grades)


def submissions(folder: Path, read: Sequence[str] = (".ipynb", ".zip")) -> Iterator[tuple[str, Path]]:
    """Student → the file to grade; a folder stands for the one file in it that is read, at any depth.

    What systems add on their own is left out. A name that is no UTF-8, as some zips have, is read with marks in place
    of what is none.
    """
    for path in sorted(path for path in folder.iterdir() if not submission.hidden(path.name)):
        if path.is_file() and path.suffix in read:
            yield _utf8(path.stem), path
        elif path.is_dir() and not path.is_symlink():
            every = sorted(file for end in read for file in path.rglob(f"*{end}"))
            files = [file for file in every if not submission.hidden(str(file.relative_to(path)))]
            yield _utf8(path.name), files[0] if len(files) == 1 else path


def left_out(folder: Path, read: Sequence[str] = (".ipynb", ".zip")) -> list[str]:
    """What lies in a folder and is nobody's submission."""
    taken = {name for name, _ in submissions(folder, read)}
    names = ((path, path.name if path.is_dir() else path.stem) for path in sorted(folder.iterdir()))
    return [_utf8(path.name) for path, name in names if _utf8(name) not in taken and not submission.hidden(path.name)]


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def write_table(path: Path, grades: Sequence[Grade]) -> None:
    """One row per student: total, each test, seconds, and the reasons."""
    names = [result.name for result in grades[0].results] if grades else []
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["student", "points", "of", *names, "seconds", "reasons"])
        for grade in grades:
            lost = dict[str, list[str]]()  # tests that are lost for one reason stand together
            for result in grade.results:
                if result.reason:
                    lost.setdefault(result.reason, []).append(result.name)
            said = [f"{', '.join(tests)}: {reason}" for reason, tests in lost.items()]
            if grade.student.strip().lower() == INSTRUCTOR:
                said.insert(0, "the variant that is worked out in public")
            reasons = "; ".join(said)
            points = [result.points for result in grade.results]
            of = sum(result.of for result in grade.results)
            rows.writerow([_cell(grade.student), grade.total, of, *points, grade.seconds, _cell(reasons)])


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _digest(assignment: Assignment, key: str, student: str, path: Path) -> str:
    """What a grade depends on: the submission, the tests, the key and the student."""
    total = hashlib.sha256(f"{key}\0{student}\0".encode())
    total.update((assignment.folder / "tasks.py").read_bytes())
    with suppress(OSError):  # what cannot be read gets its reason elsewhere
        if path.is_file() and path.stat().st_size <= submission.MAX_FILE:
            total.update(path.read_bytes())
    return total.hexdigest()


def _known(path: Path, digest: str) -> Grade | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # none yet, or what a full disk left of one
        return None
    if stored["digest"] != digest:
        return None
    grade = stored["grade"]
    return Grade(grade["student"], [Result(**result) for result in grade["results"]], grade["seconds"])


def gradescope(grade: Grade, found: dict[str, str]) -> dict[str, Any]:
    """The grade as Gradescope's ``results.json``; students see every test's reason."""
    tests = [
        {"name": r.name, "score": r.points, "max_score": r.of, "output": r.reason or "right", "visibility": "visible"}
        for r in grade.results
    ]
    isolation = ", ".join(f"{what}: {how}" for what, how in found.items())
    return {"score": grade.total, "execution_time": grade.seconds, "tests": tests, "output": f"Isolation: {isolation}."}
