"""A Sphinx extension: repairs to what other extensions write, found by the tests in the browser.

* Viewcode's links from source code back to the documentation lead to what is documented. It takes it that a
  module's names all stand under one prefix. Ours do not: ``pgd`` is documented as robustlab.attacks.pgd, where
  readers import it from, and ``pgd_maximize``, from the same file, where it stands.
* Viewcode's list of all source files is one list; it nests lists in a way that HTML does not allow.
* docutils promises that a bibliography is a list of items, and then writes none.
* myst-nb labels a folded cell otherwise than its text reads.
* sphinx-proof and sphinx-exercise give the same ids to all proofs, exercises and solutions of a page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

# An alias of a type counts as the built-in's.
OTHERS = re.compile(r'<li><a href="(?!robustlab)[^"]*">[^<]*</a></li>\n?')
SAME_IDS = re.compile(r' id="(?:proof|(?:proof|exercise|solution)-content)"')
BACK = re.compile(r'<a class="viewcode-back" href="([^"#]*)#([^"]*)">[^<]*</a>')


def repair_links_back(body: str, module: str, anchors: Mapping[str, str]) -> str:
    """``body`` with each link back turned to the anchor of its name, or left out where there is none.

    A class that is documented under another name than its module's has an anchor under that name alone.
    """

    def target(link: re.Match[str]) -> str:
        name = link.group(2)
        if name in anchors:
            return link.group().replace(f"#{name}", f"#{anchors[name]}")
        # What follows the prefix that viewcode guessed: "Class" or "Class.method".
        for short in (name.rsplit(".", 2)[-2:], name.rsplit(".", 1)[-1:]):
            full = ".".join([module, *short])
            if full in anchors:
                return link.group().replace(f"#{name}", f"#{anchors[full]}")
        return ""

    return BACK.sub(target, body)


def _repair_page(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: nodes.document | None
) -> None:
    body = context.get("body")
    if not body:
        return
    body = body.replace('role="list" class="citation-list"', 'class="citation-list"')
    body = SAME_IDS.sub("", body)
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    if page == "_modules/index":
        head, start, items = body.partition("<ul>")
        items = OTHERS.sub("", items.replace("<ul>", "").replace("</ul>", ""))
        body = head + start + items + "</ul>"
    elif page.startswith("_modules/"):
        module = page.removeprefix("_modules/").replace("/", ".")
        objects = app.env.get_domain("py").objects  # type: ignore[attr-defined]
        body = repair_links_back(body, module, {name: entry.node_id for name, entry in objects.items()})
    context["body"] = body


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension; called by Sphinx."""
    app.connect("html-page-context", _repair_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
