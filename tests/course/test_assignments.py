"""Every assignment: its copies, and its grader held to right, empty and wrong answers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import nbformat
import numpy as np
import pytest
from torch import Tensor

from assignments import build, cells
from assignments.build import NUMBERS
from assignments.grading import submission
from assignments.grading.grade import Grade, grade_cells, grade_data, unread
from assignments.grading.judge import LIMITS, Server
from assignments.grading.task import JUDGES, METHODS, VARIANTS, Assignment, Lost, handed_out, load, names, seed_of
from robustlab.teaching import handout
from tests.course import mutants
from tests.every import every

KEY, OTHER, ADA = "the key of the tests", "the key of another course", "ada@example.org"

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
    assignment, read = drawing(name), submission.cells(nbformat.writes(notebook).encode())
    if assignment.data is None:
        return grade_cells(assignment, key, student, read, server)
    return grade_arrays(assignment, handed_in(server, assignment, read, student, key), student, key)


@cache
def drawing(name: str) -> Assignment:
    """The assignment, loaded once: a variant with trained networks is kept, and not trained again."""
    return load(name)


def handed_in(server: Server, assignment: Assignment, read: Any, student: str, key: str) -> bytes:
    """The file that a student's notebook writes where data are handed in, from its variable ``answer``."""
    given, limits = handed_out(assignment.variant(key, student)), LIMITS | {"seconds": 120.0}
    raw = io.BytesIO()
    with suppress(Lost):  # a notebook that fails has nothing to hand in
        answer = server.ask(read, "answer", call=False, given=given, limits=limits).value
        np.savez(raw, **{name: value.numpy() for name, value in answer.items()})
    return raw.getvalue()


def grade_arrays(assignment: Assignment, raw: bytes, student: str, key: str) -> Grade:
    assert assignment.data is not None
    try:
        return grade_data(assignment, key, student, submission.arrays(raw, assignment.data))
    except submission.Unreadable as error:
        return unread(assignment, key, student, error)


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
    grade = graded(servers[name], name, source(load(name)), ADA, OTHER)
    assert grade.lost >= set(mutants.of(name).REPLAYED.split()), grade.results
    assert grade.total < sum(result.of for result in grade.results) / 2


IMPORTED = {
    "01_first_attack": "from robustlab.attacks import fgsm",
    "02_pgd": "from robustlab.geometry import projections",
    "03_minimum_norm": "from robustlab.attacks import deepfool",
    "06_verifier": "from robustlab.verification import crown",
    "07_smoothing": "from robustlab.teaching.check.smoothing import distance_at",
    "08_black_box": "from robustlab.attacks import hsja",
}
"""Of each notebook that is handed in, what the public tree has of its answer, a line from being used."""


@pytest.mark.parametrize("name", [*IMPORTED])
def test_an_answer_that_imports_what_it_is_to_write_gets_nothing(name: str, servers: dict[str, Server]) -> None:
    """The import works here, where the judge is, and is refused where the notebook runs."""
    exec(IMPORTED[name], {})
    notebook = source(load(name))
    for cell in notebook.cells:
        if cell.cell_type == "code" and cells.marks(cell).get("solution"):
            cell.source = f"{IMPORTED[name]}\n{cell.source}"
    grade = graded(servers[name], name, notebook)
    assert grade.total == 0
    assert all("is refused where" in result.reason or "not a package" in result.reason for result in grade.results)


@pytest.mark.parametrize("name", [*IMPORTED])
def test_giving_back_what_was_given_gets_nothing(name: str) -> None:
    """Standing still is right for some samples: the judge looks at the others, too."""
    for test in drawing(name).tests(KEY, ADA):
        for given in test.arguments if test.call else ():
            with pytest.raises(Lost):
                test.judge(given.clone() if isinstance(given, Tensor) else given)


def test_no_package_with_methods_is_left_to_import() -> None:
    plain = {"data", "models", "teaching", "zoo"}
    folders = {path.parent.name for path in (build.ROOT / "robustlab").glob("*/__init__.py")}
    assert {f"robustlab.{name}" for name in folders - plain} == set(METHODS)
    assert {load(name).tasks.BLOCKED for name in IMPORTED} == {METHODS}
    assert {*IMPORTED} == {name for name in names() if load(name).data is None}


@pytest.mark.parametrize("name", [name for name in names() if load(name).data is None])
def test_numbers_of_the_executed_notebook_are_worth_nothing_under_another_key(
    name: str, servers: dict[str, Server]
) -> None:
    """What the instructor's copy works out under one key, typed in under another: each of its variables loses."""
    assignment, read = drawing(name), submission.cells(nbformat.writes(source(load(name))).encode())
    given, limits = handed_out(assignment.variant(KEY, handout.INSTRUCTOR)), LIMITS | {"seconds": 60.0}
    asked = [test for test in assignment.tests(KEY, handout.INSTRUCTOR) if not test.call]
    typed = {
        variable: servers[name].ask(read, variable, call=False, given=given, limits=limits).value
        for variable in {test.asks for test in asked}
    }
    for test in asked:
        test.judge(typed[test.asks])
    for key, student in ((OTHER, handout.INSTRUCTOR), (KEY, ADA)):
        for test in assignment.tests(key, student):
            if not test.call and test.name not in BY_LUCK:
                with pytest.raises(Lost):
                    test.judge(typed[test.asks])


BY_LUCK = {"feature"}
"""Tests whose answer is one of a few, so that another's may be right."""


@every("name", names())
def test_hidden_tests_are_of_the_key(name: str) -> None:
    """Under another key each function is asked about other inputs and networks, on the same variant."""
    assignment = drawing(name)
    mine = assignment.variant(KEY, ADA)
    one, other = (assignment.tasks.tests(seed_of(key, name, "hidden", "3"), mine) for key in (KEY, OTHER))
    asked = [(a, b) for a, b in zip(one, other, strict=True) if a.arguments]
    assert assignment.data is not None or asked
    for a, b in asked:
        packed = [handout.pack({"": list(test.arguments)}) for test in (a, b)]
        assert packed[0] != packed[1] or a.name in NO_DRAWS, a.name


NO_DRAWS = {"units", "half"}
"""Tests of 07 that ask about the student's own noise at shares that nobody needs to hide."""


@pytest.mark.parametrize("name", [name for name in names() if load(name).data is not None])
def test_the_file_of_the_instructor_is_worth_little_under_another_key(name: str, servers: dict[str, Server]) -> None:
    """What is handed in can be copied as it is, so under every other variant it loses nearly all."""
    assignment = drawing(name)
    read = submission.cells(nbformat.writes(source(assignment)).encode())
    raw = handed_in(servers[name], assignment, read, handout.INSTRUCTOR, KEY)
    assert not grade_arrays(assignment, raw, handout.INSTRUCTOR, KEY).lost
    for student, key in ((ADA, OTHER), (handout.INSTRUCTOR, OTHER)):
        grade = grade_arrays(assignment, raw, student, key)
        assert grade.total <= 6 and grade.lost >= {*mutants.of(name).COPIED.split()}, grade.results


@every("name", names())
def test_students_get_other_kinds_networks_and_numbers_than_the_instructor(name: str) -> None:
    assignment = drawing(name)
    numbers = NUMBERS[:2] if trains(assignment) else NUMBERS
    drawn = [handout.pack(assignment.draw(key, number)) for key in (KEY, OTHER) for number in numbers]
    assert len(set(drawn)) == 2 * len(numbers)
    assert handout.pack(assignment.variant(KEY, ADA)) == handout.pack(assignment.variant(KEY, f" {ADA.upper()} "))


@every("name", names())
def test_the_marks_of_the_source_and_its_tests_agree(name: str) -> None:
    assignment = drawing(name)
    found = source(assignment)
    assert cells.complaints(found) == [] and cells.points_by_hand(found)
    assert build._disagreements(assignment, found, KEY) == []
    table = mutants.of(name)
    assert len(table.MUTANTS) >= 8 and len(table.HONEST) >= 3 and len(table.ALWAYS) == 2
    tests = [test.name for test in assignment.tests(KEY, handout.INSTRUCTOR)]
    lost = {test for mutant in table.MUTANTS.values() for test in mutant.lost}
    assert lost == set(tests), "each test is lost by a mutant"
    page = (build.ROOT / "assignments" / "README.md").read_text(encoding="utf-8")
    assert f"| A{int(name[:2])} | {len(tests)} | " in page, "how many tests there are"
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
        build.build(quick(name), KEY, out, execute=False)
    return out


def quick(name: str) -> Assignment:
    """An assignment; where it trains networks, with the same for all variants that nobody in these tests gets."""
    assignment, adas = drawing(name), f"{handout.variant_number(ADA, VARIANTS):02}"
    if not trains(assignment):
        return assignment
    seeds = [seed_of(KEY, name, number) for number in (adas, handout.INSTRUCTOR)]

    def draw(seed: int, worked: bool) -> dict[str, Any]:
        drawn: dict[str, Any] = assignment.tasks.draw(seed if seed in seeds else seeds[0], worked)
        return drawn

    tasks = SimpleNamespace(**{**vars(assignment.tasks), "draw": draw})
    return replace(assignment, tasks=tasks)  # type: ignore[arg-type]


def trains(assignment: Assignment) -> bool:
    """Whether drawing a variant takes a second."""
    return hasattr(assignment.tasks, "trained")


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
    own = handout.load(folder / "variants", ADA)
    assert handout.pack(own) == handout.pack(handed_out(drawing(name).variant(KEY, ADA))) and JUDGES not in own


@pytest.mark.parametrize("name", names())
def test_the_grader_reads_the_variants_that_were_handed_out(name: str, copies: Path) -> None:
    """They are in its pack with what the judge alone has, and no other key draws anything else."""
    pack = copies / "autograder" / name / "assignments" / name / "variants"
    read = load(name, pack)
    assert handout.pack(read.variant(OTHER, ADA)) == handout.pack(drawing(name).variant(KEY, ADA))
    assert [test.name for test in read.tests(KEY, ADA)] == [test.name for test in drawing(name).tests(KEY, ADA)]
    assert sorted(file.stem for file in pack.iterdir()) == [*NUMBERS, handout.INSTRUCTOR]


TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
REQUIREMENTS = build.ROOT / "assignments" / "grading" / "gradescope" / "requirements.txt"
RESULTS = {"score": int, "execution_time": float, "output": str, "tests": list}
TESTS = {"name": str, "score": int, "max_score": int, "output": str, "visibility": str}
"""What Gradescope's documentation of ``results.json`` names, with the types it gives, of what we write."""


def our_python(root: Path) -> None:
    """In place of setup.sh's environment, one that is ours."""
    (root / "venv" / "bin").mkdir(parents=True)
    python = root / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={build.ROOT}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)


def as_set_up(root: Path) -> None:
    """setup.sh itself, with everything from package indexes, but for a stand-in of apt-get that notes its arguments."""
    done = set_up(root, (root / "source" / "setup.sh").read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (root / "apt.log").read_text().split("\n")[:2] == [
        "update",
        "install --yes --no-install-recommends python3 python3-venv",
    ]
    assert (root / "source").stat().st_mode & 0o777 == 0o700


def set_up(root: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script below ``root`` in place of /autograder, with a stand-in of apt-get."""
    apt = root / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(f'#!/bin/sh\necho "$@" >> {root}/apt.log\n')
    apt.chmod(0o755)
    text = script.replace("/autograder", str(root))
    path = f"{apt.parent}{os.pathsep}{Path(sys.executable).resolve().parent}{os.pathsep}{os.environ['PATH']}"
    away = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env = {**away, "PATH": path, **environment}
    return subprocess.run(["bash"], input=text, text=True, env=env, cwd=root, capture_output=True, check=False)


def index_of(folder: Path, *packages: tuple[str, str]) -> str:
    """A package index in a folder, of empty packages with a name and a version; its address."""
    for name, version in packages:
        (folder / name).mkdir(parents=True)
        wheel, about = f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / name / wheel, "w") as archive:
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", f"{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
        link = f'<a href="{quote(wheel)}">{wheel}</a>'
        (folder / name / "index.html").write_text(link, encoding="utf-8")
    folder.mkdir(exist_ok=True)
    return folder.as_uri()


@pytest.mark.full
@pytest.mark.parametrize("there", [True, False])
def test_its_setup_takes_torch_from_pytorchs_index_or_fails(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With folders for indexes: the ordinary one has a newer torch, which stands for the build of gigabytes."""
    pytorchs = index_of(tmp_path / "pytorch", *[("torch", "2.6.0+cpu")] * there)
    others = [(line.partition(">=")[0], "99.0") for line in REQUIREMENTS.read_text(encoding="utf-8").split()]
    ordinary = index_of(tmp_path / "ordinary", *others)
    root = tmp_path / "root"
    (root / "source").mkdir(parents=True)
    shutil.copy(REQUIREMENTS, root / "source")
    index_of(tmp_path / "ours", ("robustlab", "0.1.0"))
    shutil.copy(tmp_path / "ours" / "robustlab" / "robustlab-0.1.0-py3-none-any.whl", root / "source")
    script = (REQUIREMENTS.parent / "setup.sh").read_text(encoding="utf-8")
    assert script.count(TORCH_INDEX) == 1
    script = script.replace(TORCH_INDEX, pytorchs)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)  # the indexes of this machine
    done = set_up(root, script, PIP_INDEX_URL=ordinary, PIP_CONFIG_FILE=os.devnull, PIP_NO_CACHE_DIR="1")
    pip = [root / "venv" / "bin" / "pip", "list", "--format=freeze"]
    found = subprocess.run(pip, capture_output=True, text=True, check=True).stdout.split()
    if there:
        assert done.returncode == 0, done.stderr[-2000:]
        assert {"torch==2.6.0+cpu", "numpy==99.0", "robustlab==0.1.0"} <= set(found)
        assert (root / "source").stat().st_mode & 0o777 == 0o700
    else:
        assert done.returncode != 0 and "No matching distribution found for torch" in done.stderr
        assert not any(line.startswith(("torch", "robustlab")) for line in found)


def on_gradescope(
    copies: Path, name: str, root: Path, raw: bytes, email: str, prepared: Callable[[Path], None] = our_python
) -> dict[str, Any]:
    """The results of the pack's own script in folders like Gradescope's, but below ``root`` in place of /autograder."""
    with zipfile.ZipFile(copies / "autograder" / f"{name}.zip") as archive:
        assert {"setup.sh", "run_autograder", "requirements.txt"} <= set(archive.namelist())
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111 == 0o111
        archive.extractall(root / "source")
    key = root / "source" / build.KEY_FILE
    assert key.read_text() == KEY and (copies / "autograder" / name / build.KEY_FILE).stat().st_mode & 0o77 == 0
    for file in ("setup.sh", "run_autograder"):
        text = (root / "source" / file).read_text(encoding="utf-8")
        assert "/autograder" in text
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (root / "run_autograder").write_text(text.replace("/autograder", str(root)))
    prepared(root)
    (root / "submission").mkdir()
    (root / "submission" / ("mine.ipynb" if load(name).data is None else "mine.npz")).write_bytes(raw)
    (root / "submission_metadata.json").write_text(json.dumps({"users": [{"email": email, "id": 1, "name": "x"}]}))
    subprocess.run(["bash", str(root / "run_autograder")], cwd=root, check=True, env={"PATH": os.defpath})
    results: dict[str, Any] = json.loads((root / "results" / "results.json").read_text())
    for found, wanted in ((results, RESULTS), *((test, TESTS) for test in results["tests"])):
        assert {key: type(value) for key, value in found.items()} == wanted
    assert all(test["visibility"] == "visible" and 0 <= test["score"] <= test["max_score"] for test in results["tests"])
    assert results["score"] == sum(test["score"] for test in results["tests"])
    assert sum(test["max_score"] for test in results["tests"]) == sum(cells.points(source(load(name))).values())
    assert "network: " in results["output"] and "files: " in results["output"]
    return results


@pytest.mark.full
@pytest.mark.parametrize("name", names())
def test_the_graders_pack_grades_by_itself(name: str, copies: Path, tmp_path: Path) -> None:
    """As Gradescope runs it: from its own folder, with the key beside it, for the student whom the metadata name."""
    results = on_gradescope(copies, name, tmp_path, b"no notebook", ADA)
    said = "does not parse" if load(name).data is None else "cannot be read"
    assert results["score"] == 0 and said in results["tests"][0]["output"]


def test_the_graders_pack_gives_all_points_where_they_are_due(copies: Path, tmp_path: Path) -> None:
    name = "01_first_attack"
    right = nbformat.writes(source(load(name))).encode()
    results = on_gradescope(copies, name, tmp_path, right, handout.INSTRUCTOR)
    assert {test["output"] for test in results["tests"]} == {"right"}


@pytest.mark.full
def test_its_setup_installs_all_that_a_run_needs(tmp_path: Path) -> None:
    """In a fresh environment from its own requirements and wheel, without this repository on the path."""
    try:
        urllib.request.urlopen(f"{TORCH_INDEX}/torch/", timeout=10).close()
    except OSError:
        pytest.skip("PyTorch's package index cannot be reached here")
    name, copies = "01_first_attack", tmp_path / "copies"
    build.build(load(name), KEY, copies, wheel=build._wheel(tmp_path / "wheel"), execute=False)
    (tmp_path / "root").mkdir()
    right = nbformat.writes(source(load(name))).encode()
    results = on_gradescope(copies, name, tmp_path / "root", right, handout.INSTRUCTOR, as_set_up)
    assert {test["output"] for test in results["tests"]} == {"right"}
    venv = tmp_path / "root" / "venv"
    installed = subprocess.run([venv / "bin" / "pip", "show", "--files", "robustlab"], capture_output=True, text=True)
    assert "robustlab/teaching/handout.py" in installed.stdout


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


def test_a_solution_that_fails_leaves_the_copies_that_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students must not get the variants of one key while the grader has those of another."""

    def fails(*arguments: Any) -> None:
        raise RuntimeError("the worked solution has a mistake")

    build.build(load("01_first_attack"), KEY, tmp_path, execute=False)
    before = {path: path.read_bytes() for part in ("student", "autograder") for path in (tmp_path / part).rglob("*.*")}
    monkeypatch.setattr(build, "_instructor", fails)
    with pytest.raises(RuntimeError, match="mistake"):
        build.build(load("01_first_attack"), OTHER, tmp_path)
    after = {path: path.read_bytes() for part in ("student", "autograder") for path in (tmp_path / part).rglob("*.*")}
    assert len(before) > 20 and after == before
