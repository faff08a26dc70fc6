"""One submission on Gradescope: ``python -m assignments.grading.on_gradescope NAME [FOLDER]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from assignments.grading.grade import Grade, Result, grade_file, gradescope
from assignments.grading.judge import Server
from assignments.grading.task import SOURCES, load

KEY_FILE = SOURCES.parent / "course.key"


def main(name: str, folder: Path = Path("/autograder")) -> None:
    """Grade what was handed in, and write ``results/results.json``."""
    assignment, key = load(name), KEY_FILE.read_text(encoding="utf-8")
    handed_in = folder / "submission"
    files = sorted(path for path in handed_in.rglob("*") if path.suffix in assignment.read)
    student = json.loads((folder / "submission_metadata.json").read_text(encoding="utf-8"))["users"][0]["email"]
    with Server(hidden=[SOURCES.parent / "course.key", folder], blocked=assignment.tasks.BLOCKED) as server:
        if len(files) == 1:
            grade = grade_file(assignment, key, student, files[0], server)
        else:
            reason = f"{len(files)} files {' or '.join(assignment.read)} were handed in, want exactly 1"
            grade = Grade(student, [Result(t.name, 0, t.points, reason) for t in assignment.tests(key, student)], 0.0)
        results = gradescope(grade, server.found)
    (folder / "results").mkdir(exist_ok=True)
    (folder / "results" / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(Path, sys.argv[2:3]))
