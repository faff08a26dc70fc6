"""A Sphinx extension: the list of pages in the sidebar, made from their titles alone.

Sphinx makes that list for every page anew. It copies all headings of all pages, and all objects that the API pages
document, before it throws away what is no title: four fifths of the time that writing takes. Here the headings are left
out before, once.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import toctree
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.environment import BuildEnvironment
from sphinx.environment.adapters.toctree import global_toctree_for_doc


def titles(toc: nodes.bullet_list) -> nodes.bullet_list:
    """A page's contents, of which its title is left, and the lists of pages below it."""
    toc = toc.deepcopy()
    for item in toc.children:
        for below in item.children[1:]:
            lists = list(below.findall(toctree))
            if lists:
                below[:] = lists
            else:
                item.remove(below)
    return toc


class Sidebar:
    """The book's pages, of which a list is made with the pages that it shows."""

    def __init__(self, env: BuildEnvironment) -> None:
        self.env = env
        self.titles = {page: titles(toc) for page, toc in env.tocs.items()}
        self.alone = {page: _without_pages(toc) for page, toc in self.titles.items()}
        self.above: dict[str, str] = {}
        self.level = {env.config.root_doc: 0}
        for page in (open := [env.config.root_doc]):  # grows while it is read
            for below in env.toctree_includes.get(page, []):
                if below not in self.level:
                    self.level[below], self.above[below] = self.level[page] + 1, page
                    open.append(below)

    def seen_from(self, page: str | None, depth: int) -> BuildEnvironment:
        """The environment without pages deeper than ``depth`` (≤ 0: all are shown), but for those beside ``page``."""
        found = self.titles
        if depth > 0:
            found = self.alone | {name: self.titles[name] for name, level in self.level.items() if level < depth}
            while page in self.level:
                found[page] = self.titles[page]
                page = self.above.get(page)
        env = copy.copy(self.env)
        env.tocs = found
        return env


_sidebar = cache(Sidebar)


def _without_pages(toc: nodes.bullet_list) -> nodes.bullet_list:
    toc = toc.deepcopy()
    for item in toc.children:
        item[1:] = []
    return toc


def _offer(app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: nodes.document | None) -> None:
    builder = app.builder
    if not isinstance(builder, StandaloneHTMLBuilder):
        return

    def contents(collapse: bool = True, maxdepth: int = 0, **options: Any) -> str:
        """What Sphinx calls ``toctree`` in templates."""
        env = _sidebar(app.env).seen_from(page, maxdepth)
        found = global_toctree_for_doc(env, page, builder, collapse, maxdepth=maxdepth, **options)
        return builder.render_partial(found)["fragment"]

    context["toctree"] = contents


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension; called by Sphinx."""
    app.connect("html-page-context", _offer, priority=100)  # before the theme, which asks for the list
    return {"parallel_read_safe": True, "parallel_write_safe": True}
