"""The map of a course, for the page "A course": what each chapter needs, and what one can do after it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from book.chapter_anatomy import markdown_cells
from book.chapter_form import source, tags
from book.myst import list_table
from book.notebooks import ROOT, Chapter

_NEEDS = re.compile(r"\*\*Prerequisites\.\*\*(.*?)(?=\n\n|\*\*Reading)", re.DOTALL)
_ABLE = re.compile(r"^- (.*?)(?=\n- |\n\n)", re.DOTALL | re.MULTILINE)


def course_map(chapters: Sequence[Chapter]) -> str:
    """A table as MyST Markdown, to be included in a page in book/; raises ValueError where a chapter states neither."""
    rows = []
    for chapter in chapters:
        text = objectives(chapter)
        needs, able = _NEEDS.search(text), _ABLE.findall(text.partition("**Objectives.**")[2])
        if needs is None or len(able) < 2:
            raise ValueError(f"{chapter.stem}: its objectives or its prerequisites are not found")
        link = f"{{doc}}`{chapter.number:02d}. {chapter.title} </chapters/{chapter.stem}>`"
        rows.append((link, _line(needs[1]), "; ".join(_line(part).rstrip(".;") for part in able) + "."))
    return list_table(("Chapter", "Needs", "After it you can"), rows, widths=(22, 30, 48))


def objectives(chapter: Chapter) -> str:
    """The text of the chapter that states objectives and prerequisites."""
    notebook = json.loads((ROOT / "chapters" / f"{chapter.stem}.ipynb").read_text(encoding="utf-8"))
    return "\n".join(source(cell) for cell in markdown_cells(notebook) if "part-objectives" in tags(cell)) + "\n\n"


def _line(text: str) -> str:
    """One line; links to chapters beside the notebook work from any page."""
    return re.sub(r"<(\d\d_\w+)>`", r"</chapters/\1>`", " ".join(text.split()))
