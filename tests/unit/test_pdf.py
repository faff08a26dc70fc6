"""The book on paper: the order of its pages, its outline, and where its links lead."""

from __future__ import annotations

import io
from typing import Any

from pypdf import PdfReader, PdfWriter
from pypdf.annotations import Link

from book.notebooks import read_chapters
from book.pdf import Printed, contents, join

SERVED, PUBLISHED = "http://127.0.0.1:8000/", "https://example.org/book/"


def printed(part: str, title: str, address: str, count: int = 1) -> Printed:
    """A page of the book on ``count`` blank sheets, with a link on the last."""
    writer, file = PdfWriter(), io.BytesIO()
    for _ in range(count):
        writer.add_blank_page(200, 200)
    writer.add_annotation(count - 1, Link(rect=(0, 0, 9, 9), url=address))
    writer.write(file)
    return Printed(part, title, PdfReader(file))


def outline(book: PdfReader, items: list[Any] | None = None) -> list[Any]:
    """Titles with the numbers of their pages, nested as they are."""
    items = book.outline if items is None else items
    return [
        outline(book, item) if isinstance(item, list) else (item.title, book.get_destination_page_number(item))
        for item in items
    ]


def test_pages_are_joined_with_an_outline_and_links_to_the_published_book() -> None:
    pages = [
        printed("", "Start", SERVED + "chapters/01.html#fig", 2),
        printed("Attacks", "One", "https://arxiv.org/abs/1"),
        printed("Attacks", "Two", SERVED, 3),
    ]
    file = io.BytesIO()
    join(iter(pages), SERVED, PUBLISHED).write(file)
    book = PdfReader(file)
    assert len(book.pages) == 6
    assert outline(book) == [("Start", 0), ("Attacks", 2), [("One", 2), ("Two", 3)]]
    links = [note.get_object()["/A"]["/URI"] for page in book.pages for note in page.annotations or ()]
    assert links == [PUBLISHED + "chapters/01.html#fig", "https://arxiv.org/abs/1", PUBLISHED]


def test_all_chapters_are_on_paper_and_the_reference_is_not() -> None:
    pages = [page for _, page in contents()]
    assert pages[0] == "book/index"
    assert [page for page in pages if page.startswith("chapters/")] == [f"chapters/{c.stem}" for c in read_chapters()]
    assert "book/glossary" in pages and not any(page.startswith("book/api/") for page in pages)
