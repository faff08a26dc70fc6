"""Each rule on how a chapter reads passes a small chapter in the right form, and sees a planted bug."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from book.chapter_reading import RULES, formulas, letters
from book.check_notebooks import READING

PICTURE = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}
EXERCISE = """```{{exercise-start}} {title}
:label: ex-99-{n}
```

Do it.

:::{{admonition}} Hint
:class: tip, dropdown

Begin.
:::

```{{exercise-end}}
```"""
TITLES = ("Pencil: By hand (●, 10 min)", "Find the error: A bug (●●, 20 min)", "Open: More (●●●, 60 min)")


def text(source: str, *tags: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {"tags": list(tags)}, "source": source}


def code(source: str, *tags: str, picture: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"tags": list(tags)}
    if "hide-input" in tags:
        metadata["jupyter"] = {"source_hidden": True}
    return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [PICTURE] if picture else []}


def chapter() -> dict[str, Any]:
    """A chapter in few cells that keeps every rule of this kind."""
    exercises = [
        text(EXERCISE.format(title=title, n=n) + f"\n\n```{{solution-start}} ex-99-{n}\n```")
        for n, title in enumerate(TITLES)
    ]
    cells = [
        text("# A title\n\nWhy is it so?"),
        code("import torch", "hide-input"),
        code("draw()", "hide-input", "part-hook", picture=True),
        text("**Objectives.** You can.", "part-objectives"),
        text(":::\n| symbol | meaning |\n| --- | --- |\n| $w_i$ | a weight |\n| $b$ | a bias |\n:::", "part-symbols"),
        text("## One\n\n$$\nb + \\langle w, x \\rangle\n$$ (eq-99-a)\n\n:::{admonition} Answer\n:class: dropdown\n:::"),
        code("print('success', about(success, 0, 1))"),
        code("claim('a-b', 'A', True, method='pgd', n=3, refuted_by='B')", "hide-input"),
        code("check(success > 0, 'it succeeds')"),
        code("assert same, 'from scratch = library'", "equality"),
        text("## End\n", "part-summary"),
        text("quiz", "part-quiz"),
        *exercises,
        text(
            "- {cite:t}`a` is short.\n- {cite:t}`b` is long.\n- {cite:t}`c` is new.\n\n"
            "**Tools.** A newer result. An open question.",
            "part-references",
        ),
    ]
    return {"cells": cells, "metadata": {}}


def test_the_small_chapter_keeps_every_rule() -> None:
    assert {rule.__name__: list(rule(chapter())) for rule in RULES} == {rule.__name__: [] for rule in RULES}


def _change(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def plant(notebook: dict[str, Any]) -> None:
        cell = next(cell for cell in notebook["cells"] if old in cell["source"])
        cell["source"] = cell["source"].replace(old, new)

    return plant


def _open(mark: str) -> Callable[[dict[str, Any]], None]:
    def plant(notebook: dict[str, Any]) -> None:
        next(cell for cell in notebook["cells"] if mark in cell["source"])["metadata"] = {"tags": []}

    return plant


def _insert(place: int, cell: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda notebook: notebook["cells"].insert(place, copy.deepcopy(cell))


LONG, MANY = "\n".join(["a = 1"] * 21), [code("\n".join(["a = 1"] * 20)) for _ in range(10)]
PLANTED: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "a statement instead of a question": ("first_screen", _change("so?", "so.")),
    "text before the figure": ("first_screen", _insert(2, text("Words."))),
    "imports in view": ("folded", _open("import torch")),
    "a figure in view": ("folded", _open("draw()")),
    "claims in view": ("folded", _open("claim(")),
    "open in JupyterLab": ("folded", lambda n: n["cells"][1]["metadata"].pop("jupyter")),
    "a long cell": ("visible", _change("check(", LONG + "\ncheck(")),
    "a wide line": ("visible", _change("'it succeeds'", "'" + "x" * 72 + "'")),
    "many lines": ("visible", lambda n: n["cells"].__setitem__(slice(6, 6), MANY)),
    "two tables in a section": (
        "claims_by_section",
        _insert(8, code("claim('c-d', 'C', True, method='pgd', n=3, refuted_by='D')")),
    ),
    "a claim without n": ("claims_by_section", _change("n=3, ", "")),
    "a claim that nothing refutes": ("claims_by_section", _change(", refuted_by='B'", "")),
    "a bare assert": ("numbers", _change("check(success > 0, 'it succeeds')", "assert success > 0")),
    "an assert outside of an equality": ("numbers", _change("check(success > 0,", "assert (success > 0,")),
    "a verdict": ("numbers", _change("print('success', about(success, 0, 1))", "print('it succeeds')")),
    "a symbol without a meaning": ("ledger", _change("b + ", "b + \\zeta ")),
    "a symbol twice": ("ledger", _change("| $b$ | a bias |", "| $b$ | a bias |\n| $b$ | a bound |")),
    "a symbol of the notation": ("ledger", _change("| $b$ |", "| $b$ | a bias |\n| $\\epsilon$ |")),
    "no minutes": ("helps", _change("(●, 10 min)", "(●)")),
    "no hint": ("helps", _change("{admonition} Hint", "{admonition} Note")),
    "nothing for a pencil": ("helps", _change("Pencil: ", "")),
    "no list of readings": ("onward", _change("- {cite:t}`b`", "{cite:t}`b`")),
    "no tools": ("onward", _change("**Tools.**", "")),
    "no question to the reader": ("asks", _change("{admonition} Answer", "{admonition} Note")),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_breaks_its_rule(bug: str) -> None:
    rule, plant = PLANTED[bug]
    notebook = chapter()
    plant(notebook)
    assert list(READING[rule](notebook)), f"the rule {rule!r} does not see it"


def test_every_rule_has_a_planted_bug() -> None:
    assert {rule for rule, _ in PLANTED.values()} == set(READING)


def test_formulas_and_their_letters() -> None:
    found = formulas("A $w_i$ and `$5` cost.\n\n$$\n\\mathrm{logit}(x) + \\lambda\n$$ (eq-1)\n\n```\n$q$\n```")
    assert [letters(formula) for formula in found] == [{"lambda", "x"}, {"w", "i"}]
