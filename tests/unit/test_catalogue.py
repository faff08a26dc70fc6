"""The catalogue's rows are well formed, and a row marked done keeps all that "done" promises."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pybtex.database import parse_file
from pybtex.richtext import Text

import robustlab.teaching.catalogue
from book.generate_method_index import method_index
from book.generate_parts import PARTS
from book.notebooks import Chapter
from robustlab.teaching.catalogue import ACCESS, CHAPTERS, DIMS, FOLDERS, KINDS, NORMS, ROWS, SECTIONS, Row, get, rows
from tests.every import every
from tests.suite.cases import PLAIN

ROOT = Path(__file__).resolve().parents[2]
REFERENCES = parse_file(str(ROOT / "book" / "references.bib")).entries
DONE = rows(done=True)
DONE_ATTACKS = rows("attack", done=True)

each_row = every("row", ROWS, label=lambda row: row.key)
each_done_row = every("row", DONE, label=lambda row: row.key)
each_done_attack = every("row", DONE_ATTACKS, label=lambda row: row.key)


def function_of(row: Row) -> Callable[..., Any]:
    """What the row's ``callable`` names."""
    assert row.callable is not None
    module, _, name = row.callable.partition(":")
    return getattr(importlib.import_module(module), name)


@cache
def code_of_chapter(number: str) -> str:
    """The code cells of a chapter, or nothing where the chapter does not exist."""
    cells = [
        cell
        for path in (ROOT / "chapters").glob(f"{number}_*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def words_in_ids_of_suite() -> set[str]:
    """All words in the square brackets of the identifiers of the tests in tests/suite that every run takes."""
    names: list[str] = []

    class Listens:
        def pytest_collection_finish(self, session: pytest.Session) -> None:
            names.extend(item.name for item in session.items)

    options = ["--collect-only", "-qq", "-p", "no:cacheprovider"]
    assert pytest.main([*options, str(ROOT / "tests" / "suite")], plugins=[Listens()]) == 0
    brackets = [name.partition("[")[2] for name in names]
    return {word for text in brackets for word in re.split(r"[^a-z0-9_]+", text)}


def test_keys_and_titles_are_unique() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert len({row.title.casefold() for row in ROWS}) == len(ROWS)


@each_row
def test_row_is_well_formed(row: Row) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", row.key)
    assert row.title.strip() == row.title != ""
    assert row.folder is None or row.folder in FOLDERS
    assert row.kind in KINDS
    assert row.access in ACCESS
    assert set(row.norms) <= set(NORMS) and len(set(row.norms)) == len(row.norms)
    assert set(row.dims) <= set(DIMS)
    assert row.min_classes >= 2
    assert set(row.chapters) <= set(CHAPTERS) and len(set(row.chapters)) == len(row.chapters)


@each_row
def test_row_cites_what_the_bibliography_holds(row: Row) -> None:
    assert row.cites
    assert set(row.cites) <= set(REFERENCES)


def test_a_row_stands_in_the_section_of_its_chapter() -> None:
    chapters = {part.section: set(part.chapters) for part in PARTS}
    # Survey section 3 itself, on evaluation, is treated in the first chapter of the part on section 3.1.
    chapters["3"], chapters["3.1"] = {15}, chapters["3.1"] - {15}
    # The opening chapter carries the first attack of section 2.2, and chapter 15 those that AutoAttack is made of.
    chapters["2.2"] = chapters["2.2"] | {1, 15}
    strangers = [row.key for row in ROWS if int(row.chapter) not in chapters[row.section]]
    assert strangers == []
    assert get("fgsm").section == get("apgd").section == "2.2" and get("autoattack").section == "3"


def test_a_row_derives_where_its_method_is_found() -> None:
    row = get("bim")
    assert (row.folder, row.file) == ("attacks/whitebox", "fgsm")
    assert (row.module, row.public_name) == ("robustlab.attacks.whitebox.fgsm", "robustlab.attacks.bim")
    assert row.callable == "robustlab.attacks.whitebox.fgsm:bim"
    coming = Row(key="m", title="M", cite="madry2018", kind="attack", chapter="07")
    assert not coming.done and (coming.module, coming.callable, coming.public_name) == (None, None, None)


def test_every_chapter_has_methods() -> None:
    assert {row.chapter for row in ROWS} == set(CHAPTERS)


def test_get_and_rows() -> None:
    assert get("pgd").title == "Projected gradient descent (PGD)"
    with pytest.raises(ValueError, match=r"key: got 'pgdd'.*near it: pgd"):
        get("pgdd")
    assert rows() == ROWS
    assert {row.kind for row in rows("verifier")} == {"verifier"}
    assert set(rows(done=True)) | set(rows(done=False)) == set(ROWS)
    assert not set(rows(done=True)) & set(rows(done=False))
    with pytest.raises(ValueError, match="kind: got 'atack'"):
        rows("atack")


def test_the_catalogue_imports_nothing_else_of_the_library() -> None:
    code = (
        "import sys, robustlab.teaching.catalogue\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy', 'robustlab')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = re.findall(r"'([^']+)'", shown)
    assert "robustlab.teaching.catalogue" in loaded
    above = ("robustlab", "robustlab._lazy", "robustlab.teaching")
    assert [name for name in loaded if name not in above and not name.startswith("robustlab.teaching.catalogue")] == []


@each_done_row
def test_done_means_importable_and_public(row: Row) -> None:
    function = function_of(row)
    assert callable(function)
    assert row.public_name is not None
    package, _, name = row.public_name.rpartition(".")
    assert getattr(importlib.import_module(package), name) is function


@each_done_row
def test_done_means_that_the_docstring_cites_the_paper(row: Row) -> None:
    docstring = inspect.getdoc(function_of(row)) or ""
    entry = REFERENCES[row.cites[0]]
    surname = str(Text.from_latex(" ".join(entry.persons["author"][0].last_names)))
    # "Goodfellow et al. (2015)", "Carlini and Wagner (2017b)"
    assert re.search(rf"{surname}[^.;\n()]*(?:et al\.)?\s*\({entry.fields['year']}[a-z]?\)", docstring)


@each_done_row
def test_done_means_a_claim_in_the_chapters_it_names(row: Row) -> None:
    # A method may be done before its chapter is begun; once the notebook is there, the claim is due.
    for chapter in filter(code_of_chapter, row.chapters):
        assert re.search(rf"""\bmethod\s*=\s*["']{row.key}["']""", code_of_chapter(chapter)), f"chapter {chapter}"


@pytest.mark.slow
def test_done_means_a_place_in_the_suite() -> None:
    assert sorted({row.key for row in DONE} - words_in_ids_of_suite()) == []


@each_done_attack
def test_tags_match_the_signature(row: Row) -> None:
    parameters = inspect.signature(function_of(row)).parameters
    assert ("norm" in parameters) == bool(row.norms)
    assert ("target" in parameters) == row.targeted
    if row.norms or row.min_norm:  # an attack that knows no norm may have limits of its own instead
        needs_eps = "eps" in parameters and parameters["eps"].default is inspect.Parameter.empty
        assert needs_eps == (not row.min_norm)  # FAB's, which may be left out, limits its restarts alone
    for key, value in row.quick.items():  # an argument, or the arguments for one norm
        of_norm = isinstance(value, Mapping) and key in row.norms and set(value) <= set(parameters)
        assert key in parameters or of_norm, key
    if row.norms:
        assert parameters["norm"].default in row.norms


@each_done_attack
def test_no_norm_is_missing_from_the_tags(row: Row) -> None:
    torch = importlib.import_module("torch")
    model = torch.nn.Linear(3, 3)
    budget: dict[str, Any] = {} if row.min_norm else {"eps": 0.1}
    budget |= {name: plain for name, plain in PLAIN.items() if name in inspect.signature(function_of(row)).parameters}
    for norm in set(NORMS) - set(row.norms):
        with pytest.raises((ValueError, TypeError), match="norm"):
            function_of(row)(model, torch.rand(2, 3), norm=norm, **budget)


def test_method_index_lists_all_rows_once_under_their_section() -> None:
    text = method_index(ROWS, [])
    parts = dict(re.findall(r"^## (\S+) [^\n]+\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert list(parts) == list(SECTIONS)
    for row in ROWS:
        marked = f"* - {row.title}, " + (f"{{py:obj}}`{row.key} <{row.public_name}>`" if row.done else f"`{row.key}`")
        assert [section for section, part in parts.items() if f"{marked}\n" in part] == [row.section]
    assert text.count("\n* - ") == len(ROWS) + len(SECTIONS)
    assert len(re.findall(r"^  - done$", text, flags=re.MULTILINE)) == len(DONE)
    assert f"{len(DONE)} of {len(ROWS)} methods are here" in text


def test_method_index_links_the_chapters_that_exist() -> None:
    row = Row(key="m", title="M", cite="madry2018", kind="attack", chapter="07", also=("12",))
    text = method_index([row], [Chapter("07_white_box", "White-box attacks")])
    assert "  - [07](../../chapters/07_white_box.ipynb), 12\n" in text
    assert "0 of 1 done." in text


def test_rows_are_immutable_and_hashable() -> None:
    row = robustlab.teaching.catalogue.get("pgd")
    assert row in {row}
    with pytest.raises(AttributeError):
        row.title = "other"  # type: ignore[misc]
