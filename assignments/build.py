"""Make the copies of all assignments: ``python -m assignments.build --key KEY [NAME ...]``, or ``make assignments``.

Everything goes to ``_build/assignments``, which git ignores, since what the key draws must not be published:

    student/NAME/       the notebook with stubs, and the variants: what students get
    instructor/NAME/    the notebook worked out and executed, and the rubric
    autograder/NAME/    the grader with its key; NAME.zip beside it is what Gradescope takes
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from assignments import cells
from assignments.grading.task import VARIANTS, Assignment, handed_out, load, names
from robustlab.teaching import handout

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "_build" / "assignments"
MIN_KEY = 12
KEY_FILE = "course.key"
NUMBERS = [f"{number:02}" for number in range(VARIANTS)]
Variants = dict[str, dict[str, Any]]


def build(
    assignment: Assignment, key: str, out: Path = OUT, *, wheel: Path | None = None, execute: bool = True
) -> None:
    """Write the three copies of one assignment below ``out``.

    Args:
        assignment: from :func:`load`.
        key: the course's secret, at least 12 characters.
        out: the folder of all copies.
        wheel: of robustlab, for the autograder's pack; None leaves it out.
        execute: whether to run the instructor's copy.

    Raises:
        ValueError: the source's marks and the tests do not agree, or the key is short.
    """
    if len(key) < MIN_KEY:
        raise ValueError(f"key: want at least {MIN_KEY} characters that nobody guesses, got {len(key)}")
    source = nbformat.read(assignment.source, as_version=4)
    found = [*cells.complaints(source), *_disagreements(assignment, source, key)]
    if found:
        raise ValueError(f"{assignment.name}: " + "; ".join(found))
    drawn = {number: assignment.draw(key, number) for number in (handout.INSTRUCTOR, *NUMBERS)}
    # The worked copy first: it alone may fail, and what students and the grader have must be of one key.
    _instructor(assignment, source, drawn, _fresh(out / "instructor" / assignment.name), execute)
    _student(assignment, source, drawn, _fresh(out / "student" / assignment.name))
    _autograder(assignment, key, drawn, _fresh(out / "autograder" / assignment.name), wheel)


def pack_of(name: str) -> Path:
    """The variants of an assignment in the grader's pack that was made last."""
    return OUT / "autograder" / name / "assignments" / name / "variants"


def _disagreements(assignment: Assignment, source: NotebookNode, key: str) -> list[str]:
    """Cells whose points are not those of their tests."""
    announced, tested = cells.points(source), dict.fromkeys(cells.points(source), 0)
    for test in assignment.tests(key, handout.INSTRUCTOR):
        tested[test.cell] = tested.get(test.cell, 0) + test.points
    return [f"cell {cell}: {announced.get(cell)} points, its tests give {tested[cell]}" for cell in tested
            if announced.get(cell) != tested[cell]]  # fmt: skip


def _student(assignment: Assignment, source: NotebookNode, drawn: Variants, folder: Path) -> None:
    nbformat.write(cells.student_copy(source), folder / f"{assignment.name}.ipynb")
    _variants({number: handed_out(drawn[number]) for number in NUMBERS}, folder)


def _variants(drawn: Variants, folder: Path) -> None:
    (folder / "variants").mkdir()
    for number, variant in drawn.items():
        (folder / "variants" / f"{number}.safetensors").write_bytes(handout.pack(variant))


def _instructor(assignment: Assignment, source: NotebookNode, drawn: Variants, folder: Path, execute: bool) -> None:
    _variants({handout.INSTRUCTOR: handed_out(drawn[handout.INSTRUCTOR])}, folder)
    shutil.copy(assignment.folder / "rubric.md", folder)
    if execute:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        client = NotebookClient(
            source,
            timeout=300,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute(env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    nbformat.write(source, folder / f"{assignment.name}.ipynb")


def _autograder(assignment: Assignment, key: str, drawn: Variants, folder: Path, wheel: Path | None) -> None:
    """What runs without this repository: Gradescope's two scripts, the grader, the tests, the variants and the key."""
    here, code = Path(__file__).parent, folder / "assignments"
    ignore = shutil.ignore_patterns("__pycache__", "gradescope")
    shutil.copytree(here / "grading", code / "grading", ignore=ignore)
    for file in (here / "__init__.py", here / "cells.py"):
        shutil.copy(file, code)
    (code / assignment.name).mkdir()
    for file in ("tasks.py", "source.ipynb"):
        shutil.copy(assignment.folder / file, code / assignment.name)
    _variants(drawn, code / assignment.name)
    for file in (here / "grading" / "gradescope").iterdir():
        text = file.read_text(encoding="utf-8").replace("ASSIGNMENT", assignment.name)
        (folder / file.name).write_text(text, encoding="utf-8")
        (folder / file.name).chmod(0o644 if file.suffix == ".txt" else 0o755)
    write_key(folder / KEY_FILE, key)
    if wheel is not None:
        shutil.copy(wheel, folder)
    shutil.make_archive(str(folder), "zip", folder)
    folder.with_suffix(".zip").chmod(0o600)


def write_key(path: Path, key: str) -> None:
    """A file that only its owner reads."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(key)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _wheel(folder: Path) -> Path:
    """robustlab as one file, so that a grader has the library that the assignments were made with."""
    _fresh(folder)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools would pack what an earlier build left there
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(ROOT)], check=True)
    return next(folder.glob("robustlab-*.whl"))


def main() -> int:
    """Build those that the command line names, or all."""
    parser = argparse.ArgumentParser(description="Make the student's, the instructor's and the grader's copies.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all by default")
    parser.add_argument("--key", default=os.environ.get("KEY", ""), help="the course's secret (default: $KEY)")
    arguments = parser.parse_args()
    if len(arguments.key) < MIN_KEY:
        print(f"A course has a key of at least {MIN_KEY} characters that nobody guesses:")
        print("\n    make assignments KEY=...\n")
        return 2
    wheel = _wheel(OUT / "wheel")
    for name in arguments.names or names():
        started = time.perf_counter()
        build(load(name), arguments.key, wheel=wheel)
        print(f"{name}: student, instructor and autograder copies in {OUT} ({time.perf_counter() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
