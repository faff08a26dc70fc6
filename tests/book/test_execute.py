"""`python -m book.execute` stores what strict nbval accepts anywhere, and refuses what it would not."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from nbclient.exceptions import CellExecutionError

from book.execute import execute, install_cell, repository_url, version
from book.outputs import compared_text
from tests.book.specimen import CLAIM, FIGURE, IMPORTS, SLIDER, nbval, read, write

pytestmark = [pytest.mark.notebook, pytest.mark.slow]

_VIEW = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"


@pytest.fixture(scope="module")
def run_twice(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A notebook with a figure, its slider and a claim, executed in two fresh kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(request.config.rootpath))
        path = write(tmp_path_factory.mktemp("book") / "98_specimen.ipynb", IMPORTS, FIGURE, SLIDER, CLAIM)
        execute(path, runs=2)
    return path


def test_strict_nbval_passes_a_slider_and_a_claim_and_sees_a_changed_verdict(run_twice: Path, tmp_path: Path) -> None:
    """Two notebooks in one run: of all cells, only the claim of the second fails."""
    text = run_twice.read_text()
    assert "two — holds" in text
    (tmp_path / "sound.ipynb").write_text(text)
    (tmp_path / "planted.ipynb").write_text(text.replace("two — holds", "two — does not reproduce here"))
    done = nbval(tmp_path)
    failed = re.findall(r"^FAILED (\S+)::Cell (\d+)", done.stdout, flags=re.MULTILINE)
    assert [(Path(name).name, cell) for name, cell in failed] == [("planted.ipynb", "3")], done.stdout
    assert done.returncode == 1 and "Cell outputs differ" in done.stdout and "7 passed" in done.stdout, done.stdout


def test_the_slider_works_without_a_kernel(run_twice: Path) -> None:
    """Its picture, its frames and the link between them all stand in the stored state."""
    notebook = read(run_twice)
    (output,) = notebook["cells"][2]["outputs"]
    assert "".join(output["data"]["text/plain"]) == "Slider: slope from 0.0 to 1.0"
    state = notebook["metadata"]["widgets"][_STATE]["state"]
    models = {key: (model["model_name"], model["state"]) for key, model in state.items()}
    box = models[output["data"][_VIEW]["model_id"]][1]
    handle, stack = (models[child.removeprefix("IPY_MODEL_")] for child in box["children"])
    assert (handle[0], stack[0]) == ("SelectionSliderModel", "StackModel")
    assert handle[1]["_options_labels"] == ["0.0", "0.5", "1.0"]
    links = [body for name, body in models.values() if name == "LinkModel"]
    assert [(end[0] in box["children"], end[1]) for end in (links[0]["source"], links[0]["target"])] == [
        (True, "index"),
        (True, "selected_index"),
    ]
    frames = [models[child.removeprefix("IPY_MODEL_")][1]["value"] for child in stack[1]["children"]]
    assert len(set(frames)) == 3
    for frame, label in zip(frames, handle[1]["_options_labels"], strict=True):
        assert f'alt="A line, slope {label}"' in frame
        assert base64.b64decode(frame.partition("base64,")[2].partition('"')[0]).startswith(b"\x89PNG")


def test_nothing_stored_says_where_and_when_it_ran(run_twice: Path) -> None:
    notebook = read(run_twice)
    assert "version" not in notebook["metadata"]["language_info"]
    assert all("execution" not in cell["metadata"] for cell in notebook["cells"])
    assert len(notebook["metadata"]["robustlab_timing"]["runs_s"]) == 2
    assert 50 < notebook["metadata"]["robustlab_timing"]["peak_mb"] < 3000


@pytest.mark.full
def test_names_of_widgets_are_the_same_in_every_run(run_twice: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    again = tmp_path / run_twice.name
    again.write_text(run_twice.read_text())
    execute(again, runs=1)
    before, after = read(run_twice), read(again)
    assert list(before["metadata"]["widgets"][_STATE]["state"]) == list(after["metadata"]["widgets"][_STATE]["state"])


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("import sys; print('careful', file=sys.stderr)", "stderr is stored"),
        ("import warnings; warnings.warn('old')", "stderr is stored|different text in different runs"),
        ("import os; print(os.getcwd() + '/x')", "a path of the machine"),
        ("print('100%|##########| 3/3 [00:01<00:00, 2.1it/s]')", "a progress bar"),
        ("object()", "an object's address|different text in different runs"),
        ("import random; print(random.random())", "different text in different runs"),
    ],
)
def test_execute_refuses_what_would_not_be_the_same_elsewhere(tmp_path: Path, cell: str, complaint: str) -> None:
    path = write(tmp_path / "bad.ipynb", cell)
    before = path.read_text()
    with pytest.raises(ValueError, match=complaint):
        execute(path, runs=2 if "random" in cell else 1)
    assert path.read_text() == before, "a refused notebook is left as it was"


def test_execute_raises_where_a_cell_fails(tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(write(tmp_path / "bad.ipynb", "1 / 0"), runs=1)


def test_the_install_cell_takes_the_address_from_the_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "install.ipynb", "# old text")
    notebook = read(path)
    notebook["cells"][0]["metadata"]["tags"] = ["install"]
    path.write_text(json.dumps(notebook))
    execute(path, runs=1)
    assert "".join(read(path)["cells"][0]["source"]) == install_cell(repository_url())
    assert repository_url() in install_cell(repository_url())


def test_the_install_cell_names_the_version(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\nversion = "7.8.9"\n')
    assert version(project) == "7.8.9" and f"@v{version()}" in install_cell("https://example.org/book")


@pytest.mark.parametrize(("hosted", "present", "installs"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_the_install_cell_installs_only_where_it_must(monkeypatch: pytest.MonkeyPatch, hosted: bool, present: bool,
                                                      installs: int) -> None:  # fmt: skip
    commands: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **options: commands.append(command))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if present else None)
    if hosted:
        monkeypatch.setenv("BINDER_SERVICE_HOST", "10.0.0.1")
    else:
        monkeypatch.delenv("BINDER_SERVICE_HOST", raising=False)
    exec(compile(install_cell("https://example.org/book"), "cell", "exec"), {})
    assert len(commands) == installs
    if installs:
        assert commands[0][-1] == f"robustlab @ git+https://example.org/book@v{version()}"


def test_a_stream_in_pieces_is_one_text() -> None:
    def cell(*pieces: str) -> dict[str, object]:
        return {"outputs": [{"output_type": "stream", "name": "stdout", "text": piece} for piece in pieces]}

    assert compared_text(cell("first\n", "second\n")) == compared_text(cell("first\nsecond\n")) == "first\nsecond\n"
