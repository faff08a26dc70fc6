"""Every committed chapter keeps every rule of the book, and each rule can be broken.

The strict comparison of stored and fresh outputs is nbval's: `make test` collects the notebooks
themselves, `pytest --nbval --nbval-current-env chapters`. What nbval does not see is checked here:
it passes a notebook whose outputs were stripped, and knows nothing of captions, quizzes or length.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from book.chapter_form import Cell, Notebook, code_cells, shown, source, tags
from book.check_notebooks import RULES, broken_rules, chapter_paths, main, read, repeated_claims

pytestmark = pytest.mark.notebook

CHAPTERS = chapter_paths()
_VIEW = "application/vnd.jupyter.widget-view+json"


def test_there_are_chapters() -> None:
    assert CHAPTERS


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_keeps_all_rules(path: Path) -> None:
    assert list(broken_rules(path)) == []


def test_no_two_claims_of_the_book_share_an_id() -> None:
    assert repeated_claims(CHAPTERS) == []
    assert repeated_claims([CHAPTERS[0], CHAPTERS[0]]), "a chapter read twice must repeat its claims"


def test_a_chapter_alone_is_compared_with_the_others_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = tmp_path / CHAPTERS[0].name
    copied.write_bytes(CHAPTERS[0].read_bytes())
    assert main([str(copied)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.fullmatch(r"claim '.*' occurs more than once in the book", line) for line in lines)
    assert main([str(CHAPTERS[0])]) == 0


# A bug for each rule, planted into a copy of the first chapter. -------------------------------------


def _first(notebook: Notebook, wanted: Callable[[Cell], bool]) -> Cell:
    return next(cell for cell in notebook["cells"] if wanted(cell))


def _code(notebook: Notebook, mark: str) -> Cell:
    return _first(notebook, lambda cell: cell["cell_type"] == "code" and mark in tags(cell))


def _figure(notebook: Notebook) -> Cell:
    return _first(notebook, lambda cell: cell["cell_type"] == "code" and bool(shown(cell, "image/png")))


def _claim(notebook: Notebook) -> Cell:
    return _first(notebook, lambda cell: cell["cell_type"] == "code" and "claim(" in source(cell) and cell["outputs"])


def _slider(notebook: Notebook) -> Cell:
    return _first(notebook, lambda cell: cell["cell_type"] == "code" and bool(shown(cell, _VIEW)))


def _text(notebook: Notebook, mark: str) -> Cell:
    return _first(notebook, lambda cell: cell["cell_type"] == "markdown" and mark in source(cell))


def _edit(cell: Cell, old: str, new: str) -> None:
    assert old in source(cell), f"the planted bug finds nothing to break: {old!r}"
    cell["source"] = source(cell).replace(old, new)


def _strip(notebook: Notebook) -> None:
    for cell in code_cells(notebook):
        cell["outputs"], cell["execution_count"] = [], None


def _strip_outputs_only(notebook: Notebook) -> None:
    for cell in code_cells(notebook):
        cell["outputs"] = []


def _swap_order(notebook: Notebook) -> None:
    one, two = code_cells(notebook)[2:4]
    one["execution_count"], two["execution_count"] = two["execution_count"], one["execution_count"]


def _store(text: str, name: str = "stdout") -> Callable[[Notebook], None]:
    def plant(notebook: Notebook) -> None:
        code_cells(notebook)[2]["outputs"] = [{"output_type": "stream", "name": name, "text": text}]

    return plant


def _append(mark: Callable[[Notebook], Cell], text: str) -> Callable[[Notebook], None]:
    def plant(notebook: Notebook) -> None:
        cell = mark(notebook)
        cell["source"] = source(cell) + text

    return plant


def _replace(mark: str, old: str, new: str) -> Callable[[Notebook], None]:
    return lambda notebook: _edit(_text(notebook, mark), old, new)


def _blank_caption(notebook: Notebook) -> None:
    _figure(notebook)["metadata"]["mystnb"]["figure"]["caption"] = ""


def _blank_alt(notebook: Notebook) -> None:
    _figure(notebook)["metadata"]["mystnb"]["image"]["alt"] = ""


def _print_beside_a_figure(notebook: Notebook) -> None:
    _figure(notebook)["outputs"].insert(0, {"output_type": "stream", "name": "stdout", "text": "hello"})


def _drop_static_frames(notebook: Notebook) -> None:
    cells = notebook["cells"]
    del cells[cells.index(_slider(notebook)) - 1]


def _drop_widget_state(notebook: Notebook) -> None:
    del notebook["metadata"]["widgets"]


def _drop_record(notebook: Notebook) -> None:
    _claim(notebook)["outputs"][0]["metadata"] = {}


def _repeat_claim(notebook: Notebook) -> None:
    cells = notebook["cells"]
    cells.append(copy.deepcopy(_claim(notebook)))


def _grow(notebook: Notebook) -> None:
    notebook["metadata"]["ballast"] = "x" * 1_000_000


def _slow(notebook: Notebook) -> None:
    notebook["metadata"]["robustlab_timing"]["runs_s"] = [59.0, 61.0, 62.0]


def _hungry(notebook: Notebook) -> None:
    notebook["metadata"]["robustlab_timing"]["peak_mb"] = 2100


def _run_once(notebook: Notebook) -> None:
    notebook["metadata"]["robustlab_timing"]["runs_s"] = [5.0]


def _untag(mark: str) -> Callable[[Notebook], None]:
    def plant(notebook: Notebook) -> None:
        for cell in notebook["cells"]:
            cell["metadata"]["tags"] = [tag for tag in tags(cell) if tag != mark]

    return plant


def _exchange(one: str, other: str) -> Callable[[Notebook], None]:
    def plant(notebook: Notebook) -> None:
        for cell in notebook["cells"]:
            swap = {one: other, other: one}
            cell["metadata"]["tags"] = [swap.get(tag, tag) for tag in tags(cell)]

    return plant


def _pad_words(notebook: Notebook) -> None:
    _text(notebook, "# ")["source"] = source(_text(notebook, "# ")) + "\n" + "word " * 3000


def _seam(notebook: Notebook, words: int) -> None:
    place = next(place for place, cell in enumerate(notebook["cells"]) if "part-quiz" in tags(cell))
    text = ":::{admonition} Second lecture\n:::\n" + "word " * words
    notebook["cells"].insert(place, {"cell_type": "markdown", "metadata": {}, "source": text})


def _in_the_title(notebook: Notebook) -> None:
    cell = _first(notebook, lambda cell: "```{list-table}" in source(cell))
    _edit(cell, "```{list-table}", "```{list-table} {cite:p}`madry2018`")


def _shorten(notebook: Notebook) -> None:
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _few_cells(notebook: Notebook) -> None:
    keep = code_cells(notebook)[:5]
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown" or cell in keep]


def _open_output(notebook: Notebook) -> None:
    _code(notebook, "solution")["metadata"]["jupyter"]["outputs_hidden"] = False


def _right_choices_first(notebook: Notebook) -> None:
    for cell in notebook["cells"]:
        choices = re.findall(r"<details class=.*?</details>\n", source(cell), re.DOTALL)
        ordered = sorted(choices, key=lambda choice: 'class="wrong"' in choice)
        cell["source"] = source(cell).replace("".join(choices), "".join(ordered)) if choices else source(cell)


PLANTED: dict[str, tuple[str, Callable[[Notebook], None]]] = {
    "stripped": ("executed", _strip),
    "outputs stripped, counts kept": ("executed", _strip_outputs_only),
    "run out of order": ("executed", _swap_order),
    "a path of the machine": ("clean_outputs", _store("read /home/me/data.npz")),
    "a progress bar": ("clean_outputs", _store(" 42%|████▏     | 42/100")),
    "a warning": ("clean_outputs", _store("UserWarning: deprecated")),
    "stderr": ("clean_outputs", _store("hello", "stderr")),
    "a trailing semicolon": ("stable_source", _append(lambda n: code_cells(n)[3], ";")),
    "a cell not compared": ("stable_source", _append(lambda n: code_cells(n)[3], "\n# NBVAL_IGNORE_OUTPUT")),
    "another repository": ("installs", _append(lambda n: code_cells(n)[0], "-fork")),
    "no caption": ("figures", _blank_caption),
    "no alternative text": ("figures", _blank_alt),
    "text beside a figure": ("figures", _print_beside_a_figure),
    "a slider without static frames": ("sliders", _drop_static_frames),
    "a slider without its state": ("sliders", _drop_widget_state),
    "a verdict without its record": ("claims", _drop_record),
    "a claim made twice": ("claims", _repeat_claim),
    "more than a megabyte": ("small", _grow),
    "too slow": ("quick", _slow),
    "too much memory": ("quick", _hungry),
    "timed once": ("quick", _run_once),
    "a part missing": ("parts", _untag("part-repair")),
    "parts in another order": ("parts", _exchange("part-scratch", "part-experiment")),
    "a citation in the title of a table": ("fences", _in_the_title),
    "an equation without a number": ("parts", _replace("$$ (eq-", "$$ (eq-", "$$ (")),
    "a threat model without knowledge": ("parts", _replace("Threat model", "Knowledge", "Wisdom")),
    "too many words": ("length", _pad_words),
    "too many words in the second lecture": ("length", lambda n: _seam(n, 3001)),
    "too few words": ("length", _shorten),
    "too few cells": ("length", _few_cells),
    "two titles": ("length", _append(lambda n: _text(n, "## "), "\n# Another")),
    "a long cell from scratch": ("from_scratch", _append(lambda n: _code(n, "from-scratch"), "\npass" * 20)),
    "the library called from scratch": ("from_scratch", _append(lambda n: _code(n, "from-scratch"), "\nfgsm(f, x)")),
    "no equality asserted": ("from_scratch", lambda n: _code(n, "equality").update(source="print('equal')")),
    "a choice without feedback": ("quiz", _replace("<fieldset", "<p><b>✗", "<b>✗")),
    "two right choices": ("quiz", _replace("<fieldset", 'class="wrong"', 'class="right"')),
    "a wrong choice called correct": ("quiz", _replace("<fieldset", "✗ Not quite.", "✓ Correct.")),
    "an id of another chapter": ("quiz", _replace("<fieldset", 'id="quiz-', 'id="quiz-9')),
    "the right choice always the first": ("quiz", _right_choices_first),
    "visible feedback": ("quiz", _replace("<fieldset", "<details ", "<details open ")),
    "a formula in TeX": ("quiz", _replace("<fieldset", "<legend>", r"<legend>\(x\)")),
    "a blank line in the markup": ("quiz", _replace("<fieldset", "<summary>", "\n\n<summary>")),
    "a solution in view": ("exercises", _replace("{solution-start}", ":class: dropdown", ":class: open")),
    "a stray solution": ("exercises", _replace("{solution-start}", "{solution-start} ", "{solution-start} x")),
    "an exercise without a grade": ("exercises", _replace("{exercise-start}", "(●, 15 min)", "")),
    "a solution's code open in JupyterLab": ("closed", lambda n: _code(n, "solution")["metadata"].pop("jupyter")),
    "a solution's output open in JupyterLab": ("closed", _open_output),
    "a solution's text open on Colab": ("closed", _replace("{solution-start}", "% <details>", "<details>")),
    "a solution's text open at its end": ("closed", _replace("{solution-start}", "% </details>", "% </details")),
    "an exercise without a solution": ("exercises", _untag("solution")),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_breaks_its_rule(bug: str) -> None:
    rule, plant = PLANTED[bug]
    notebook = read(CHAPTERS[0])
    assert list(RULES[rule](notebook)) == [], "the chapter itself breaks the rule"
    plant(notebook)
    assert list(RULES[rule](notebook)), f"the rule {rule!r} does not see it"


def test_each_lecture_has_its_own_words() -> None:
    notebook = read(CHAPTERS[0])
    _seam(notebook, 2990)
    assert list(RULES["length"](notebook)) == []


def test_every_rule_has_a_planted_bug() -> None:
    assert {rule for rule, _ in PLANTED.values()} == set(RULES)
