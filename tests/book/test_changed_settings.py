"""A reader who changes ε, model or data, as the book invites them to, gets reports and numbers, and no error.

A chapter's cell tagged ``settings`` assigns what a reader may change, one name per line, and its metadata has other
values to try: ``{"robustlab_try": {"eps": "0.05", "net": "'mnist_mlp'"}}``. Here the chapter runs with each of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from book.check_notebooks import chapter_paths
from robustlab.teaching.reports import STRICT

pytestmark = [pytest.mark.notebook, pytest.mark.slow]
ALWAYS = ("01_life_cycle:eps", "07_white_box:net")  # `make test` runs these two and those of changed chapters
TRY = "robustlab_try"
ROOT = str(Path(__file__).resolve().parents[2])


def settings(notebook: Any) -> Iterator[Any]:
    """The cells that hold what a reader may change."""
    return (cell for cell in notebook.cells if "settings" in cell.metadata.get("tags", ()))


def changed(notebook: Any, name: str, value: str) -> Any:
    """The notebook with another value of ``name``."""
    pattern = re.compile(rf"^{name} = [^#\n]*", re.MULTILINE)
    cells = [cell for cell in settings(notebook) if name in cell.metadata.get(TRY, {})]
    assert len(cells) == 1 and len(pattern.findall(cells[0].source)) == 1, f"want one line '{name} = ...'"
    cells[0].source = pattern.sub(f"{name} = {value}", cells[0].source)
    return notebook


def first_error(notebook: Any, folder: Path, timeout: int = 300) -> str:
    """What the first failing cell says; "" where all run."""
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": folder}})
    try:
        with client.setup_kernel(env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", STRICT: "0"}):
            for place, cell in enumerate(notebook.cells):
                client.execute_cell(cell, place)
    except CellExecutionError as error:
        return f"{cell.source}\n{error.ename}: {error.evalue}"
    return ""


def cases() -> Iterator[Any]:
    for path in chapter_paths():
        for cell in settings(nbformat.read(path, as_version=4)):
            for name, value in cell.metadata.get(TRY, {}).items():
                case = f"{path.stem}:{name}"
                marks = () if case in ALWAYS else (pytest.mark.full(path.stem),)
                yield pytest.param(path, name, value, id=case, marks=marks)


@pytest.mark.parametrize(("path", "name", "value"), list(cases()))
def test_a_chapter_runs_with_another_value(path: Path, name: str, value: str) -> None:
    assert first_error(changed(nbformat.read(path, as_version=4), name, value), path.parent) == ""


def specimen(*last: str) -> Any:
    cell = nbformat.v4.new_code_cell("eps = 0.1  # the budget\nsteps = 3")
    cell.metadata = nbformat.from_dict({"tags": ["settings"], TRY: {"eps": "0.5", "steps": "9"}})
    checks = nbformat.v4.new_code_cell(
        "from robustlab.teaching.reports import about, check\nfrom robustlab.teaching.claims import claim\n"
        "check(eps < 0.2, 'a small budget')\nprint(about(eps, 0, 0.2))\n"
        "claim('a-b', 'Small', eps < 0.2, method='pgd', ours=eps)"
    )
    return nbformat.v4.new_notebook(cells=[cell, checks, *map(nbformat.v4.new_code_cell, last)])


def test_what_no_longer_holds_is_reported(tmp_path: Path) -> None:
    notebook = changed(specimen(), "eps", "0.5")
    assert first_error(notebook, tmp_path) == ""
    said = "".join(str(output.get("text", output.get("data"))) for output in notebook.cells[1].outputs)
    assert said.count("here it does not hold") == 2 and "here it is otherwise" in said


def test_a_bare_error_is_seen(tmp_path: Path) -> None:
    assert "AssertionError" in first_error(changed(specimen("assert eps < 0.2"), "eps", "0.5"), tmp_path)
    with pytest.raises(AssertionError, match="want one line"):
        changed(specimen(), "norm", "'l2'")
