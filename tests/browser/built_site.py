"""The pages of the built book, and what a browser is started with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
NOT_BUILT = "the book is not built: run `make book` first"


def pages() -> list[str]:
    """All pages of the built book, as paths below its root; a single telling name if there is none.

    Left out are the page at the root, which only sends readers on to the first page, and the theme's templates.
    """
    found = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
    return [page for page in found if page != "index.html" and not page.startswith("_static/")] or [NOT_BUILT]


def chapters() -> list[str]:
    """The pages that were chapters' notebooks."""
    return [page for page in pages() if page.startswith("chapters/")] or [NOT_BUILT]


def some(found: list[str], number: int) -> list[Any]:
    """Parameters: ``number`` of the pages, the longest and the shortest among them; the others are marked full."""
    by_size = sorted(found, key=lambda page: (HTML / page).stat().st_size if (HTML / page).is_file() else 0)
    kept = {by_size[k * (len(by_size) - 1) // max(number - 1, 1)] for k in range(number)}
    return [page if page in kept else pytest.param(page, marks=pytest.mark.full) for page in found]


def documented_policy() -> str:
    """The Content-Security-Policy that the page *How to use this book* gives to hosts."""
    page = (ROOT / "book" / "how_to_use.md").read_text(encoding="utf-8")
    (policy,) = re.findall(r"^Content-Security-Policy: (.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return " ".join(policy.split())
