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
import torch

from assignments import build, cells
from assignments.grading import submission
from assignments.grading.grade import Grade, grade_cells
from assignments.grading.judge import Server
from assignments.grading.task import VARIANTS, Assignment, load, names
from robustlab.teaching import handout
from tests.course import mutants
from tests.every import every

KEY, OTHER = "the key of the tests", "the key of another course"
MUTANTS = {"01_first_attack": mutants.FIRST, "02_pgd": mutants.PGD}
HONEST = {"01_first_attack": mutants.FIRST_HONEST, "02_pgd": mutants.PGD_HONEST}
ALWAYS = "last iterate", "scaled, not projected", "every way", "the least useful feature"
"""Of each assignment, two mutants that every run takes."""

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


def cases(table: dict[str, dict[str, mutants.Mutant]], always: tuple[str, ...] = ()) -> list[Any]:
    return [
        pytest.param(name, mutant, id=f"{name}-{case}", marks=() if case in always else pytest.mark.full("tasks"))
        for name, found in table.items()
        for case, mutant in found.items()
    ]


@pytest.mark.parametrize("name", names())
def test_the_solution_gets_all_points_and_the_stub_none(name: str, servers: dict[str, Server]) -> None:
    grade = graded(servers[name], name, source(load(name)))
    assert not grade.lost, grade.results
    assert grade.total == sum(cells.points(source(load(name))).values())
    stub = graded(servers[name], name, cells.student_copy(source(load(name))))
    assert stub.total == 0, stub.results


@pytest.mark.parametrize(("name", "mutant"), cases(MUTANTS, ALWAYS))
def test_a_mutant_loses_exactly_what_it_should(name: str, mutant: mutants.Mutant, servers: dict[str, Server]) -> None:
    grade = graded(servers[name], name, replaced(name, mutant))
    assert grade.lost == mutant.lost, grade.results


@pytest.mark.parametrize(("name", "mutant"), cases(HONEST))
def test_a_right_answer_of_another_make_loses_nothing(
    name: str, mutant: mutants.Mutant, servers: dict[str, Server]
) -> None:
    grade = graded(servers[name], name, replaced(name, mutant))
    assert not grade.lost, grade.results


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("01_first_attack", "real whole grows best curve"),
        ("02_pgd", "dual nearest many optimum box accuracy-set radii"),
    ],
)
def test_replaying_the_public_notebook_loses_what_is_ones_own(name: str, lost: str, servers: dict[str, Server]) -> None:
    """What the instructor's copy works out is nobody's, so it is worth little to a student."""
    grade = graded(servers[name], name, source(load(name)), "ada@example.org", OTHER)
    assert grade.lost >= set(lost.split()), grade.results
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


def test_nobody_gets_the_set_that_is_worked_out() -> None:
    assignment = load("02_pgd")
    kinds = [assignment.draw(KEY, f"{number:02}")["kind"] for number in range(VARIANTS)]
    assert set(kinds) == {"costs", "pixels"}
    assert assignment.variant(KEY, handout.INSTRUCTOR)["kind"] == "ellipsoid"


def test_the_smallest_radii_are_where_the_decision_changes() -> None:
    """Against the network itself, at the best point of each set, which a vertex or the dual's maximizer is."""
    assignment = load("02_pgd")
    for number in range(4):
        mine = assignment.draw(KEY, f"{number:02}")
        tasks, model, x, y = assignment.tasks, mine["model"].double(), mine["x"].double(), mine["y"]
        radii = tasks.smallest_radii(model, x, y, tasks.a_set(mine["kind"], mine["weights"]))
        for share, fooled in ((0.999, False), (1.001, True)):
            met = torch.zeros(len(x), dtype=torch.bool)
            for k in range(5):
                slope = (model[1].weight[k] - model[1].weight[y]).detach().reshape(x.shape)
                best = best_point(mine["kind"], mine["weights"].double(), slope)
                point = x + share * radii.reshape(-1, 1, 1, 1) * best
                met |= model(point).argmax(dim=1) != y
            right = (met == fooled) | (radii == 0)
            assert bool(right.all())


def best_point(kind: str, weights: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """argmax ⟨slope, v⟩ over the set of radius 1: all of it on the one value, or pixel, with the best price."""
    size = slope if kind == "costs" else torch.linalg.vector_norm(slope, dim=1, keepdim=True)
    where = (size.abs() / weights).flatten(1).argmax(dim=1)
    chosen = torch.nn.functional.one_hot(where, size[0].numel()).reshape(size.shape)
    return (chosen * slope / size.abs() / weights).nan_to_num()  # a class has no slope towards itself


def test_what_a_threat_model_allows() -> None:
    """Values counted by hand: the box, the reach, the way, and whole numbers."""
    tasks = load("01_first_attack").tasks
    threat = {
        "low": torch.zeros(4),
        "high": torch.full((4,), 10.0),
        "reach": torch.full((4,), 2.5),
        "way": ["both", "up", "down", "both"],
        "whole": [False, False, False, True],
    }
    x = torch.tensor([[9.0, 5.0, 5.0, 5.0]])
    for value, right in (
        ([9.0, 5.0, 5.0, 5.0], [1, 1, 1, 1]),
        ([10.0, 7.5, 2.5, 7.0], [1, 1, 1, 1]),
        ([6.5, 4.9, 5.1, 5.5], [1, 0, 0, 0]),
        ([10.1, 7.6, 2.4, 8.0], [0, 0, 0, 0]),
    ):
        assert tasks.allowed(torch.tensor([value]), x, threat).int().tolist() == [right]


def test_the_robust_accuracy_is_that_of_a_search_over_a_fine_grid() -> None:
    assignment = load("01_first_attack")
    for number in range(4):
        mine = assignment.draw(KEY, f"{number:02}")
        threat, x, y = mine["threat"], mine["x"], mine["y"]
        grid = torch.linspace(-1, 1, 801)[:, None, None] * threat["reach"] + x
        tried = torch.cat([grid, grid.round()])
        weight = mine["model"][1].weight.detach()
        gain = (weight[y] - weight[1 - y]) * (tried - x)
        gain = gain.masked_fill(~assignment.tasks.allowed(tried, x, threat), torch.inf).amin(dim=0).sum(dim=1)
        z = mine["model"](x).detach()
        lead = z.gather(1, y[:, None]).squeeze(1) - z.gather(1, 1 - y[:, None]).squeeze(1)
        share = float((lead + gain > 0).double().mean())
        assert abs(assignment.tasks.robust(mine, 1.0) - share) <= 0.011


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
