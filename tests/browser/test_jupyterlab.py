"""Chapters in a real JupyterLab: texts are shown, answers closed. Closed they are, too, where MyST is unknown."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Locator, Page, expect

from book.chapter_form import source, tags
from tests.browser.built_site import ROOT

# One with much mathematics, one with many figures, one with many tables. What is tested here is the same in all others.
CHAPTERS = ["01_life_cycle", "07_white_box", "21_exact"]
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are there, too
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}
RAW = re.compile(r"\{(?:term|eq|ref|numref|doc|cite:?\w*|prf:\w+|py:\w+)\}`|^\s*(?::::|```|\$\$)", re.MULTILINE)


def _read(chapter: str) -> dict[str, Any]:
    return json.loads((ROOT / "chapters" / f"{chapter}.ipynb").read_text(encoding="utf-8"))


def _excerpt(chapter: str) -> dict[str, Any]:
    """The first text, the first theorem, the questions and two solutions: for a whole chapter JupyterLab is slow."""
    notebook = _read(chapter)
    cells = notebook["cells"]
    theorem = next(cell for cell in cells if "{prf:" in source(cell))
    ends = [place for place, cell in enumerate(cells) if "{solution-end}" in source(cell)]
    start = next(place for place, cell in enumerate(cells) if "{exercise-start}" in source(cell))
    questions = [cell for cell in cells if "<fieldset" in source(cell)]
    notebook["cells"] = [cells[0], theorem, *questions, *cells[start : ends[1] + 1]]
    notebook["metadata"] = {"kernelspec": notebook["metadata"]["kernelspec"]}
    return notebook


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab of its own, which neither reads nor writes anything of the user's."""
    folder = tmp_path_factory.mktemp("lab")
    for chapter in CHAPTERS:
        (folder / f"{chapter}.ipynb").write_text(json.dumps(_excerpt(chapter)), encoding="utf-8")
    for name, value in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
    own = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = {**os.environ, **{f"JUPYTER_{name}": str(folder / value) for name, value in own.items()}}
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    environment["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    options += ["--expose-app-in-browser", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    address = f"http://127.0.0.1:{port}/"
    with (folder / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_for(address, server, folder / "log.txt")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        assert server.poll() is None, log.read_text(encoding="utf-8")
        with suppress(OSError), urllib.request.urlopen(f"{address}api", timeout=5):
            return
        time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer: {log.read_text(encoding='utf-8')}")


@pytest.fixture(scope="module")
def page(browser: Browser, lab: str) -> Iterator[Page]:
    """JupyterLab in the browser."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(f"{lab}lab?reset")
    page.wait_for_function("window.jupyterapp?.commands.hasCommand('docmanager:open')", timeout=60_000)
    yield page
    page.close()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_in_jupyterlab(page: Page, chapter: str) -> None:
    page.evaluate("path => void jupyterapp.commands.execute('docmanager:open', { path })", f"{chapter}.ipynb")
    notebook = page.locator(".jp-NotebookPanel:visible").filter(has=page.locator(f"[id^='sol-{chapter[:2]}-']"))
    questions = sum("<fieldset" in source(cell) for cell in _excerpt(chapter)["cells"])
    expect(notebook.locator("fieldset.quiz")).to_have_count(questions, timeout=60_000)
    expect(notebook.locator("details[id^=sol-]")).to_have_count(2, timeout=60_000)
    _check_text(notebook)
    _check_quiz(notebook)
    _check_solutions(notebook)


def _check_text(notebook: Locator) -> None:
    """Roles, directives and formulas are shown, not their source."""
    assert not RAW.findall("\n".join(notebook.locator(".myst").all_inner_texts()))
    assert notebook.locator(".myst .katex").count() > 10
    assert notebook.locator(".myst .katex-error").count() == 0


def _check_quiz(notebook: Locator) -> None:
    """All feedback is closed, and a click on a choice opens its own."""
    assert not any(said.is_visible() for said in notebook.locator("fieldset.quiz details > p").all())
    choice = notebook.locator("fieldset.quiz details").first
    choice.locator("summary").click()
    expect(choice.locator("p")).to_be_visible()


def _check_solutions(notebook: Locator) -> None:
    """Texts are folded and open; code and outputs are hidden."""
    texts, code = notebook.locator("details[id^=sol-]"), notebook.locator(".jp-CodeCell")
    assert not any(text.is_visible() for text in texts.locator("p").all())
    assert code.count() >= 2
    assert not any(place.is_visible() for place in code.locator(".cm-editor, .jp-OutputArea-output").all())
    texts.first.locator("summary").click(position={"x": 5, "y": 5})
    expect(texts.first.locator("p").first).to_be_visible()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_answers_are_closed_where_myst_is_unknown(browser: Browser, chapter: str) -> None:
    """As on Colab or GitHub, whose Markdown knows HTML but neither roles nor directives."""
    page = browser.new_page()
    for cell in _read(chapter)["cells"]:
        if cell["cell_type"] != "markdown" or not {"quiz", "solution"} & set(tags(cell)):
            continue
        page.set_content(MarkdownIt("commonmark").render(source(cell)))
        assert not any(said.is_visible() for said in page.locator("details > :not(summary)").all())
        if "quiz" in tags(cell):
            outside = page.locator("legend, summary")
            assert len(page.inner_text("body")) <= sum(len(text) + 4 for text in outside.all_inner_texts())
        else:
            seen = page.locator("body > p").all_inner_texts()  # fences are shown as code: no text of the solution
            assert {text.strip() for text in seen} <= {"%", ""}, seen
    page.close()
