"""The API reference covers the library, and its docstrings come out as they were written."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import robustlab
from book.generate import pages
from book.public_names import packages
from book.sphinx_docstrings import escape, to_restructured_text
from tests.every import every

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "book" / "api").glob("*.md"))]
PAGES = "\n".join([*WRITTEN, *(text for name, text in pages().items() if name.startswith("api/"))])
MODULES = re.findall(r"^\.\. automodule:: (\S+)$", PAGES, flags=re.MULTILINE)
WITH_MEMBERS = set(re.findall(r"^\.\. automodule:: (\S+)\n   :members:", PAGES, flags=re.MULTILINE))
FUNCTIONS = re.findall(r"^\.\. auto(?:function|class):: (\S+)$", PAGES, flags=re.MULTILINE)

# What a reader of the reference does not call: everything else has to be on a page.
INTERNAL = ("robustlab.checks", "robustlab.files", "robustlab.progress", "robustlab.data.make_embedded")

# Documented with its module, on the page of the graph.
IN_THE_GRAPH = {"robustlab.verification.Graph"}


def found(name: str) -> Any:
    """The object with a dotted name, looked up as autodoc does."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


@every("name", [*MODULES, *FUNCTIONS])
def test_documented_names_exist_and_have_a_docstring(name: str) -> None:
    assert (found(name).__doc__ or "").strip()


def test_nothing_is_documented_twice() -> None:
    names = [*MODULES, *FUNCTIONS]
    assert len(set(names)) == len(names)


@every("package", packages())
def test_every_exported_name_is_documented(package: str) -> None:
    public = {f"robustlab.{package}.{name}" for name in importlib.import_module(f"robustlab.{package}").__all__}
    assert public - IN_THE_GRAPH <= set(FUNCTIONS)


def test_every_public_module_is_on_a_page_or_in_its_package() -> None:
    modules = [info.name for info in pkgutil.walk_packages(robustlab.__path__, "robustlab.")]
    missing = []
    for name in modules:
        if "._" in name or name.endswith(".__main__") or name.startswith(INTERNAL) or name in MODULES:
            continue
        parents = {".".join(name.split(".")[:depth]) for depth in range(2, name.count(".") + 1)}
        is_family = not (importlib.import_module(name).__doc__ or "").strip()  # an empty __init__
        if not is_family and not parents & WITH_MEMBERS:
            missing.append(name)
    assert not missing, f"on no page under book/api: {missing}"


def test_what_one_page_of_checks_leaves_out_is_on_the_other() -> None:
    page = (ROOT / "book" / "api" / "checks.md").read_text(encoding="utf-8")
    (left_out,) = re.findall(r":exclude-members: (.+)$", page, flags=re.MULTILINE)
    package = "robustlab.teaching.check."
    assert left_out.split(", ") == sorted(name.removeprefix(package) for name in FUNCTIONS if name.startswith(package))


def test_an_indented_block_becomes_a_literal_block() -> None:
    lines = ["A formula.", "", "    u* = |x|", "    v", "", "Args:", "    x: a bar |x|.", "", "    more", ""]
    assert to_restructured_text(lines) == [
        "A formula.",
        "",
        "::",
        "",
        "    u* = |x|",
        "    v",
        "",
        "Args:",
        r"    x: a bar \|x\|.",
        "",
        "    more",
        "",
    ]


def test_a_block_that_is_literal_already_stays() -> None:
    lines = ["Use it so::", "", "    with a as b:", "", "        c*d", ""]
    assert to_restructured_text(lines) == lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("the name `eps` and ``x_adv``", "the name ``eps`` and ``x_adv``"),
        ("|x| and 2 * 3", r"\|x\| and 2 \* 3"),
        ("an *important* word, a **bold** one", "an *important* word, a **bold** one"),
        ("max_{k} z_k and z_ alone", r"max\_{k} z_k and z\_ alone"),
        ("see :func:`load_data` and :class:`~a.B`", "see :func:`load_data` and :class:`~a.B`"),
        ("``a | b`` stays, c | d does not", r"``a | b`` stays, c \| d does not"),
        ("* an item: 2 * 3", r"* an item: 2 \* 3"),
    ],
)
def test_what_would_be_markup_is_escaped(line: str, expected: str) -> None:
    assert escape(line) == expected
