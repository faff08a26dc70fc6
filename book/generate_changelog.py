"""The parts of CHANGELOG.md that follow from the chapters and the catalogue: which of them there are."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from book.notebooks import Chapter
from robustlab.teaching.catalogue import FOLDERS, ROWS, Row

BEGIN, END = "<!-- {}, written by `python -m book.generate`: -->", "<!-- End of the {}. -->"


def changelog(text: str, chapters: Iterable[Chapter], rows: Sequence[Row] = ROWS) -> str:
    """``text`` with the lists of chapters and of methods, each between its two marks, written anew.

    Raises:
        ValueError: the marks do not stand in the text once each, in their order.
    """
    text = _between("chapters", text, (f"Chapter {chapter.number:02d}: {chapter.title}." for chapter in chapters))
    return _between("methods", text, _families(rows))


def _between(what: str, text: str, entries: Iterable[str]) -> str:
    marks = [BEGIN.format(what.capitalize()), END.format(what)]
    parts = re.split("({}|{})".format(*map(re.escape, marks)), text)
    if parts[1::2] != marks:
        raise ValueError(f"CHANGELOG.md: want {marks[0]!r} and {marks[1]!r} once each, in this order")
    lines = [textwrap.fill(f"- {entry}", 120, subsequent_indent="  ", break_long_words=False) for entry in entries]
    return "".join([*parts[:2], "\n\n", *(f"{line}\n" for line in lines), "\n", *parts[3:]])


def _families(rows: Sequence[Row]) -> Iterator[str]:
    """Folder by folder, the methods that are done."""
    for folder, title in FOLDERS.items():
        keys = ", ".join(f"`{row.key}`" for row in rows if row.folder == folder)
        if keys:
            yield f"{title}: {keys}."
