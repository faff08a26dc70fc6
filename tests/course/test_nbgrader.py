"""nbgrader's own commands on our sources, in an environment of its own: in the full tier, where pip reaches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

from assignments import build, cells
from assignments.grading.task import handed_out, load, names
from robustlab.teaching import handout

KEY = "the key of the tests"
HOME = build.ROOT / "_build" / "nbgrader"

pytestmark = [pytest.mark.slow, pytest.mark.full("cells")]


@pytest.fixture(scope="module")
def nbgrader() -> Path:
    """The folder of nbgrader's commands, installed once."""
    commands = HOME / "bin"
    if not (commands / "nbgrader").exists():
        venv.create(HOME, with_pip=True)
        done = subprocess.run([commands / "pip", "install", "--quiet", "nbgrader==0.9.6"], check=False)
        if done.returncode:
            pytest.skip("nbgrader cannot be installed here")
    return commands


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course of nbgrader's with our sources, and our kernel under the name that they ask for."""
    folder = tmp_path_factory.mktemp("course")
    for name in names():
        (folder / "source" / name).mkdir(parents=True)
        (folder / "source" / name / f"{name}.ipynb").write_bytes(load(name).source.read_bytes())
        (folder / "source" / name / "variants").mkdir()
        variant = handout.pack(handed_out(load(name).variant(KEY, handout.INSTRUCTOR)))
        (folder / "source" / name / "variants" / f"{handout.INSTRUCTOR}.safetensors").write_bytes(variant)
    (folder / "nbgrader_config.py").write_text('c = get_config()\nc.CourseDirectory.course_id = "robustness"\n')
    kernel = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    environment = {"PYTHONPATH": str(build.ROOT)}
    kernel.write_text(
        json.dumps({"argv": command, "display_name": "Python 3", "language": "python", "env": environment})
    )
    return folder


def run(nbgrader: Path, course: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{nbgrader}{os.pathsep}{environment['PATH']}"
    environment["JUPYTER_PATH"] = str(course / "jupyter")
    done = subprocess.run(
        [nbgrader / "nbgrader", *arguments], cwd=course, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", names())
def test_its_students_copy_is_ours(name: str, nbgrader: Path, course: Path) -> None:
    run(nbgrader, course, "generate_assignment", name, "--create")
    theirs = nbformat.read(course / "release" / name / f"{name}.ipynb", as_version=4)
    ours = cells.student_copy(nbformat.read(load(name).source, as_version=4))
    differ = [(a.source, b.source) for a, b in zip(theirs.cells, ours.cells, strict=True) if a.source != b.source]
    assert differ == [(f'STUDENT = "{handout.INSTRUCTOR}"', f'STUDENT = "{cells.YOUR_NAME}"')]


@pytest.mark.parametrize("name", names())
def test_its_validation_passes_the_solution_and_not_the_stub(name: str, nbgrader: Path, course: Path) -> None:
    path = course / "source" / name / f"{name}.ipynb"
    assert "Your notebook passes all the tests" in run(nbgrader, course, "validate", str(path))
    stub = path.with_name("stub.ipynb")
    nbformat.write(cells.student_copy(nbformat.read(path, as_version=4)), stub)
    (path.parent / "variants" / "00.safetensors").write_bytes(handout.pack(handed_out(load(name).draw(KEY, "00"))))
    assert "VALIDATION FAILED" in run(nbgrader, course, "validate", str(stub)).upper()
    stub.unlink()
