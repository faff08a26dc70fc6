"""The bibliography holds the survey's 109 references, each with a link, and every one of them is cited somewhere."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import pybtex.plugin
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.richtext import Text

from book.sphinx_bibliography import tell_apart
from robustlab.teaching.catalogue import ROWS
from tests.every import every

ROOT = Path(__file__).resolve().parents[2]
BIBLIOGRAPHY = ROOT / "book" / "references.bib"
VENUE = {"article": "journal", "inproceedings": "booktitle", "misc": "howpublished"}


def read() -> BibliographyData:
    """The bibliography; a warning of the parser is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return parse_file(str(BIBLIOGRAPHY), encoding="utf-8")


ENTRIES: dict[str, Entry] = dict(read().entries)
SURVEY = {key for key, entry in ENTRIES.items() if entry.fields["keywords"] == "survey"}
LIST = Path(__file__).with_name("survey_references.txt").read_text(encoding="utf-8").splitlines()
LABELS = [tuple(line.split(" | ")) for line in LIST if not line.startswith("#")]

each_entry = every("key", ENTRIES)


def letters(text: str) -> str:
    """Lower case, without accents, spaces and punctuation."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def plain(latex: str) -> str:
    """The text of a field without its LaTeX."""
    return str(Text.from_latex(latex))


KEY_OF_TITLE = {letters(plain(ENTRIES[key].fields["title"])): key for key in SURVEY}


def cited() -> Iterator[tuple[str, str]]:
    """Every citation key in the pages, the chapters and the catalogue, with the place where it stands."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
    for path in (ROOT / "chapters").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for name, text in texts.items():
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text):
            yield from ((key.strip(), name) for key in keys.split(","))
    yield from ((key, f"catalogue row {row.key}") for row in ROWS for key in row.cites)


def test_the_survey_has_109_references() -> None:
    assert len(LABELS) == len(set(LABELS)) == 109
    assert len(SURVEY) == 109


@every("label, title", LABELS)
def test_each_reference_of_the_survey_has_its_entry(label: str, title: str) -> None:
    key = KEY_OF_TITLE[letters(title)]
    match = re.fullmatch(r"(.+?)(?: et al\.| and .+)?, (\d{4})([a-z]?)", label)
    assert match is not None
    surname, year, letter = match.groups()
    assert key.startswith(letters(surname.partition("-")[0]) + year + letter)
    assert ENTRIES[key].fields["year"] == year
    assert letters(surname) in {letters(plain(" ".join(p.last_names))) for p in ENTRIES[key].persons["author"]}


def test_the_letters_of_the_survey_are_those_of_the_book() -> None:
    entries = read().entries
    tell_apart(entries.values())
    for key in SURVEY:
        letter = re.fullmatch(r"[a-z]+\d{4}([a-z]?)|[a-z]+\d{4}[a-z]{2,}", key)
        assert letter is not None
        if letter[1]:
            assert entries[key].fields["year"].endswith(letter[1]), key


@each_entry
def test_entry_is_complete(key: str) -> None:
    entry = ENTRIES[key]
    assert re.match(r"[a-z]+\d{4}", key)
    assert entry.persons["author"]
    assert all(person.last_names for person in entry.persons["author"])
    assert entry.fields["title"].strip()
    assert entry.fields[VENUE[entry.type]].strip()
    assert re.fullmatch(r"(?:19|20)\d\d", entry.fields["year"])
    assert entry.fields["keywords"] in ("survey", "beyond")


@each_entry
def test_entry_has_a_link(key: str) -> None:
    fields = ENTRIES[key].fields
    assert {"doi", "eprint", "url"} & set(fields)
    if "doi" in fields:
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields["doi"])
    if "eprint" in fields:
        assert fields["archiveprefix"] == "arXiv"
        number = re.fullmatch(r"(\d\d)(0[1-9]|1[0-2])\.(\d{4,5})", fields["eprint"])
        assert number is not None
        assert len(number[3]) == (5 if int(number[1]) >= 15 else 4)
        # A preprint is seldom much older than what it became. Only one was put on arXiv years after.
        assert key == "biggio2013" or 0 <= int(fields["year"]) - (2000 + int(number[1])) <= 3
    if "url" in fields:  # the style prints every link it is given
        assert fields["url"].startswith("https://")
        assert not {"doi", "eprint"} & set(fields)


def test_no_link_stands_twice() -> None:
    for field in ("doi", "eprint", "url"):
        values = [entry.fields[field].lower() for entry in ENTRIES.values() if field in entry.fields]
        assert len(values) == len(set(values))


def test_the_two_blocks_are_apart_and_sorted() -> None:
    beyond = [key for key in ENTRIES if key not in SURVEY]
    assert list(ENTRIES) == sorted(SURVEY) + sorted(beyond)


def test_entries_render_without_latex() -> None:
    style = pybtex.plugin.find_plugin("pybtex.style.formatting", "unsrt")()
    backend = pybtex.plugin.find_plugin("pybtex.backends", "text")()
    for formatted in style.format_bibliography(read()):
        text = formatted.text.render(backend)
        assert not set(text) & set("\\{}$~"), text


def test_cited_keys_exist() -> None:
    assert sorted({f"{key} in {place}" for key, place in cited() if key not in ENTRIES}) == []


def test_every_reference_of_the_survey_is_cited() -> None:
    assert sorted(SURVEY - {key for key, _ in cited()}) == []
