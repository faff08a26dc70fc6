"""What helps a reader on every page: definitions at links, chapters to come in the sidebar, pictures that wait."""

from __future__ import annotations

import re

from docutils import nodes

from book.generate_parts import PARTS
from book.sphinx_reading import definitions, lazy, with_definitions, with_planned

TITLE = '<p aria-level="2" class="caption" role="heading"><span class="caption-text">{}</span></p>\n'
CAPTION = TITLE + '<ul class="nav">{}</ul>\n'
SIDEBAR = (
    CAPTION.format("Foundations", '<li class="toctree-l1"><a href="a.html">1. First</a></li>')
    + CAPTION.format("Empirical defenses", '<li class="toctree-l1 current active"><a href="#">16. Repair</a></li>')
    + CAPTION.format("Results", '<li class="toctree-l1"><a href="i.html">Method index</a></li>')
)


def test_the_sidebar_names_all_chapters_in_order_and_links_those_that_are_there() -> None:
    shown = with_planned(SIDEBAR)
    captions = re.findall(r'caption-text">([^<]*)<', shown)
    assert captions == [*(part.title for part in PARTS), "Results"]
    numbers = [int(number) for number in re.findall(r">(\d+)\. ", shown)]
    assert numbers == sorted(number for part in PARTS for number in part.chapters)
    assert re.findall(r"<a [^>]*>(\d+)\.", shown) == ["1", "16"]
    assert shown.count("to-come") == len(numbers) - 2
    assert 'toctree-l1 current active"><a href="#">16. Repair</a></li>' in shown and "Method index" in shown


def test_a_link_to_a_term_carries_its_definition() -> None:
    term = nodes.term("", "radius", ids=["term-radius"])
    text = nodes.paragraph("", "", nodes.Text("How far "), nodes.math("", "x_2"), nodes.Text(' is "safe" .'))
    item = nodes.definition_list_item("", term, nodes.definition("", text))
    document = nodes.document(None, None, "", nodes.definition_list("", item))  # type: ignore[arg-type]
    terms = definitions(document)
    assert terms == {"term-radius": r'How far \(x_2\) is "safe".'}
    body = '<a class="reference internal" href="../book/glossary.html#{}">r</a>'
    assert r'data-card="How far \(x_2\) is &quot;safe&quot;."' in with_definitions(body.format("term-radius"), terms)
    assert with_definitions(body.format("term-other"), terms) == body.format("term-other")


def test_pictures_but_the_first_wait() -> None:
    assert lazy('<img src="a"><img src="b">') == '<img src="a"><img loading="lazy" src="b">'
    assert lazy("<p>none</p>") == "<p>none</p>"
