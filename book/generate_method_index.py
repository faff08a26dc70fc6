"""The page "Method index", from the catalogue: every method, its source, its chapter, and whether it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from pybtex.database import parse_file

from book.myst import list_table, page
from book.notebooks import ROOT, Chapter, read_chapters
from robustlab.teaching.catalogue import KINDS, SECTIONS, Row

HEADER = ("Method", "Source", "Kind", "Chapter", "Status")
WIDTHS = (30, 25, 17, 13, 15)

INTRODUCTION = """
Every attack, defense and verifier that the survey {{cite:p}}`chen2022holistic` cites, section by section, with a
few that it does not cite but that a reader will look for. {done} of {all} methods are here; the others are to come.
The name in code letters is the method's key, under which claims and files refer to it. A key that is a link leads to
the function's page in the API reference.
"""


def method_index(rows: Sequence[Row], chapters: Sequence[Chapter] | None = None) -> str:
    """The page as MyST Markdown, for book/generated.

    Args:
        rows: the catalogue.
        chapters: the chapters there are, to which the page links; None reads those of the repository.
    """
    links = {f"{chapter.number:02d}": chapter for chapter in (read_chapters() if chapters is None else chapters)}
    introduction = INTRODUCTION.format(done=sum(row.done for row in rows), all=len(rows))
    return "(method-index)=\n" + page("Method index", introduction, *_sections(rows, links))


def _sections(rows: Sequence[Row], links: Mapping[str, Chapter]) -> Iterator[str]:
    for section, title in SECTIONS.items():
        own = sorted((row for row in rows if row.section == section), key=lambda row: row.chapter)
        if own:
            done = sum(row.done for row in own)
            yield f"## {section} {title}"
            yield f"{done} of {len(own)} done."
            yield list_table(HEADER, [_cells(row, links) for row in own], WIDTHS, filterable=True)


def _cells(row: Row, links: Mapping[str, Chapter]) -> tuple[str, ...]:
    """One line of the table."""
    key = f"{{py:obj}}`{row.key} <{row.public_name}>`" if row.done else f"`{row.key}`"
    beyond = "" if row.cites[0] in cited_by_the_survey() else " (beyond the survey)"
    source = f"{{cite:t}}`{','.join(row.cites)}`{beyond}"
    where = ", ".join(_chapter(number, links) for number in sorted(row.chapters))
    return f"{row.title}, {key}", source, KINDS[row.kind], where, "done" if row.done else "to come"


@cache
def cited_by_the_survey() -> frozenset[str]:
    """The keys of the bibliography that are the survey's own references."""
    entries = parse_file(str(ROOT / "book" / "references.bib"), encoding="utf-8").entries
    return frozenset(key for key, entry in entries.items() if entry.fields["keywords"] == "survey")


def _chapter(number: str, links: Mapping[str, Chapter]) -> str:
    """A link where the chapter exists, its number where it does not."""
    if number not in links:
        return number
    return f"[{number}](../../chapters/{links[number].stem}.ipynb)"
