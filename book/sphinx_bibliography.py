"""A Sphinx extension: the bibliography's entries carry the labels by which the text cites them.

The text cites by author and year, so the list does too: "Carlini and Wagner, 2017a". Works of the same
authors and year are told apart by a letter after the year, in the text and in the list alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style as UnsrtStyle
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


def authors(entry: Entry) -> str:
    """The authors as a citation names them: one, two, or the first "et al."."""
    people = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [" ".join([*person.prelast_names, *person.last_names]).strip("{}") for person in people]
    if not names:
        return entry.fields.get("title", entry.key)
    if len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names)


def tell_apart(entries: Iterable[Entry]) -> None:
    """Adds a, b, ... to the years of entries that would otherwise be cited alike, in the order of keys."""
    alike: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.key):
        alike[authors(entry), entry.fields.get("year", "n.d.")].append(entry)
    for (_, year), group in alike.items():
        # A year that already ends in a letter comes from an earlier build, whose data Sphinx keeps.
        if len(group) > 1 and year[-1:].isdigit():
            for letter, entry in zip("abcdefghijklmnopqrstuvwxyz", group, strict=False):
                entry.fields["year"] = year + letter


class AuthorYearLabels(BaseLabelStyle):
    """Labels such as "Carlini and Wagner, 2017a"."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        """One label an entry, in the given order."""
        for entry in sorted_entries:
            yield f"{authors(entry)}, {entry.fields.get('year', 'n.d.')}"


class AuthorYearStyle(UnsrtStyle):
    """The entries of the bibliography, by author, year and title."""

    default_sorting_style = "author_year_title"
    default_label_style = AuthorYearLabels


def _tell_all_apart(app: Sphinx) -> None:
    tell_apart(app.env.get_domain("cite").bibdata.data.entries.values())  # type: ignore[attr-defined]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the style; called by Sphinx."""
    register_plugin("pybtex.style.formatting", "author_year", AuthorYearStyle, force=True)
    app.setup_extension("sphinxcontrib.bibtex")
    app.connect("builder-inited", _tell_all_apart, priority=900)  # after the entries have been read
    return {"parallel_read_safe": True, "parallel_write_safe": True}
