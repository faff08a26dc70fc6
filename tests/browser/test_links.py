"""Every link and every address in the built pages leads somewhere. No browser is needed for this."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser.built_site import HTML, pages

LINKS = {"a": "href", "link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src"}
# What the browser loads by itself; for these, another host is wrong even if it answers.
LOADED = {"script", "img", "source", "iframe"}


class _Anchors(HTMLParser):
    """The links of a page, and the names that links may point at."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.names |= {name for name in (values.get("id"), values.get("name")) if name}
        target = values.get(LINKS.get(tag, ""))
        if target:
            self.links.append((tag, target))


@cache
def read(path: Path) -> _Anchors:
    """A page, parsed."""
    parser = _Anchors()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


def repeated_ids(path: Path) -> list[str]:
    """The ids that more than one element of the page at ``path`` has."""
    ids = Counter(re.findall(r'<[^>]*\sid="([^"]*)"', path.read_text(encoding="utf-8")))
    return sorted(name for name, number in ids.items() if number > 1)


def broken_links(path: Path) -> list[str]:
    """What is wrong with the links of the page at ``path``."""
    wrong = []
    for tag, link in read(path).links:
        parts = urlsplit(link)
        if parts.scheme in ("http", "https") or link.startswith("//"):
            if tag in LOADED:
                wrong.append(f"loads from another host: {link}")
            elif not parts.netloc:
                wrong.append(f"names no host: {link}")
            continue
        if parts.scheme:  # mailto:, data:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            wrong.append(f"no such file: {link}")
        elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).names:
            wrong.append(f"no such place: {link}")
    return wrong


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    assert broken_links(HTML / page) == []


@pytest.mark.parametrize("page", pages())
def test_no_id_is_there_twice(page: str) -> None:
    assert repeated_ids(HTML / page) == []
