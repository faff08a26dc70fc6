"""nbgrader's cell format: what a source notebook marks, checked, and taken out for students.

A cell's metadata say under ``nbgrader`` whether it is graded, a solution, or locked, with its ``grade_id`` and points.
In the text, ``### BEGIN SOLUTION`` … ``### END SOLUTION`` is what students write, and ``### BEGIN HIDDEN TESTS`` … is
what they do not see. This is nbgrader's own format (schema 3), so its commands take the same source.
"""

from __future__ import annotations

import copy
import re

import nbformat
from nbformat import NotebookNode

from robustlab.teaching.handout import INSTRUCTOR

SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION", flags=re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS\n.*?^[ \t]*### END HIDDEN TESTS\n?", flags=re.MULTILINE | re.DOTALL)
STUB = "# YOUR CODE HERE\n{0}raise NotImplementedError()"
ANSWER = "YOUR ANSWER HERE"
YOUR_NAME = "your.name@example.org"


def marks(cell: NotebookNode) -> dict[str, object]:
    """What nbgrader knows of a cell; nothing for a free one."""
    return dict(cell.metadata.get("nbgrader", {}))


def student_copy(source: NotebookNode) -> NotebookNode:
    """The notebook without solutions, hidden tests and outputs, and with a place for the student's name."""
    copied = copy.deepcopy(source)
    for cell in copied.cells:
        stub = STUB if cell.cell_type == "code" else ANSWER
        cell.source = SOLUTION.sub(lambda found, stub=stub: found[1] + stub.format(found[1]), cell.source)
        cell.source = HIDDEN.sub("", cell.source).rstrip("\n")
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = cell.source.replace(f'STUDENT = "{INSTRUCTOR}"', f'STUDENT = "{YOUR_NAME}"')
    nbformat.validate(copied)
    return copied


def points(source: NotebookNode) -> dict[str, int]:
    """The points of the cells that a program grades, by ``grade_id``."""
    return _points(source, by_hand=False)


def points_by_hand(source: NotebookNode) -> dict[str, int]:
    """The points of the cells that a person grades: graded and written by the student."""
    return _points(source, by_hand=True)


def complaints(source: NotebookNode) -> list[str]:
    """What is wrong with a source: one line each."""
    found, seen = list[str](), set[object]()
    for number, cell in enumerate(source.cells):
        mark, where = marks(cell), f"cell {number}"
        if not mark:
            if "### BEGIN" in cell.source:
                found.append(f"{where}: it has a region, and no nbgrader metadata")
            continue
        if mark.get("schema_version") != 3 or mark["grade_id"] in seen:
            found.append(f"{where}: want schema 3 and a grade_id of its own, got {mark}")
        seen.add(mark["grade_id"])
        if bool(mark["solution"]) != bool(SOLUTION.search(cell.source)):
            found.append(f"{where}: a solution cell, and only it, has a solution region")
        if mark["grade"] and not isinstance(mark.get("points"), int):
            found.append(f"{where}: a graded cell has points")
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count):
            found.append(f"{where}: a source is committed without outputs")
        if HIDDEN.sub("", SOLUTION.sub("", cell.source)).count("###"):
            found.append(f"{where}: a region is not closed")
    return found


def _points(source: NotebookNode, *, by_hand: bool) -> dict[str, int]:
    graded = [marks(cell) for cell in source.cells if marks(cell).get("grade")]
    return {str(mark["grade_id"]): int(str(mark["points"])) for mark in graded if bool(mark["solution"]) == by_hand}
