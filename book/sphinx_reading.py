"""A Sphinx extension: what helps a reader on every page.

* A link to a term of the glossary carries its definition, which book.js shows beside the link.
* The sidebar names the chapters that are to come, in gray and without a link.
* Pictures below the first are loaded when they come near.
* The button that suggests an edit is left out where the page is generated: there is nothing to edit.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from book.generate_parts import PARTS, Part

GLOSSARY = "book/glossary"
_TERM = re.compile(r'<a class="reference internal" href="[^"]*#(term-[^"]+)"')
_LIST = r'<p aria-level="2" class="caption"[^>]*><span class="caption-text">{}</span></p>\s*<ul[^>]*>(.*?)</ul>'
_AFTER_ALL = "Results"
_NUMBER = re.compile(r'<li class="toctree-l1[^"]*"><a[^>]*>(\d+)\.')


def definitions(doctree: nodes.document) -> dict[str, str]:
    """The definition of each term by its anchor, as text with TeX between \\( and \\)."""
    found = {}
    for item in doctree.findall(nodes.definition_list_item):
        text = re.sub(r" (?=[.,;])", "", " ".join(_text(item[-1]).split()))
        found.update({name: text for term in item.findall(nodes.term) for name in term["ids"]})
    return found


def _text(node: nodes.Node) -> str:
    if isinstance(node, nodes.math):
        return rf"\({node.astext()}\)"
    if isinstance(node, pending_xref) and node.get("refdomain") == "cite":
        return ""
    return "".join(map(_text, node.children)) if node.children else node.astext()


def with_definitions(body: str, terms: Mapping[str, str]) -> str:
    """``body``, each link to a term with the term's definition."""

    def add(link: re.Match[str]) -> str:
        text = terms.get(link[1])
        return f'{link[0]} data-card="{html.escape(text)}"' if text else link[0]

    return _TERM.sub(add, body)


def lazy(body: str) -> str:
    """``body``, whose pictures but the first wait until they are near the window."""
    head, first, rest = body.partition("<img ")
    return head + first + rest.replace("<img ", '<img loading="lazy" ')


def with_planned(contents: str) -> str:
    """The sidebar's contents, with the chapters to come in their places."""
    following = _AFTER_ALL
    for part in reversed(PARTS):
        found = re.search(_LIST.format(re.escape(part.title)), contents, re.DOTALL)
        if found:
            contents = contents[: found.start(1)] + _merged(found[1], part) + contents[found.end(1) :]
        elif before := re.search(_LIST.format(re.escape(following)), contents, re.DOTALL):
            title = (
                f'<p aria-level="2" class="caption" role="heading"><span class="caption-text">{part.title}</span></p>'
            )
            items = f'{title}<ul class="nav bd-sidenav">{_merged("", part)}</ul>'
            contents = contents[: before.start()] + items + contents[before.start() :]
        following = part.title
    return contents


def _merged(items: str, part: Part) -> str:
    """A list's items, and those of the part's chapters that are not among them, by number."""
    numbers = ((_NUMBER.match(item), item) for item in re.split(r"(?=<li )", items))
    there = {int(number[1]): item for number, item in numbers if number}
    hidden = '<span class="visually-hidden"> (to come)</span>'
    planned = {
        number: f'<li class="toctree-l1 to-come"><span>{number}. {html.escape(title)}{hidden}</span></li>'
        for number, title in part.chapters.items()
    }
    return "".join(item for _, item in sorted({**planned, **there}.items()))


@cache
def _terms(env: BuildEnvironment) -> dict[str, str]:
    return definitions(env.get_doctree(GLOSSARY)) if GLOSSARY in env.found_docs else {}


def _offer(app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: nodes.document | None) -> None:
    context["with_planned"] = with_planned


def _help(app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: nodes.document | None) -> None:
    if body := context.get("body"):
        context["body"] = lazy(with_definitions(body, _terms(app.env)))
    if page.startswith("book/generated/"):
        for group in context.get("header_buttons", ()):
            group["buttons"] = [one for one in group.get("buttons", ()) if one.get("label") != "source-edit-button"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension; called by Sphinx."""
    app.connect("html-page-context", _offer, priority=100)  # before the theme, which fills in our template
    app.connect("html-page-context", _help, priority=900)  # after the theme, whose buttons are there by then
    return {"parallel_read_safe": True, "parallel_write_safe": True}
