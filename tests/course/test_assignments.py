"""Every assignment: its copies, and its grader held to right, empty and wrong answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from assignments import build, cells
from assignments.grading import submission
from assignments.grading.grade import Grade, grade_cells
from assignments.grading.judge import Server
from assignments.grading.task import VARIANTS, Assignment, load, names
from robustlab.teaching import handout
from tests.course import mutants
from tests.every import every

KEY, OTHER = "the key of the tests", "the key of another course"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    """A running server for each assignment; those that block the same share one."""
    running: dict[tuple[str, ...], Server] = {}
    blocked = {name: load(name).tasks.BLOCKED for name in names()}
    yield {name: running.setdefault(away, Server(blocked=away)) for name, away in blocked.items()}
    for server in running.values():
        server.__exit__()


def source(assignment: Assignment) -> Any:
    return nbformat.read(assignment.source, as_version=4)


def graded(server: Server, name: str, notebook: Any, student: str = handout.INSTRUCTOR, key: str = KEY) -> Grade:
    return grade_cells(load(name), key, student, submission.cells(nbformat.writes(notebook).encode()), server)


def replaced(name: str, mutant: mutants.Mutant) -> Any:
    notebook = source(load(name))
    for old, new in mutant.replaced:
        holders = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        assert holders, f"the mutant replaces {old!r}, which is not there"
        for cell in holders:
            cell.source = cell.source.replace(old, new)
    return notebook


def cases(table: str) -> list[Any]:
    """The mutants of all assignments, or their honest answers; those in ``ALWAYS`` are in every run."""
    return [
        pytest.param(
            name,
            mutant,
            id=f"{name}-{case}",
            marks=() if case in mutants.of(name).ALWAYS else pytest.mark.full("tasks", mutants.file_of(name)),
        )
        for name in names()
        for case, mutant in getattr(mutants.of(name), table).items()
    ]


@pytest.mark.parametrize("name", names())
def test_the_solution_gets_all_points_and_the_stub_none(name: str, servers: dict[str, Server]) -> None:
    grade = graded(servers[name], name, source(load(name)))
    assert not grade.lost, grade.results
    assert grade.total == sum(cells.points(source(load(name))).values())
    stub = graded(servers[name], name, cells.student_copy(source(load(name))))
    assert stub.total == 0, stub.results


@pytest.mark.parametrize(("name", "mutant"), cases("MUTANTS"))
def test_a_mutant_loses_exactly_what_it_should(name: str, mutant: mutants.Mutant, servers: dict[str, Server]) -> None:
    grade = graded(servers[name], name, replaced(name, mutant))
    assert grade.lost == mutant.lost, grade.results


@pytest.mark.parametrize(("name", "mutant"), cases("HONEST"))
def test_a_right_answer_of_another_make_loses_nothing(
    name: str, mutant: mutants.Mutant, servers: dict[str, Server]
) -> None:
    grade = graded(servers[name], name, replaced(name, mutant))
    assert not grade.lost, grade.results


@pytest.mark.parametrize("name", names())
def test_replaying_the_public_notebook_loses_what_is_ones_own(name: str, servers: dict[str, Server]) -> None:
    """What the instructor's copy works out is nobody's, so it is worth little to a student."""
    grade = graded(servers[name], name, source(load(name)), "ada@example.org", OTHER)
    assert grade.lost >= set(mutants.of(name).REPLAYED.split()), grade.results
    assert grade.total < sum(result.of for result in grade.results) / 2


def test_replaying_the_executed_numbers_under_another_key_loses_them(servers: dict[str, Server]) -> None:
    """What the instructor's copy prints under one key is wrong under another."""
    tasks, mine = load("02_pgd").tasks, load("02_pgd").variant(KEY, handout.INSTRUCTOR)
    radii = tasks.smallest_radii(mine["model"], mine["x"], mine["y"], tasks.a_set(mine["kind"], mine["weights"]))
    typed = [(0, f"import torch\nsmallest_eps = torch.tensor({radii.float().tolist()})")]
    for key, right in ((KEY, True), (OTHER, False)):
        grade = grade_cells(load("02_pgd"), key, handout.INSTRUCTOR, typed, servers["02_pgd"])
        assert ("radii" not in grade.lost) == right


@every("name", names())
def test_students_get_other_kinds_networks_and_numbers_than_the_instructor(name: str) -> None:
    assignment = load(name)
    drawn = [handout.pack(assignment.draw(key, f"{number:02}")) for key in (KEY, OTHER) for number in range(VARIANTS)]
    assert len(set(drawn)) == 2 * VARIANTS
    assert handout.pack(assignment.variant(KEY, "a@b")) == handout.pack(assignment.variant(KEY, " A@B "))


@every("name", names())
def test_the_marks_of_the_source_and_its_tests_agree(name: str) -> None:
    assignment = load(name)
    found = source(assignment)
    assert cells.complaints(found) == [] and cells.points_by_hand(found)
    assert build._disagreements(assignment, found, KEY) == []
    words = re.sub(r"\s+", " ", (assignment.folder / "rubric.md").read_text(encoding="utf-8"))
    for cell, points in (cells.points(found) | cells.points_by_hand(found)).items():
        assert f"`{cell}` | {points} |" in words


def test_marks_that_do_not_fit_are_named() -> None:
    notebook = source(load("02_pgd"))
    cells_by_name = {cell.id: cell for cell in notebook.cells}
    cells_by_name["project"].source = cells_by_name["project"].source.replace("### END SOLUTION", "")
    cells_by_name["test-project"].metadata.nbgrader.grade_id = "project"
    cells_by_name["setup"].outputs = [nbformat.v4.new_output("stream", text="x")]
    cells_by_name["student-name"].source += "\n### BEGIN SOLUTION"
    said = "\n".join(cells.complaints(notebook))
    for part in ("has a solution region", "a grade_id of its own", "without outputs", "no nbgrader metadata"):
        assert part in said


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All copies of all assignments, but for the execution of the instructor's and the wheel."""
    out = tmp_path_factory.mktemp("copies")
    for name in names():
        build.build(load(name), KEY, out, execute=False)
    return out


@pytest.mark.parametrize("name", names())
def test_the_students_copy_has_stubs_variants_and_nothing_else(name: str, copies: Path) -> None:
    folder = copies / "student" / name
    text = (folder / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "SOLUTION" not in text and "HIDDEN" not in text and KEY not in text
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            assert "raise NotImplementedError()" in cell.source or cells.ANSWER in cell.source
    variants = sorted((folder / "variants").iterdir())
    assert [file.name for file in variants] == [f"{number:02}.safetensors" for number in range(VARIANTS)]
    own = handout.load(folder / "variants", "ada@example.org")
    assert handout.pack(own) == handout.pack(load(name).variant(KEY, "ada@example.org"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full(name)) for name in names()])
def test_the_graders_pack_grades_by_itself(name: str, copies: Path, tmp_path: Path) -> None:
    """As Gradescope runs it: from its own folder, with the key beside it, for the student whom the metadata name."""
    with zipfile.ZipFile(copies / "autograder" / f"{name}.zip") as archive:
        archive.extractall(tmp_path / "source")
    key = tmp_path / "source" / build.KEY_FILE
    assert key.read_text() == KEY and (copies / "autograder" / name / build.KEY_FILE).stat().st_mode & 0o77 == 0
    assert "run_autograder" in {file.name for file in (tmp_path / "source").iterdir()}
    (tmp_path / "submission").mkdir()
    (tmp_path / "submission" / "mine.ipynb").write_text("no notebook")
    (tmp_path / "submission_metadata.json").write_text(json.dumps({"users": [{"email": "ada@example.org"}]}))
    command = [sys.executable, "-m", "assignments.grading.on_gradescope", name, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path / "source", check=True, env={"PYTHONPATH": str(build.ROOT), "PATH": ""})
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["score"] == 0 and "does not parse" in results["tests"][0]["output"]
    assert sum(test["max_score"] for test in results["tests"]) == sum(cells.points(source(load(name))).values())


@pytest.mark.full
@pytest.mark.parametrize("name", names())
def test_the_instructors_copy_runs(name: str, tmp_path: Path) -> None:
    build.build(load(name), KEY, tmp_path)
    text = (tmp_path / "instructor" / name / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert KEY not in text


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="key: want at least 12 characters"):
        build.build(load("02_pgd"), "short")
    with pytest.raises(ValueError, match="name: want one of"):
        load("99_none")
