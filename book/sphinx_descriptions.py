"""A Sphinx extension: what search engines, and links to a page on other sites, show of it.

A page's description is ``description`` in its front matter, or else its first paragraph. With it, the page's title and
one picture of the book, sphinxext-opengraph writes the card of a link into the page's head.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

LENGTH = 200  # characters that are shown, at most
SHORT = 40


def description(doctree: nodes.document, front_matter: Mapping[str, Any]) -> str:
    """The first sentences about a page, as plain text; "" for a page without a paragraph.

    As many as fit; where none does, the text is cut between words. A first paragraph of a few words alone says too
    little: the next is added to it.
    """
    paragraphs = (node for node in doctree.findall(nodes.paragraph) if isinstance(node.parent, nodes.section))
    words = str(front_matter.get("description") or "")
    while len(words) < SHORT and (node := next(paragraphs, None)) is not None:
        words = " ".join([*words.split(), *node.astext().split()])
    ends = [end.end() for end in re.finditer(r"[.?!](?= [A-Z]|$)", words) if SHORT < end.end() <= LENGTH]
    return words[: ends[-1]] if ends else textwrap.shorten(words, LENGTH, placeholder=" …")


def _describe(app: Sphinx, page: str, _template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Hands the description to sphinxext-opengraph, which otherwise takes the first words of any kind."""
    if doctree is None:
        return
    front_matter = context.get("meta") or {}
    text = html.escape(description(doctree, front_matter))
    context["meta"] = {**front_matter, "og:description": text}
    context["metatags"] += f'<meta name="description" content="{text}" />\n'


def _name_and_address(app: Sphinx, config: Config) -> None:
    """The book's name and address stand in _config.yml once."""
    config.ogp_site_name, config.ogp_site_url = config.html_title, config.html_baseurl


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension; called by Sphinx."""
    app.setup_extension("sphinxext.opengraph")
    app.connect("config-inited", _name_and_address)
    app.connect("html-page-context", _describe, priority=400)  # before sphinxext-opengraph
    return {"parallel_read_safe": True, "parallel_write_safe": True}
