"""The sidebar's list of pages: what Sphinx makes of all headings, made of the titles alone."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from sphinx.addnodes import compact_paragraph, toctree
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from book.sphinx_sidebar import titles

PAGES = {
    "index": "Book\n====\n\n.. toctree::\n   :titlesonly:\n\n   a\n   b\n",
    "a": "First\n=====\n\nSection\n-------\n\n.. toctree::\n   :titlesonly:\n\n   deep\n\nAnother\n-------\n",
    "b": "Second\n======\n\nSection\n-------\n\nPart\n~~~~\n",
    "deep": "Deep\n====\n\nSection\n-------\n\n.. toctree::\n   :titlesonly:\n\n   deeper\n   beside\n",
    "deeper": "Deeper\n======\n\n.. toctree::\n   :titlesonly:\n\n   deepest\n",
    "beside": "Beside\n======\n",
    "deepest": "Deepest\n=======\n\nSection\n-------\n",
}


def test_of_a_page_its_title_is_left_and_the_pages_below() -> None:
    below = nodes.bullet_list("", _item("Section", toctree(entries=[(None, "deep")])), _item("Another"))
    contents = nodes.bullet_list("", _item("Title", below))
    slim = titles(contents)
    assert slim.astext().split() == ["Title"] and len(list(slim.findall(toctree))) == 1
    assert contents.astext().split() == ["Title", "Section", "Another"]  # the page's own list is as it was


@pytest.mark.slow
def test_the_list_is_the_one_that_sphinx_makes(tmp_path: Path) -> None:
    for name, text in PAGES.items():
        (tmp_path / f"{name}.rst").write_text(text, "utf-8")
    (tmp_path / "conf.py").write_text("extensions = ['book.sphinx_sidebar']\n", "utf-8")
    compared = {}

    def compare(app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
        if page in PAGES:
            for depth, collapse in product((-1, 1, 2, 3, 4), (False, True)):
                options = {"maxdepth": depth, "collapse": collapse, "includehidden": True, "titles_only": True}
                ours, theirs = context["toctree"](**options), app.builder._get_local_toctree(page, **options)  # type: ignore[attr-defined]
                assert ours == theirs and "First" in ours and "Section" not in ours
                compared[page, depth, collapse] = ours

    with docutils_namespace():
        output = tmp_path / "out"
        app = Sphinx(str(tmp_path), str(tmp_path), str(output), str(output), "html", status=None, warning=None)
        app.connect("html-page-context", compare, priority=200)
        app.build()
    assert len(compared) == 10 * len(PAGES)
    assert "Deeper" in compared["a", -1, False] and "Deeper" not in compared["a", 2, False]


def _item(title: str, *below: nodes.Node) -> nodes.list_item:
    return nodes.list_item("", compact_paragraph("", "", nodes.reference("", title)), *below)
