"""The generated pages say what the notebooks hold: claims with their numbers, times, and which chapters exist."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from book.generate import pages, write_pages
from book.generate_claims import claims_page, number_text
from book.generate_parts import PARTS, parts_map
from book.generate_times import times_page, within_budget
from book.myst import list_table
from book.notebooks import Chapter, Timing, read_chapter, read_chapters
from book.sphinx_claims import with_numbers
from robustlab.teaching.claims import METADATA_KEY, ClaimRecord

HOLDS = ClaimRecord("a-b", "A beats B by $|x|$", "pgd", True, {"pgd": 0.12345, "fgsm": 3}, {"pgd": 0.1}, None)
FAILS = ClaimRecord("c-d", "C beats D", "cw", False, 1.5, 2, "the model is too small")


def notebook(tmp_path: Path, name: str = "03_test.ipynb", **metadata: Any) -> Path:
    """A notebook with a title, one claim and the given metadata."""
    carried = {"id": "a-b", "text": "A beats B", "method": "pgd", "reproduces": True, "ours": 1.0}
    output = {"output_type": "display_data", "data": {}, "metadata": {METADATA_KEY: carried}}
    cells = [
        {"cell_type": "markdown", "source": ["(label)=\n", "# A title\n"]},
        {"cell_type": "code", "source": "# no title", "outputs": [output]},
    ]
    path = tmp_path / name
    path.write_text(json.dumps({"cells": cells, "metadata": metadata}), encoding="utf-8")
    return path


def test_reading_a_chapter(tmp_path: Path) -> None:
    chapter = read_chapter(notebook(tmp_path, robustlab_timing={"runs_s": [3, 1, 2], "peak_mb": 300}))
    assert (chapter.number, chapter.title) == (3, "A title")
    assert chapter.timing == Timing((3, 1, 2), 300)
    assert [claim.id for claim in chapter.claims] == ["a-b"]
    assert chapter.link == "[03. A title](../../chapters/03_test.ipynb)"


def test_chapters_come_in_order_and_other_notebooks_are_left_out(tmp_path: Path) -> None:
    for name in ("10_b.ipynb", "02_a.ipynb", "scratch.ipynb"):
        notebook(tmp_path, name)
    assert [chapter.number for chapter in read_chapters(tmp_path)] == [2, 10]


def test_a_chapter_without_a_title_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "04_untitled.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": "# x", "outputs": []}]}))
    with pytest.raises(ValueError, match="04_untitled"):
        read_chapter(path)


def test_claims_page_shows_both_numbers_and_both_verdicts() -> None:
    text = claims_page([Chapter("07_white_box", "White-box attacks", (HOLDS, FAILS))], {"pgd": "Gradient descent"})
    assert "**2 claims**: 1 hold, 1 do not reproduce here." in text
    rows = text.split("\n* - ")
    assert [line.strip(" -") for line in rows[2].splitlines()[:6]] == [
        "[07. White-box attacks](../../chapters/07_white_box.ipynb)",
        "Gradient descent",
        "A beats B by $|x|$",
        "pgd: 0.1",
        "pgd: 0.123; fgsm: 3",
        "holds",
    ]
    assert "**does not reproduce here**" in rows[3]
    failing = text.split("## What does not reproduce here")[1]
    assert "C beats D" in failing and "the model is too small" in failing and "A beats B" not in failing


def test_claims_page_without_failures_says_so() -> None:
    text = claims_page([Chapter("07_white_box", "White-box attacks", (HOLDS,))])
    assert "**1 claim**: 1 hold, 0 do not" in text
    assert "No chapter declares a claim that does not reproduce" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0001234, "0.000123"),
        (99.46, "99.5"),
        (-0.5, "−0.5"),
        (12000, "12,000"),
        (math.inf, "∞"),
        ("about 2", "about 2"),
        ({"a": 1, "b": None}, "a: 1; b: –"),
    ],
)
def test_number_text(value: object, text: str) -> None:
    assert number_text(value) == text


def test_times_page_shows_median_and_slowest_and_judges_the_budget() -> None:
    good = Chapter("01_a", "A", timing=Timing((70, 10, 50), 800))
    slow = Chapter("02_b", "B", timing=Timing((61, 62, 10), 800))
    large = Chapter("03_c", "C", timing=Timing((1, 1, 1), 2001))
    unknown = Chapter("04_d", "D")
    assert [within_budget(chapter) for chapter in (good, slow, large, unknown)] == [True, False, False, None]
    rows = times_page([good, slow, large, unknown]).split("\n* - ")[2:]
    cells = [[line.strip(" -") for line in row.splitlines()[1:5]] for row in rows]
    assert cells[0] == ["50.0", "70.0", "800", "yes"]
    assert cells[1] == ["61.0", "62.0", "800", "**no**"]
    assert cells[2] == ["1.0", "1.0", "2,001", "**no**"]
    assert cells[3][0] == "not measured"


def test_parts_map_links_what_exists_and_announces_the_rest() -> None:
    text = parts_map([Chapter("07_white_box", "White-box attacks")])
    assert "- [07 White-box attacks](../chapters/07_white_box.ipynb)" in text
    assert "- 08 Sparse and structured attacks (to come)" in text
    assert "**1 of 32 chapters are here.**" in text
    numbers = [number for part in PARTS for number in part.chapters]
    assert numbers == list(range(1, 33))
    with pytest.raises(ValueError, match="33"):
        parts_map([Chapter("33_more", "More")])


def test_list_table_refuses_a_ragged_row() -> None:
    with pytest.raises(ValueError, match="1 cells"):
        list_table(("a", "b"), [("c",)])


def test_pages_are_deterministic_and_written_once(tmp_path: Path) -> None:
    first = pages()
    assert first == pages()
    assert all(re.match(r"(\([\w-]+\)=\n)?# \S", text) for name, text in first.items() if name != "parts.md")
    assert {path.name for path in write_pages(tmp_path, first)} == set(first)
    assert write_pages(tmp_path, first) == []
    changed = {**first, "parts.md": "other"}
    assert [path.name for path in write_pages(tmp_path, changed)] == ["parts.md"]


def test_the_page_shows_a_claims_numbers_below_its_verdict() -> None:
    zero = ClaimRecord("e-f", "E < F", "pgd", True, 0, None, None)
    silent = ClaimRecord("g-h", "G", "pgd", True, None, None, None)
    lines = [claim.line.replace("<", "&lt;") for claim in (HOLDS, FAILS, zero, silent)]
    shown = with_numbers("\n".join(lines), [HOLDS, FAILS, zero, silent])
    assert re.sub("</?span[^>]*>", "", shown).splitlines() == [
        lines[0], "    here   pgd: 0.123; fgsm: 3", "    paper  pgd: 0.1",
        lines[1], "    here   1.5", "    paper  2",
        lines[2], "    here   0",
        lines[3],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a-b"):
        with_numbers("<pre></pre>", [HOLDS])
