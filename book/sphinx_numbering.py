"""A Sphinx extension: a chapter's number is the number in its file name.

Sphinx numbers pages in the order of the table of contents, so that every number after a chapter that is not
yet written would be wrong, and change later. Here chapters/07_white_box.ipynb is chapter 7: its sections are
7.1, 7.2, ..., and its equations, figures, theorems and exercises carry the 7 as well.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles as Collector

CHAPTER = re.compile(r"chapters/(\d+)_")
DEPTH = 2  # chapters and their sections

Number = tuple[int, ...]


def number_page(toc: nodes.Element, first: int) -> dict[str, Number]:
    """Numbers a page's own table of contents from ``first`` on; returns anchor to number."""
    numbers: dict[str, Number] = {}

    def walk(bullets: nodes.Element, above: Number, count: int) -> None:
        for item in bullets.children:
            reference = item.next_node(nodes.reference)
            if not isinstance(item, nodes.list_item) or reference is None:
                continue
            number = (*above, count)
            count += 1
            deep = len(number) > DEPTH
            numbers[reference["anchorname"]] = () if deep else number
            reference["secnumber"] = None if deep else number
            for child in item.children:
                if isinstance(child, nodes.bullet_list):
                    walk(child, number, 1)

    walk(toc, (), first)
    return numbers


def assign_section_numbers(_collector: Collector, env: BuildEnvironment) -> list[str]:
    """Numbers all chapters; returns the pages whose numbers have changed."""
    before, env.toc_secnumbers = env.toc_secnumbers, {}
    for docname, toc in env.tocs.items():
        chapter = CHAPTER.match(docname)
        if chapter:
            first = int(chapter.group(1))
            env.toc_secnumbers[docname] = number_page(toc, first)
            env.titles[docname]["secnumber"] = (first,)
    return [page for page, numbers in env.toc_secnumbers.items() if numbers != before.get(page)]


def setup(_app: Sphinx) -> dict[str, Any]:
    """Puts our numbering in the place of the one by order; called by Sphinx."""
    Collector.assign_section_numbers = assign_section_numbers  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
