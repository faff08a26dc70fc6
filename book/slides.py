"""Slides of a chapter, for the front of a class: ``make slides CHAPTER=07``.

They are made from what the chapter holds, by Jupyter's own slides (nbconvert and reveal.js): its question, objectives
and threat model, a stack per section with its equations, figures and tables, the broken result with the answer after
it, and the quiz. What the text says about them stands in the speaker's notes (key S). All that a page loads lies beside
it in _build/slides, so no network is needed; ``?print-pdf`` at the end of its address makes it printable.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from nbconvert.exporters import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from pybtex.database import parse_file

from book.chapter_form import Cell, Notebook, source, tags
from book.notebooks import ROOT
from book.quizzes import questions
from book.sphinx_bibliography import authors

SLIDES = ROOT / "_build" / "slides"
TEMPLATES = ROOT / "book" / "templates"
NOTE_WORDS = 220
_FENCE = re.compile(r"^(:{3,}|`{3,})\{([\w:-]+)\} ?(.*?)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
_DISPLAY = re.compile(r"^\$\$\n(.*?)^\$\$.*?$", re.MULTILINE | re.DOTALL)
_ASIDE = re.compile(r"^(:{3,})\{admonition\} (Answer|Method card: [^\n]*)\n(.*?)^\1 *$", re.MULTILINE | re.DOTALL)
LEFT_OUT = {"part-symbols", "part-exercises", "solution", "remove-cell", "quiz", "part-references"}


def slides(path: Path) -> NotebookNode:
    """A notebook whose cells are the slides of the chapter at ``path``, each with its type in the metadata."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    reading = [cell for cell in notebook["cells"] if not LEFT_OUT & set(tags(cell))]
    cells: list[NotebookNode] = []
    section = asked = ""
    for cell in reading:
        is_text = cell["cell_type"] == "markdown"
        for text in _sections(source(cell)) if is_text else [""]:
            heading = re.match(r"## (.*)", text)
            section = plain(heading[1]) if heading else section
            for slide in _of_text(text, set(tags(cell)), asked) if is_text else _of_output(cell):
                if section and slide.metadata["slideshow"]["slide_type"] == "subslide":
                    slide.source = f'<p class="section">{section}</p>\n\n{slide.source}'
                cells.append(slide)
            asked = (_paragraphs(plain(text)) or [asked])[-1]
    cells += _of_quiz(path)
    return new_notebook(cells=cells, metadata={"title": cells[0].source.splitlines()[0].removeprefix("# ")})


def plain(text: str) -> str:
    """MyST as Markdown that any reader shows: roles become their words, directives what they hold."""
    text = re.sub(r"^:{3,}\{margin\}.*?^:{3,} *$|^`{3,}\{margin\}.*?^`{3,} *$|^%.*?$", "", text, flags=re.M | re.S)
    while _FENCE.search(text):
        text = _FENCE.sub(_opened, text)
    text = re.sub(r"^(\$\$) \([\w-]+\)", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^:(?:label|class|nonumber|name):.*\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r"\{cite:[pt]\}`([^`]+)`", lambda found: _cited(found[0], found[1]), text)
    text = re.sub(r"\{(?:numref|eq|prf:ref)\}`[^`]+`", "this", text)
    return re.sub(r"\{[\w:]+\}`([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", text)


def write_slides(path: Path, folder: Path = SLIDES) -> Path:
    """Writes the slides of the chapter at ``path`` to ``folder`` with all that they load; returns the page."""
    exporter = SlidesExporter(extra_template_basedirs=[str(TEMPLATES)], template_name="slides")
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    exporter.reveal_url_prefix, exporter.reveal_theme = "reveal", "book"
    body, _ = exporter.from_notebook_node(slides(path))
    shutil.copytree(TEMPLATES / "slides" / "reveal", folder / "reveal", dirs_exist_ok=True)
    (folder / "reveal" / "dist" / "theme").mkdir(exist_ok=True)
    shutil.copy(TEMPLATES / "slides" / "book.css", folder / "reveal" / "dist" / "theme")
    shutil.copytree(ROOT / "book" / "static" / "mathjax", folder / "mathjax", dirs_exist_ok=True)
    page = folder / f"{path.stem}.html"
    page.write_text(body, encoding="utf-8")
    return page


def _sections(text: str) -> list[str]:
    """A cell's text, cut before each heading of the second level: a cell may hold several sections."""
    inside = [found.span() for found in _FENCE.finditer(text)]
    starts = [found.start() for found in re.finditer(r"^## ", text, re.MULTILINE)]
    cuts = [cut for cut in starts if cut > 0 and not any(start <= cut < end for start, end in inside)]
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def _of_text(text: str, marks: set[str], asked: str) -> Iterator[NotebookNode]:
    """A section begins a stack; its equations and questions follow in their order, each with what leads to it."""
    shown = plain(text).strip()
    head, _, rest = shown.partition("\n")
    prose = _DISPLAY.sub("", rest if head.startswith("#") else shown).strip()
    if head.startswith(("# ", "## ")):
        yield _slide(f"{head}\n\n{_sentences(prose, 2)}", "slide")
    elif {"part-objectives", "part-threat-model"} & marks:
        yield _slide(prose, "subslide")
    yield from _in_order(text, asked)
    if prose:
        yield _slide(" ".join(prose.split()[:NOTE_WORDS]), "notes")


def _in_order(text: str, asked: str, card: str = "") -> Iterator[NotebookNode]:
    """Equations, and questions with their answers; what stands on a method's card bears the card's title.

    Where a figure or a table stands between them, a question was ``asked`` at the end of the cell before.
    """
    start = 0
    for aside in _ASIDE.finditer(text):
        before = text[start : aside.start()]
        yield from _equations(before, card)
        if aside[2] == "Answer":
            yield _slide((_paragraphs(plain(before)) or [asked])[-1], "subslide")
            yield _slide(plain(aside[3]).strip(), "fragment")
        else:
            yield from _in_order(aside[3], asked, f"**{plain(aside[2])}**\n\n")
        start = aside.end()
    yield from _equations(text[start:], card)


def _equations(text: str, card: str) -> Iterator[NotebookNode]:
    """A displayed equation gets a slide with the paragraph that leads to it."""
    text, start = plain(text).strip(), 0
    for found in _DISPLAY.finditer(text):
        before = [part for part in _paragraphs(text[start : found.start()]) if not part.startswith("#")]
        yield _slide(f"{card}{before[-1] if before else ''}\n\n$$\n{found[1]}$$", "subslide")
        start = found.end()


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _of_output(cell: Cell) -> Iterator[NotebookNode]:
    """A figure with the finding of its caption as the heading, or a table; claims and prints stay in the book."""
    figure = cell["metadata"].get("mystnb", {}).get("figure")
    for output in cell["outputs"]:
        data = output.get("data", {})
        if figure and "image/png" in data:
            caption = plain(" ".join(figure["caption"].split()))
            finding = re.search(r"\*\*(.+?)\*\*", caption)
            yield _slide(f"### {finding[1] if finding else caption}", "subslide")
            alt = cell["metadata"]["mystnb"].get("image", {}).get("alt", "")
            yield new_code_cell(outputs=[_picture(data["image/png"], alt)], metadata={"slideshow": {"slide_type": "-"}})
            yield _slide(caption, "notes")
        elif "<table" in "".join(data.get("text/html", "")) and 'class="claims"' not in "".join(data["text/html"]):
            yield _slide("".join(data["text/html"]), "subslide")


def _of_quiz(path: Path) -> Iterator[NotebookNode]:
    for place, question in enumerate(questions(path)):
        choices = "".join(f"<li>{choice.text}</li>" for choice in question.choices)
        yield _slide(f"<h3>{question.text}</h3><ol>{choices}</ol>", "subslide" if place else "slide")
        right = next(choice for choice in question.choices if choice.right)
        yield _slide(f"<b>{right.text}</b> {right.feedback}", "fragment")


def _slide(text: str, kind: str) -> NotebookNode:
    return new_markdown_cell(text, metadata={"slideshow": {"slide_type": kind}})


def _picture(png: str, alt: str) -> NotebookNode:
    image = f'<img src="data:image/png;base64,{"".join(png).strip()}" alt="{alt.replace(chr(34), "&quot;")}">'
    return new_output("display_data", {"text/html": image})


def _opened(found: re.Match[str]) -> str:
    """What a directive holds, below its title."""
    _, name, title, body = found.groups()
    kind = name.partition(":")[2].capitalize() if name.startswith("prf:") else ""
    heading = ". ".join(part for part in (kind, plain(title).strip()) if part)
    return f"**{heading}**\n\n{body.lstrip()}" if heading else body


@cache
def _bibliography() -> Any:
    return parse_file(ROOT / "book" / "references.bib").entries


def _cited(role: str, keys: str) -> str:
    names = [
        (authors(_bibliography()[key.strip()]), _bibliography()[key.strip()].fields["year"]) for key in keys.split(",")
    ]
    if role.startswith("{cite:p}"):
        return "(" + "; ".join(f"{who}, {year}" for who, year in names) + ")"
    return ", ".join(f"{who} ({year})" for who, year in names)


def _sentences(text: str, number: int) -> str:
    """The first sentences of the first paragraph."""
    first = " ".join(text.split("\n\n")[0].split())
    return " ".join(re.split(r"(?<=[.?!]) (?=[A-Z])", first)[:number])


def main() -> int:
    """Writes the slides of the chapters that are named by number, or of all."""
    parser = argparse.ArgumentParser(description="Slides of chapters, to _build/slides.")
    parser.add_argument(
        "chapters", nargs="*", metavar="NN", help="numbers of chapters, such as 07; all where none is given"
    )
    wanted = parser.parse_args().chapters or ["[0-9][0-9]"]
    paths = sorted(path for number in wanted for path in (ROOT / "chapters").glob(f"{number.zfill(2)}_*.ipynb"))
    if not paths:
        print(f"no chapter has the number {' or '.join(wanted)}", file=sys.stderr)
        return 1
    for path in paths:
        print(write_slides(path).as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
