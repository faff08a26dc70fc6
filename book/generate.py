"""Writes the generated pages to book/generated. Run before a build: ``python -m book.generate``.

The pages depend on committed files alone (the catalogue and the stored outputs of the chapters), never on
the clock or the machine. A page whose text has not changed keeps its file, so that the next build need not
read it again.
"""

from __future__ import annotations

from pathlib import Path

from book.generate_claims import claims_page
from book.generate_method_index import method_index
from book.generate_parts import parts_map
from book.generate_times import times_page
from book.notebooks import ROOT, read_chapters
from robustlab.teaching.catalogue import ROWS

GENERATED = ROOT / "book" / "generated"


def pages() -> dict[str, str]:
    """File name to MyST Markdown: three pages, and the map that the landing page includes."""
    chapters = read_chapters()
    titles = {row.key: row.title for row in ROWS}
    return {
        "method_index.md": method_index(ROWS),
        "paper_beside_ours.md": claims_page(chapters, titles),
        "execution_times.md": times_page(chapters),
        "parts.md": parts_map(chapters),
    }


def write_pages(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes those of ``texts`` that differ from what ``folder`` holds; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def main() -> None:
    """Writes all pages and says which ones changed."""
    written = write_pages(GENERATED, pages())
    names = ", ".join(path.name for path in written) or "nothing to do"
    print(f"book/generated: {names}")


if __name__ == "__main__":
    main()
