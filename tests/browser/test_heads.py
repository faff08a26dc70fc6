"""The heads of the built pages: what search engines, and links on other sites, show. No browser is needed for this."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import urljoin

import yaml

from tests.browser.built_site import HTML, NOT_BUILT, ROOT, pages
from tests.every import every

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
ADDRESS = CONFIG["html"]["baseurl"]
# What Sphinx makes without a document: indices, search, source code.
WITHOUT = ("_modules/", "genindex.html", "py-modindex.html", "search.html")
DOCUMENTS = [page for page in pages() if not page.startswith(WITHOUT)] or [NOT_BUILT]


class _Head(HTMLParser):
    """The contents of a page's meta tags by their name, each as often as it stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name = values.get("name") or values.get("property")
        if tag == "meta" and name:
            self.found.setdefault(name, []).append(values.get("content") or "")


def head(page: str) -> dict[str, list[str]]:
    parser = _Head()
    parser.feed((HTML / page).read_text(encoding="utf-8").partition("</head>")[0])
    return parser.found


@every("page", DOCUMENTS)
def test_a_page_has_a_description_and_a_card(page: str) -> None:
    found = head(page)
    (text,) = found["description"]
    assert found["og:description"] == [text]
    assert 40 <= len(text) <= 200 and text.endswith((".", "?", "!", " …")), text
    assert not set(text) & set("$\\{}<>"), "plain text"
    assert found["og:title"][0] and found["og:site_name"] == [CONFIG["title"]]
    assert found["og:url"] == [ADDRESS + page]
    assert found["twitter:card"] == ["summary_large_image"]
    (picture,) = found["og:image"]
    assert picture == urljoin(ADDRESS, picture) and (HTML / picture.removeprefix(ADDRESS)).is_file()
    assert len(found["og:image:alt"][0]) >= 30


def test_no_two_pages_have_the_same_description() -> None:
    texts = Counter(head(page)["description"][0] for page in DOCUMENTS)
    assert [text for text, number in texts.items() if number > 1] == []


def test_no_page_of_the_reference_is_long() -> None:
    """Of its own, besides the forty kilobytes that all pages share and that grow with the table of contents."""
    sizes = {page: len(article(page).encode()) // 1000 for page in DOCUMENTS if "/api/" in page}
    assert len(sizes) > 100 and {page: kb for page, kb in sizes.items() if kb > 100} == {}


def article(page: str) -> str:
    """What a page holds of its own."""
    text = (HTML / page).read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


@every("page", DOCUMENTS)
def test_no_markup_is_left_on_a_page(page: str) -> None:
    text = (HTML / page).read_text(encoding="utf-8")
    left = re.findall(r"```+\{[^<\n]*|:::+\{[^<\n]*|\{(?:cite|term|numref|prf:ref|eq|doc|ref)[:a-z]*\}`[^<\n]*", text)
    assert not left, left
