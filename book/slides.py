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
_LEFT_OUT = {"part-symbols", "part-exercises", "solution", "remove-cell", "quiz", "part-references"}


def slides(path: Path) -> NotebookNode:
    """A notebook whose cells are the slides of the chapter at ``path``, each with its type in the metadata."""
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    reading = [cell for cell in notebook["cells"] if not _LEFT_OUT & set(tags(cell))]
    cells: list[NotebookNode] = []
    section = ""
    for cell in reading:
        heading = re.match(r"## (.*)", source(cell)) if cell["cell_type"] == "markdown" else None
        section = plain(heading[1]) if heading else section
        for slide in _of_text(cell) if cell["cell_type"] == "markdown" else _of_output(cell):
            if section and slide.metadata["slideshow"]["slide_type"] == "subslide":
                slide.source = f'<p class="section">{section}</p>\n\n{slide.source}'
            cells.append(slide)
    cells += _of_quiz(path)
    return new_notebook(cells=cells, metadata={"title": cells[0].source.splitlines()[0].removeprefix("# ")})


def plain(text: str) -> str:
    """MyST as Markdown that any reader shows: roles become their words, directives what they hold."""
    text = re.sub(r"^:{3,}\{margin\}.*?^:{3,} *$|^`{3,}\{margin\}.*?^`{3,} *$|^%.*?$", "", text, flags=re.M | re.S)
    while _FENCE.search(text):
        text = _FENCE.sub(_opened, text)
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


def _of_text(cell: Cell) -> Iterator[NotebookNode]:
    """A stack begins at each heading of the second level; a displayed equation gets a slide with what leads to it."""
    text = plain(source(cell)).strip()
    head, _, rest = text.partition("\n")
    prose = _DISPLAY.sub("", rest if head.startswith("#") else text).strip()
    if head.startswith(("# ", "## ")):
        yield _slide(f"{head}\n\n{_sentences(prose, 2)}", "slide")
    elif {"part-objectives", "part-threat-model"} & set(tags(cell)):
        yield _slide(prose, "subslide")
    start = 0
    for found in _DISPLAY.finditer(text):
        before = [
            part for part in text[start : found.start()].split("\n\n") if part.strip() and not part.startswith("#")
        ]
        yield _slide(f"{before[-1] if before else ''}\n\n$$\n{found[1]}$$", "subslide")
        start = found.end()
    question, _, answer = text.partition("**Answer**")
    if answer:
        yield _slide(question.split("\n\n")[-2 if question.endswith("\n\n") else -1], "subslide")
        yield _slide(answer, "fragment")
    if prose:
        yield _slide(" ".join(prose.split()[:NOTE_WORDS]), "notes")


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
