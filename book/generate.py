"""Writes all that follows from the catalogue and the chapters: ``python -m book.generate``.

Two kinds of files: pages for book/generated, which `make book` writes anew before each build, and texts that are
committed because others read them in the repository: the stubs of the lazy packages, and the changelog's lists of
chapters and methods. A test compares the committed ones with what this command writes.

All depends on committed files alone (the catalogue, the names of the library's functions, the stored outputs of the
chapters), never on the clock or the machine. A page whose text has not changed keeps its file, so that the next build
need not read it again.
"""

from __future__ import annotations

from pathlib import Path

from book.generate_api import api_pages
from book.generate_changelog import changelog
from book.generate_claims import claims_page
from book.generate_course import course_map
from book.generate_method_index import method_index
from book.generate_operators import operators_table
from book.generate_parts import parts_map
from book.generate_stubs import stubs
from book.generate_times import times_page
from book.notebooks import ROOT, read_chapters
from robustlab.teaching.catalogue import ROWS

GENERATED = ROOT / "book" / "generated"


def pages() -> dict[str, str]:
    """File name to MyST Markdown, for book/generated: whole pages, and four pieces that other pages include."""
    chapters = read_chapters()
    titles = {row.key: row.title for row in ROWS}
    return {
        "method_index.md": method_index(ROWS),
        "paper_beside_ours.md": claims_page(chapters, titles),
        "execution_times.md": times_page(chapters),
        "parts.md": parts_map(chapters),
        "course_map.md": course_map(chapters),
        "operators.md": operators_table(),
        **api_pages(chapters),
    }


def committed() -> dict[str, str]:
    """File name, relative to the repository, to the text that it should have."""
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return {**stubs(), "CHANGELOG.md": changelog(log, read_chapters())}


def write_pages(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes those of ``texts`` that differ from what ``folder`` holds; returns the files written."""
    written = []
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def write_generated(folder: Path = GENERATED) -> list[Path]:
    """Writes the pages to ``folder`` and takes away those of earlier runs; returns the files written."""
    texts = pages()
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).as_posix() not in texts:
            path.unlink()
    return write_pages(folder, texts)


def main() -> None:
    """Writes all files and says which ones changed."""
    written = [*write_generated(), *write_pages(ROOT, committed())]
    names = "\n".join(f"  {path.relative_to(ROOT)}" for path in written)
    print(f"written:\n{names}" if written else "nothing to do")


if __name__ == "__main__":
    main()
