"""Rules on how a chapter reads: first screen, folded code, symbols, numbers, and what helps a student."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from book.chapter_anatomy import WITHOUT_TINY, chapter_number, markdown_cells
from book.chapter_form import Cell, Notebook, code_cells, first_line, shown, source, tags

VISIBLE_LINES, CELL_LINES, COLUMNS, READINGS = 180, 20, 72, 3
FOLDED = {"hide-input", "remove-input", "hide-cell", "remove-cell"}
_NOTATION = Path(__file__).with_name("notation.md")
_LETTERS = frozenset(
    {"alpha", "beta", "gamma", "delta", "Delta", "epsilon", "eta", "theta", "kappa", "lambda", "Lambda", "mu", "nu"}
    | {"xi", "pi", "Pi", "rho", "sigma", "Sigma", "tau", "phi", "Phi", "psi", "omega", "Omega", "ell", "zeta", "chi"}
)
# Words and layout inside mathematics, which name no symbol. Constants need no entry in a ledger.
_WORDS = re.compile(r"\\(?:text|mathrm|operatorname|mathtt|textbf|begin|end|label|tag|hspace|color)\*?\s*\{[^{}]*\}")
_NORM = re.compile(r"\\ell_(?:\{[^{}]*\}|\\infty|\w)")  # the name of a norm
_CONSTANTS = {"e", "pi"}


def first_screen(notebook: Notebook) -> Iterator[str]:
    """The chapter opens with its question in one sentence, folded imports, and the figure that makes one curious."""
    cells = notebook["cells"]
    opening = re.sub(r"^(?:\(.*\)=\n)?# .*\n", "", source(cells[0])).strip()
    if not opening.endswith("?") or "\n\n" in opening:
        yield "the first cell is not the title and one question"
    hook = next((place for place, cell in enumerate(cells) if "part-hook" in tags(cell)), len(cells))
    if any(cell["cell_type"] == "markdown" for cell in cells[1:hook]):
        yield "text stands between the question and the figure"


def folded(notebook: Notebook) -> Iterator[str]:
    """Imports, plots and claims are folded, in JupyterLab too."""
    for cell in code_cells(notebook):
        why = "imports" if re.search(r"^(?:import|from) ", source(cell), re.MULTILINE) else ""
        why = "a figure" if shown(cell, "image/png") else why
        why = "claims" if re.search(r"^\s*claim\(", source(cell), re.MULTILINE) else why
        hidden = FOLDED | {"solution"}
        if why and not hidden & set(tags(cell)):
            yield f"a cell with {why} is not folded: {first_line(cell)!r}"
        if FOLDED & set(tags(cell)) and not cell["metadata"].get("jupyter", {}).get("source_hidden"):
            yield f"a folded cell is open in JupyterLab: {first_line(cell)!r}"


def visible(notebook: Notebook) -> Iterator[str]:
    """At most 20 lines of 72 columns per cell, 180 lines before the quiz, besides what is folded."""
    total = 0
    for cell in _before_quiz(notebook):
        if cell["cell_type"] != "code" or FOLDED & set(tags(cell)):
            continue
        lines = [line for line in source(cell).splitlines() if line.strip()]
        total += len(lines)
        if len(lines) > CELL_LINES:
            yield f"a visible cell has {len(lines)} lines, want at most {CELL_LINES}: {first_line(cell)!r}"
        if wide := [line for line in lines if len(line) > COLUMNS]:
            yield f"a visible line has more than {COLUMNS} columns: {wide[0]!r}"
    if total > VISIBLE_LINES:
        yield f"{total} visible lines of code before the quiz, want at most {VISIBLE_LINES}"


def claims_by_section(notebook: Notebook) -> Iterator[str]:
    """A section has one cell with claims, and so one table; each says what it was measured on, and what refutes it."""
    section, found = "", Counter[str]()
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            section = (re.findall(r"^##? (.+)", text, re.MULTILINE) or [section])[-1]
        elif calls := _calls(text, "claim"):
            found[section] += 1
            for call in calls:
                missing = {"n", "refuted_by"} - {word.arg for word in call.keywords}
                if missing:
                    yield f"claim {ast.unparse(call.args[0])} does not say {' and '.join(sorted(missing))}"
    yield from (
        f"section {name!r} has {times} cells with claims, want one" for name, times in found.items() if times > 1
    )


def numbers(notebook: Notebook) -> Iterator[str]:
    """Cells print numbers, not verdicts; expectations are checks with words, which a reader's change does not break."""
    for cell in code_cells(notebook):
        tree = ast.parse(source(cell))
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) and (node.msg is None or "equality" not in tags(cell)):
                yield f"a bare assert (want `check` or an equality with words): {ast.unparse(node)[:60]!r}"
        for call in _calls(source(cell), "print"):
            constant = all(isinstance(word, ast.Constant) for word in call.args)
            if call.args and constant and not {"solution", "equality"} & set(tags(cell)):
                yield f"a verdict is printed where numbers should stand: {ast.unparse(call)[:70]!r}"


def ledger(notebook: Notebook) -> Iterator[str]:
    """Each symbol of the chapter stands in its ledger or on the page of notation, once and with one meaning."""
    table = next((source(cell) for cell in notebook["cells"] if "part-symbols" in tags(cell)), "")
    rows = [match[1] for match in re.finditer(r"^(?:\| *|\s*\* - )\$([^$]+)\$", table, re.MULTILINE)]
    keys = [_plain(part) for row in rows for part in re.split(r",\s*(?![^{(\[]*[})\]])", row)]
    notation = {_plain(symbol) for symbol in notation_symbols()}
    yield from (f"symbol {key!r} has two meanings in the ledger" for key, times in Counter(keys).items() if times > 1)
    yield from (f"symbol {key!r} has another meaning on the page of notation" for key in keys if key in notation)
    known = {letter for row in (*rows, *notation_symbols()) for letter in letters(row)} | _CONSTANTS
    used = Counter(letter for cell in _before_quiz(notebook) if cell["cell_type"] == "markdown"
                   for formula in formulas(source(cell)) for letter in letters(formula))  # fmt: skip
    unknown = sorted(set(used) - known)
    if unknown:
        yield f"symbols without a meaning, in neither ledger nor notation: {', '.join(unknown)}"


def helps(notebook: Notebook) -> Iterator[str]:
    """Exercises state their minutes and have a hint; one is for a pencil, one hides an error, one is open."""
    text = "\n".join(source(cell) for cell in markdown_cells(notebook))
    for title, body in re.findall(r"\{exercise-start\} *(.*?)\n(.*?)\{solution-start\}", text, re.DOTALL):
        if not re.search(r"\(●+, \d+ min\)\s*$", title):
            yield f"an exercise does not state its minutes, such as '(●●, 20 min)': {title!r}"
        if not re.search(r"\{admonition\} Hint\s*\n:class:.*\bdropdown\b", body):
            yield f"an exercise has no folded hint: {title!r}"
    if chapter_number(notebook) in WITHOUT_TINY:
        return
    for kind in ("Pencil", "Find the error", "Open"):
        if not re.search(rf"\{{exercise-start\}} *{kind}: ", text):
            yield f"no exercise has a title that starts with '{kind}: '"


def onward(notebook: Notebook) -> Iterator[str]:
    """The chapter ends with annotated readings, tools, a newer result and an open question."""
    cells = notebook["cells"]
    start = next((place for place, cell in enumerate(cells) if "part-references" in tags(cell)), len(cells))
    text = "\n".join(source(cell) for cell in cells[start:])
    readings = re.findall(r"^[-*] .*\{cite", text, re.MULTILINE)
    if len(readings) < READINGS:
        yield f"{len(readings)} annotated readings in a list, want {READINGS}"
    for word in ("tools", "newer", "open question"):
        if not re.search(rf"(?i)\b{word}\b", text):
            yield f"the end says nothing of {word!r}"


def asks(notebook: Notebook) -> Iterator[str]:
    """Every section before the summary asks the reader one question and folds the answer away."""
    if chapter_number(notebook) in WITHOUT_TINY:
        return
    text = "\n\n".join(
        source(cell) for cell in _before_quiz(notebook, "part-summary") if cell["cell_type"] == "markdown"
    )
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        if not re.search(r"\{admonition\} Answer\s*\n:class:.*\bdropdown\b", part):
            yield f"section {part.splitlines()[0]!r} asks the reader nothing with a folded answer"


def formulas(text: str) -> list[str]:
    """The mathematics of a Markdown text."""
    text = re.sub(
        r"^```.*?^```|`[^`\n]*`", lambda m: m[0] if "{" in m[0][:6] else " ", text, flags=re.DOTALL | re.MULTILINE
    )
    return re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL) + re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", text)


def letters(formula: str) -> set[str]:
    """The letters that a formula uses as symbols, Greek ones by name."""
    bare = _WORDS.sub(" ", _NORM.sub(" ", formula))
    greek = {name for name in re.findall(r"\\([A-Za-z]+)", bare) if name in _LETTERS}
    return greek | set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", bare)))


@cache
def notation_symbols() -> tuple[str, ...]:
    """The formulas in the first column of the page of notation."""
    rows = re.findall(r"^\* - (.*)$", _NOTATION.read_text(encoding="utf-8"), re.MULTILINE)
    return tuple(formula for row in rows for formula in re.findall(r"\$([^$]+)\$", row))


def _plain(symbol: str) -> str:
    """A symbol without spaces and what says to what set it belongs."""
    return re.sub(r"\\in\b.*|[=:].*|\\(?:mathrm|mathcal|bar|hat|tilde|text)\b|[\s{}]|\\[ ,;]", "", symbol)


def _calls(text: str, name: str) -> list[ast.Call]:
    found = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return [call for call in found if isinstance(call.func, ast.Name) and call.func.id == name]


def _before_quiz(notebook: Notebook, end: str = "part-quiz") -> list[Cell]:
    cells = notebook["cells"]
    return cells[: next((place for place, cell in enumerate(cells) if end in tags(cell)), len(cells))]


RULES = (first_screen, folded, visible, claims_by_section, numbers, ledger, helps, onward, asks)
