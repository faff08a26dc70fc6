"""A Sphinx extension: repairs to the pages that show the library's source code.

The links from source code back to the documentation lead to what is documented.

Viewcode takes it that a module's names are all documented under one prefix. Ours are not: ``pgd`` is documented
as robustlab.attacks.pgd, where readers import it from, and ``pgd_maximize``, from the same file, where it stands.

The list of all source files is made one list: viewcode nests lists in a way that HTML does not allow.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

BACK = re.compile(r'<a class="viewcode-back" href="([^"#]*)#([^"]*)">[^<]*</a>')


def repair(body: str, module: str, documented: Container[str]) -> str:
    """``body`` with each link back turned to a name in ``documented``, or left out where there is none."""

    def target(link: re.Match[str]) -> str:
        name = link.group(2)
        if name in documented:
            return link.group()
        # What follows the prefix that viewcode guessed: "Class" or "Class.method".
        for short in (name.rsplit(".", 2)[-2:], name.rsplit(".", 1)[-1:]):
            full = ".".join([module, *short])
            if full in documented:
                return link.group().replace(f"#{name}", f"#{full}")
        return ""

    return BACK.sub(target, body)


def _repair_page(
    app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: nodes.document | None
) -> None:
    if page == "_modules/index":
        head, start, items = context["body"].partition("<ul>")
        context["body"] = head + start + items.replace("<ul>", "").replace("</ul>", "") + "</ul>"
    elif page.startswith("_modules/") and "body" in context:
        module = page.removeprefix("_modules/").replace("/", ".")
        documented = app.env.get_domain("py").objects  # type: ignore[attr-defined]
        context["body"] = repair(context["body"], module, documented)


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension; called by Sphinx."""
    app.connect("html-page-context", _repair_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
