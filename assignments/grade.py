"""Grade a class: ``python -m assignments.grade NAME FOLDER``, or ``make grade ASSIGNMENT=NAME SUBMISSIONS=FOLDER``.

The folder has one notebook or zip per student, named like the student, or one folder per student. The key is that with
which the assignment was made. Grades and reasons go to ``grades.csv`` in ``_build/grades/NAME``; a run that is
interrupted goes on where it was, and a submission that changed is graded again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from assignments.build import KEY_FILE, OUT, ROOT, pack_of
from assignments.grading.grade import grade_class, left_out
from assignments.grading.judge import Server
from assignments.grading.task import load, names


def main() -> int:
    """Grade the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Grade all submissions of a folder.")
    parser.add_argument("name", metavar="NAME", choices=names())
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--out", type=Path, help="where grades go (default: _build/grades/NAME)")
    arguments = parser.parse_args()
    key = OUT / "autograder" / arguments.name / KEY_FILE
    if not key.exists() or not arguments.folder.is_dir():
        print(f"Wanted: the key in {key}, which `make assignments KEY=...` writes, and a folder of submissions.")
        return 2
    out = arguments.out or ROOT / "_build" / "grades" / arguments.name
    assignment, started, count = load(arguments.name, pack_of(arguments.name)), time.perf_counter(), 0
    with Server(hidden=[OUT, out, arguments.folder], blocked=assignment.tasks.BLOCKED) as server:
        print("isolation:", ", ".join(f"{what}: {how}" for what, how in server.found.items()))
        for grade, before in grade_class(assignment, key.read_text(encoding="utf-8"), arguments.folder, out, server):
            count += not before
            of = sum(result.of for result in grade.results)
            print(f"{grade.student}: {grade.total} of {of}" + (" (known)" if before else f", {grade.seconds:.1f} s"))
    for name in left_out(arguments.folder, assignment.read):
        print(f"{name}: not read, for it is neither a folder nor {' or '.join(assignment.read)}")
    print(f"{count} graded in {time.perf_counter() - started:.0f} s; {out / 'grades.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
