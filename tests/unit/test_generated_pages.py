"""The generated pages say what the notebooks hold: claims with their numbers, times, and which chapters exist."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from book.generate import committed, pages, write_generated, write_pages
from book.generate_api import file_page, folder_table
from book.generate_changelog import changelog
from book.generate_claims import claims_page, number_text
from book.generate_operators import operators_table
from book.generate_parts import PARTS, parts_map
from book.generate_stubs import stub
from book.generate_times import times_page, within_budget
from book.myst import list_table
from book.notebooks import Chapter, Timing, read_chapter, read_chapters
from book.public_names import exports, modules, packages
from robustlab.teaching.catalogue import FOLDERS, Row
from robustlab.teaching.claims import METADATA_KEY, ClaimRecord
from tests.every import every

ROOT = Path(__file__).resolve().parents[2]
HOLDS = ClaimRecord("a-b", "A beats B by $|x|$", "pgd", True, {"pgd": 0.12345, "fgsm": 3}, {"pgd": 0.1})
FAILS = ClaimRecord("c-d", "C beats D", "cw", False, 1.5, 2, reason="the model is too small")


def notebook(tmp_path: Path, name: str = "03_test.ipynb", **metadata: Any) -> Path:
    """A notebook with a title, one claim and the given metadata."""
    carried = {"id": "a-b", "text": "A beats B", "method": "pgd", "reproduces": True, "ours": 1.0}
    output = {"output_type": "display_data", "data": {}, "metadata": {METADATA_KEY: [carried]}}
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
    assert "## [07. White-box attacks](../../chapters/07_white_box.ipynb)" in text and ":class: filterable" in text
    assert [line.strip(" -") for line in rows[2].splitlines()[:5]] == [
        "A beats B by $|x|$",
        "Gradient descent",
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


@pytest.mark.slow
def test_pages_are_deterministic_and_written_once(tmp_path: Path) -> None:
    first = pages()
    assert first == pages()
    pieces = ("parts", "api_", "operators", "course_map")
    whole = {name: text for name, text in first.items() if not name.startswith(pieces)}
    assert all(re.match(r"(\([\w-]+\)=\n)?# \S", text) for text in whole.values())
    assert {path.relative_to(tmp_path).as_posix() for path in write_pages(tmp_path, first)} == set(first)
    assert write_pages(tmp_path, first) == []
    changed = {**first, "parts.md": "other"}
    assert [path.name for path in write_pages(tmp_path, changed)] == ["parts.md"]


def test_the_table_of_operators_has_what_the_readers_read() -> None:
    from robustlab.graph.convert import FUNCTIONS, METHODS, MODULES
    from robustlab.graph.onnx_operators import RULES

    rows = operators_table().split("* - ")[2:]
    modules, functions, methods, operators = (set(re.findall(r"`([^`]+)`", row.rstrip("`\n") + "`")) for row in rows)
    assert operators == set(RULES) and {name.removeprefix(".") for name in methods} == set(METHODS)
    assert {name.removeprefix("nn.") for name in modules} == {kind.__name__ for kind in MODULES}
    assert len(functions) == len(FUNCTIONS) and {"F.relu", "torch.relu", "operator.add", "getattr"} <= functions


@pytest.mark.slow
def test_a_page_that_is_no_longer_written_is_taken_away(tmp_path: Path) -> None:
    old = tmp_path / "api" / "attacks_of_old.md"
    old.parent.mkdir()
    old.write_text("# Old")
    written = write_generated(tmp_path)
    assert not old.exists() and set(written) == set(tmp_path.rglob("*.md"))


@every("name, text", committed().items())
def test_committed_texts_are_those_of_the_catalogue(name: str, text: str) -> None:
    stale = f"{name} is not what the catalogue says: run `python -m book.generate`"
    assert (ROOT / name).read_text(encoding="utf-8") == text, stale


def small_library(root: Path) -> Row:
    """A library of one package with two folders: a method and its result, a file without a method; returns the row."""
    files = {
        "attacks/__init__.py": "",
        "attacks/whitebox/__init__.py": "",
        "attacks/whitebox/stroke.py": """__all__ = ["Stroked", "stroke"]
class Stroked: ...
def stroke(): ...
def helper(): ...
def _hidden(): ...
""",
        "attacks/backdoor/mark.py": '__all__ = ["Mark"]\nclass Mark: ...',
        "attacks/whitebox/slopes.py": "def slope(): ...",
    }
    for name, text in files.items():
        path = root / "robustlab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Row(
        key="stroke", title="Stroke", cite="a2000", kind="attack", folder="attacks/whitebox", chapter="07", also=("12",)
    )


def test_a_package_exports_its_methods_and_what_modules_list(tmp_path: Path) -> None:
    row = small_library(tmp_path)
    assert packages(tmp_path) == ["attacks"]
    homes = exports("attacks", tmp_path, [row])
    place = "robustlab.attacks.whitebox.stroke"
    assert homes == {"Mark": "robustlab.attacks.backdoor.mark", "Stroked": place, "stroke": place}
    assert stub(homes).splitlines()[-2:] == [
        "from robustlab.attacks.whitebox.stroke import Stroked as Stroked",
        "from robustlab.attacks.whitebox.stroke import stroke as stroke",
    ]
    file = tmp_path / "robustlab" / "attacks" / "whitebox" / "stroke.py"
    file.write_text(file.read_text().partition("\n")[2])  # the method is exported without __all__, too
    assert exports("attacks", tmp_path, [row]) == {"Mark": "robustlab.attacks.backdoor.mark", "stroke": place}
    (file.parent / "other.py").write_text('__all__ = ["Mark"]')
    with pytest.raises(ValueError, match=r"backdoor.mark and .*whitebox.other both export Mark"):
        exports("attacks", tmp_path, [row])


def test_a_long_import_is_broken_as_the_formatter_would() -> None:
    name = "unsupervised_adversarial_training_of_networks"
    module = f"robustlab.defenses.training.{name}"
    assert stub({name: module}).endswith(f"from {module} import (\n    {name} as {name},\n)\n")


def test_a_file_has_an_api_page_with_all_its_public_names(tmp_path: Path) -> None:
    row, chapters = small_library(tmp_path), {"07": Chapter("07_white_box", "White-box attacks")}
    slopes, stroke = modules("attacks/whitebox", tmp_path, [row])
    text = file_page(stroke, chapters)
    assert text.startswith("# Stroke\n")
    assert text.endswith("\n\nTreated in chapter [07](../../../chapters/07_white_box.ipynb).\n")
    assert re.findall(r"^\.\. auto.*$", text, flags=re.MULTILINE) == [
        ".. automodule:: robustlab.attacks.whitebox.stroke",
        ".. autoclass:: robustlab.attacks.Stroked",
        ".. autofunction:: robustlab.attacks.stroke",
        ".. autofunction:: robustlab.attacks.whitebox.stroke.helper",
    ]
    assert "# `attacks.whitebox.slopes`" in file_page(slopes, chapters)
    # Of a package without methods all is shown that has a docstring, under the file's own name.
    shared = file_page(slopes, chapters, shared=True)
    assert "automodule:: robustlab.attacks.whitebox.slopes\n   :members:\n" in shared and "autofunction" not in shared


def test_a_folder_has_a_table_of_its_files_methods_first(tmp_path: Path) -> None:
    row = small_library(tmp_path)
    own = [*modules("attacks/backdoor", tmp_path, [row]), *modules("attacks/whitebox", tmp_path, [row])]
    text = folder_table("attacks/whitebox", "White", own, {"07": Chapter("07_white_box", "White-box attacks")})
    assert text.startswith("(folder-attacks-whitebox)=\n## White\n")
    first, mark, slopes = text.split("* - [")[1:]
    assert first.startswith("Stroke](../generated/api/attacks_whitebox_stroke.md)")
    assert "{py:obj}`stroke <robustlab.attacks.stroke>`" in first and "chapters/07_white_box.ipynb" in first
    assert mark.startswith("`attacks.backdoor.mark`]") and slopes.startswith("`attacks.whitebox.slopes`]")


def test_the_changelog_lists_chapters_and_methods_between_its_marks(tmp_path: Path) -> None:
    marks = [f"<!-- {what.capitalize()}, written by `python -m book.generate`: -->\n{{}}<!-- End of the {what}. -->\n"
             for what in ("chapters", "methods")]  # fmt: skip
    old = "before\n" + "between\n".join(mark.format("- old\n") for mark in marks) + "after\n"
    lists = ("\n- Chapter 07: White-box attacks.\n\n", f"\n- {FOLDERS['attacks/whitebox']}: `stroke`.\n\n")
    new = "before\n" + "between\n".join(map(str.format, marks, lists)) + "after\n"
    chapters, rows = [Chapter("07_white_box", "White-box attacks")], [small_library(tmp_path)]
    assert changelog(old, chapters, rows) == new == changelog(new, chapters, rows)
    with pytest.raises(ValueError, match="End of the methods"):
        changelog(old.replace("End of the methods", ""), chapters, rows)
