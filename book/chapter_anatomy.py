"""Rules on the content of a chapter: its parts and their order, its length, its quiz and exercises."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from book.chapter_form import Cell, Notebook, code_cells, first_line, shown, source, tags

PARTS = (
    "part-hook",
    "part-objectives",
    "part-threat-model",
    "part-symbols",
    "part-tiny",
    "part-mathematics",
    "part-scratch",
    "part-equality",
    "part-experiment",
    "part-finding",
    "part-wrong",
    "part-repair",
    "part-summary",
    "part-quiz",
    "part-exercises",
    "part-references",
)
# Of the first twelve chapters, three are recast whole; the other nine have no tiny case by hand.
WITHOUT_TINY = frozenset({"02", "03", "04", "06", "08", "16", "21", "22", "23"})
WORDS, CODE_CELLS, SCRATCH_LINES, QUESTIONS = (1500, 3000), (12, 45), 20, (3, 5)
GRADES = ("●", "●●", "●●●")
VERDICTS = {"right": "✓ Correct.", "wrong": "✗ Not quite."}
_FOLD, _FOLD_ENDS = "% <details><summary>Solution</summary>", "% </details>"
_WANTED = {
    "part-objectives": (r"(?i)objectives", r"(?i)prerequisites", r"(?i)reading time", r"(?i)running time"),
    "part-threat-model": (r"(?i)threat model", r"(?i)\bnorm\b", r"(?i)budget|ε|epsilon", r"(?i)knowledge", r"(?i)quer"),
    "part-symbols": (r"(?i)dropdown", r"\|[ :-]*-{2,}|list-table"),
    "part-mathematics": (r"\$\$\s*\(eq-\d\d-", r"\{prf:(?:definition|theorem|proposition|lemma)\}"),
    "part-summary": (r"(?i)\bcost\b", r"(?i)guarantee", r"\|[ :-]*-{2,}|list-table"),
    "part-references": (r"\{cite", r"\{term\}", r"\{py:(?:func|class|mod|obj|meth)\}"),
}


def markdown_cells(notebook: Notebook) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def parts(notebook: Notebook) -> Iterator[str]:
    """All parts of the anatomy are there, in order, and hold what they must."""
    cells, wanted = notebook["cells"], parts_of(chapter_number(notebook))
    starts = {part: [i for i, cell in enumerate(cells) if part in tags(cell)] for part in wanted}
    for part in (part for part, found in starts.items() if not found):
        yield f"no cell is tagged {part!r}"
    present = [part for part in wanted if starts[part]]
    for before, after in itertools.pairwise(present):
        if starts[before][0] >= starts[after][0]:
            yield f"{before!r} must come before {after!r}"
    for place, part in enumerate(present):
        end = starts[present[place + 1]][0] if place + 1 < len(present) else len(cells)
        text = "\n".join(source(cell) for cell in cells[starts[part][0] : max(end, starts[part][0] + 1)])
        yield from (
            f"{part!r} holds nothing like /{want}/" for want in _WANTED.get(part, ()) if not re.search(want, text)
        )
    for part in ("part-hook", "part-finding"):
        for place in starts[part][:1]:
            if cells[place]["cell_type"] != "code" or not shown(cells[place], "image/png"):
                yield f"the cell tagged {part!r} shows no figure"


def parts_of(number: str) -> tuple[str, ...]:
    """The parts of the chapter with this number, in order."""
    return tuple(part for part in PARTS if part != "part-tiny" or number not in WITHOUT_TINY)


def length(notebook: Notebook) -> Iterator[str]:
    """1,500 words of prose, at most 3,000 a lecture, 12 to 45 code cells besides the solutions, one title."""
    cells, words = sum("solution" not in tags(cell) for cell in code_cells(notebook)), word_count(notebook)
    longest = max(map(word_count, lectures(notebook)))
    if words < WORDS[0] or longest > WORDS[1]:
        yield f"{words} words, {longest} in a lecture, want {WORDS[0]} to {WORDS[1]}"
    if not CODE_CELLS[0] <= cells <= CODE_CELLS[1]:
        yield f"{cells} code cells besides solutions, want {CODE_CELLS[0]} to {CODE_CELLS[1]}"
    titles = re.findall(r"^# .+", "\n".join(source(cell) for cell in markdown_cells(notebook)), re.MULTILINE)
    if len(titles) != 1:
        yield f"want one title, got {titles}"


def lectures(notebook: Notebook) -> list[Notebook]:
    """The two lectures of a chapter with a marked seam, or its only one, up to the quiz."""
    cells = notebook["cells"]
    seams = [place for place, cell in enumerate(cells) if "{admonition} Second lecture" in source(cell)]
    return [{**notebook, "cells": cells[start:end]} for start, end in itertools.pairwise([0, *seams, len(cells)])]


def word_count(notebook: Notebook) -> int:
    """Words of the prose up to the quiz, without ledger, mathematics and the lines of directives."""
    reading = itertools.takewhile(lambda cell: "part-quiz" not in tags(cell), markdown_cells(notebook))
    text = "\n".join(source(cell) for cell in reading if "part-symbols" not in tags(cell))
    for noise in (r"\$\$.*?\$\$", r"\$[^$]*\$", r"^(?:```|:::|:\w+:).*$", r"\{[\w:]+\}", r"[|`*#>\-]+"):
        text = re.sub(noise, " ", text, flags=re.DOTALL if "$$" in noise else re.MULTILINE)
    return len(re.findall(r"[^\W\d_][\w'’.-]*", text))


def from_scratch(notebook: Notebook) -> Iterator[str]:
    """The leading method is written from scratch in short cells, then asserted equal to the library's."""
    scratch = [cell for cell in code_cells(notebook) if "from-scratch" in tags(cell)]
    equality = [cell for cell in code_cells(notebook) if "equality" in tags(cell)]
    if not scratch or not equality:
        yield f"{len(scratch)} cells tagged 'from-scratch', {len(equality)} tagged 'equality': want some of each"
    for cell in scratch:
        lines = [line for line in source(cell).splitlines() if line.strip()]
        if len(lines) > SCRATCH_LINES:
            yield f"a cell from scratch has {len(lines)} lines, want at most {SCRATCH_LINES}: {first_line(cell)!r}"
        if re.search(r"robustlab[.\w]*\.attacks|\b(?:fgsm|bim|pgd)\((?!self)", source(cell).replace("def ", "")):
            yield f"a cell from scratch calls the library: {first_line(cell)!r}"
    for cell in equality:
        if not re.search(r"^\s*assert\b|assert_close\(", source(cell), re.MULTILINE):
            yield f"a cell tagged 'equality' asserts nothing: {first_line(cell)!r}"


class _Quiz(HTMLParser):
    """Collects what a question's markup holds: its ids, the kinds of its choices, and the texts by their element."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.kinds: list[str] = []
        self.open = False
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "fieldset":
            self.ids.append(found.get("id") or "")
        elif tag == "details":
            self.kinds.append(found.get("class") or "")
            self.open |= "open" in found
        if tag in ("legend", "summary", "p"):
            self.texts.append((tag, ""))

    def handle_data(self, data: str) -> None:
        if self.texts:
            tag, text = self.texts[-1]
            self.texts[-1] = (tag, text + data)

    def of(self, wanted: str) -> list[str]:
        return [text.strip() for tag, text in self.texts if tag == wanted]


def quiz(notebook: Notebook) -> Iterator[str]:
    """Three to five questions; each choice is a fold with its feedback, one is right; ids follow from the chapter.

    The right choices of a chapter do not all stand in the same place.

    Nothing of this needs a script or a style: in JupyterLab and on Colab the feedback is closed, too.
    """
    cells = [source(cell) for cell in markdown_cells(notebook) if "<fieldset" in source(cell)]
    if not QUESTIONS[0] <= len(cells) <= QUESTIONS[1]:
        yield f"{len(cells)} quiz questions, want {QUESTIONS[0]} to {QUESTIONS[1]}"
    number, right = chapter_number(notebook), set[int]()
    for place, text in enumerate(cells, start=1):
        want, found = f"quiz-{number}-{place}", _Quiz()
        found.feed(text)
        choices, feedback = found.of("summary"), found.of("p")
        if found.ids != [want]:
            yield f"question {place}: the fieldset's id must be {want!r}"
        if "\n\n" in text.strip():
            yield f"question {place}: a blank line ends the markup"
        if re.search(r"\\\(|\$", text):
            yield f"question {place}: formulas must be HTML (<i>x</i><sub>2</sub>): in HTML, notebooks show no TeX"
        if len(choices) < 3 or len(set(choices)) != len(choices):
            yield f"question {place}: want at least three different choices, got {choices}"
        if [tag for tag, _ in found.texts] != ["legend", *["summary", "p"] * len(found.kinds)]:
            yield f"question {place}: want one question, then for each choice a <details> of <summary> and <p>"
        if found.open:
            yield f"question {place}: a choice stands open, and its feedback can be read"
        if found.kinds.count("right") != 1 or set(found.kinds) - {"right", "wrong"}:
            yield f"question {place}: want exactly one correct choice, got the classes {found.kinds}"
        right |= {where for where, kind in enumerate(found.kinds, start=1) if kind == "right"}
        for kind, said in zip(found.kinds, feedback, strict=False):
            if not said.startswith(VERDICTS.get(kind, "?")):
                yield f"question {place}: the feedback of a {kind} choice must begin with {VERDICTS.get(kind)!r}"
        if any(len(said.split()) < least for least, some in ((4, found.of("legend")), (6, feedback)) for said in some):
            yield f"question {place}: the question or a feedback is too short"
    if len(cells) > 1 and len(right) == 1:
        yield f"in every question choice {right.pop()} is the correct one: a reader sees that before the answers"


def exercises(notebook: Notebook) -> Iterator[str]:
    """Exercises of all three grades, each followed by a hidden solution with a cell that runs."""
    grades, open_exercise, code_inside = set(), "", 0
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "code":
            code_inside += "solution" in tags(cell)
            continue
        for title, label in re.findall(r"\{exercise-start\}[ ]*(.*)\n:label:[ ]*(\S+)", text):
            grade = re.search(r"\((●+)(?:, \d+ min)?\)$", title.strip())
            grades.add(grade[1] if grade else "none")
            if open_exercise:
                yield f"exercise {open_exercise!r} has no solution after it"
            open_exercise = label
        for label, options in re.findall(r"\{solution-start\}[ ]*(\S+)\n((?::.*\n)*)", text):
            if label != open_exercise:
                yield f"a solution answers {label!r}, but the exercise before it is {open_exercise!r}"
            if ":class: dropdown" not in options or "solution" not in tags(cell):
                yield f"the solution of {label!r} is not hidden, or not tagged 'solution'"
            code_inside = 0
        if "{solution-end}" in text:
            if not code_inside:
                yield f"the solution of {open_exercise!r} has no code that runs"
            open_exercise = ""
    if open_exercise:
        yield f"exercise {open_exercise!r} has no solution after it"
    if grades != set(GRADES):
        yield f"want exercises of the grades {', '.join(GRADES)}, got {sorted(grades)}"


def closed(notebook: Notebook) -> Iterator[str]:
    """Solutions are closed in JupyterLab, code and outputs, and their texts also where MyST is unknown, as on Colab."""
    for cell in (cell for cell in notebook["cells"] if "solution" in tags(cell)):
        hidden, text = cell["metadata"].get("jupyter", {}), source(cell).strip()
        if cell["cell_type"] == "code":
            if not (hidden.get("source_hidden") and hidden.get("outputs_hidden")):
                yield f"a solution's code or its outputs are open in JupyterLab: {first_line(cell)!r}"
            continue
        body = re.sub(r"^(`{3,}|:{3,})\{solution-(?:start|end)\}.*?\n\1", "", text, flags=re.DOTALL).strip()
        if body and not (body.startswith(_FOLD) and body.endswith(_FOLD_ENDS)):
            yield f"a solution's text is not between the lines {_FOLD!r} and {_FOLD_ENDS!r}: {first_line(cell)!r}"


def chapter_number(notebook: Notebook) -> str:
    """The two digits that the chapter's equations, figures and questions carry."""
    found = re.search(r"\(eq-(\d\d)-", "\n".join(source(cell) for cell in markdown_cells(notebook)))
    return found[1] if found else "??"


RULES = (parts, length, from_scratch, quiz, exercises, closed)
