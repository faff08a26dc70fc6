"""The book on paper: its pages, printed by Chromium and joined into one PDF: ``python -m book.pdf``.

The pages come in the order of the table of contents, and stand so in the PDF's outline. Left out is the API reference,
which is made to be searched. A link from page to page leads to the published book.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from playwright.sync_api import Browser, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject
from tqdm import tqdm

from book.notebooks import ROOT
from book.serving import BROWSER_ARGUMENTS, serve
from tests.system import find_browser

HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "html" / "robustlab-book.pdf"

# Printed small below each page, left its title and right the number within it.
FOOTER = """<div style="font-size: 7pt; width: 100%; margin: 0 15mm; display: flex; justify-content: space-between">
<span class="title"></span><span class="pageNumber"></span></div>"""


class Printed(NamedTuple):
    """A page of the book: the part it belongs to, its title, and itself as a PDF."""

    part: str
    title: str
    pdf: PdfReader


def contents(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Part and page, in the order of ``_toc.yml``: all but the API reference."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    yield "", toc["root"]
    for part in toc["parts"]:
        for entry in part["chapters"]:
            if not entry["file"].startswith("book/api/"):
                yield part["caption"], entry["file"]


def print_pages(browser: Browser, address: str, pages: list[tuple[str, str]]) -> Iterator[Printed]:
    """Prints each page when its equations stand."""
    tab = browser.new_page(color_scheme="light")
    for part, page in tqdm(pages, desc="pages", disable=None):
        tab.goto(f"{address}{page}.html", wait_until="load")
        tab.evaluate("window.MathJax?.startup?.promise.then(() => document.fonts.ready).then(() => null)")
        # Pictures load when they come near the screen, which on paper they never do.
        tab.evaluate("""Promise.all([...document.querySelectorAll("img")].map((picture) => {
            picture.loading = "eager";
            return picture.decode().catch(() => null);
        })).then(() => null)""")
        printed = tab.pdf(
            format="A4",
            scale=0.8,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            margin={"top": "15mm", "bottom": "18mm", "left": "15mm", "right": "15mm"},
        )
        yield Printed(part, tab.title().partition(" — ")[0], PdfReader(io.BytesIO(printed)))


def join(pages: Iterator[Printed], served: str, published: str) -> PdfWriter:
    """One PDF of all: an outline by parts, and links that lead to the published book.

    Args:
        pages: what was printed.
        served: the address under which the pages were printed.
        published: the address that links are to have instead.
    """
    book, parts = PdfWriter(), {}
    for part, title, pdf in pages:
        first = len(book.pages)
        book.append(pdf, import_outline=False)
        if part and part not in parts:
            parts[part] = book.add_outline_item(title=part, page_number=first)
        book.add_outline_item(title=title, page_number=first, parent=parts.get(part))
        for page in book.pages[first:]:
            for annotation in page.annotations or ():
                action = annotation.get_object().get("/A", {})
                address = str(action.get("/URI", ""))
                if address.startswith(served):
                    action[NameObject("/URI")] = TextStringObject(published + address.removeprefix(served))
    return book


def main() -> int:
    """Prints the built book."""
    path = find_browser()
    if path is None or not (HTML / "index.html").exists():
        print("A built book and a Chromium are needed: `make pdf` sees to both.", file=sys.stderr)
        return 1
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    with serve(HTML) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_ARGUMENTS)
        book = join(print_pages(browser, address, list(contents())), address, config["html"]["baseurl"])
        browser.close()
    book.add_metadata({"/Title": config["title"], "/Author": config["author"]})
    book.compress_identical_objects()
    book.write(PDF)
    print(f"The book is printed, {len(book.pages)} pages:  {PDF}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
