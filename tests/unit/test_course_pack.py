"""What a lecturer takes from the chapters: quiz questions for learning platforms, and slides."""

from __future__ import annotations

import html
import json
import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

from book import generate_course, quizzes, slides
from book.generate_course import course_map
from book.notebooks import ROOT, read_chapters
from book.quizzes import Choice, Question
from robustlab.teaching import check

CHAPTERS = sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb"))
NASTY = Question(
    "quiz-99-1",
    "Is 2*3*4 &lt; $5 and <i>x</i><sub>k_1</sub> `safe` _now_ in [0, 1](?) # 1. \\alpha",
    (
        Choice("1. yes", "<b>✗ Not quite.</b> It costs $5 *or* $6.", False),
        Choice("*no* &amp; never", "<b>✓ Correct.</b> {a} - b + c!", True),
    ),
)
QTI = {"q": "http://www.imsglobal.org/xsd/ims_qtiasiv1p2"}


def words(text: str | None) -> str:
    """What a reader sees of HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text or "")).split())


def read_qti(path: Path) -> list[tuple[str, dict[str, tuple[int, str]]]]:
    """Question and, for each choice, score and feedback, by the standard's own elements."""
    with zipfile.ZipFile(path) as package:
        assert "imsmanifest.xml" in package.namelist()
        names = [name for name in package.namelist() if re.fullmatch(r"(\w+)/\1\.xml", name)]
        (root,) = (ElementTree.fromstring(package.read(name)) for name in names)
    found = []
    for item in root.iterfind(".//q:item", QTI):
        choices = {}
        for label in item.iterfind(".//q:response_label", QTI):
            name = label.get("ident")
            score = 0
            for condition in item.iterfind(".//q:respcondition", QTI):
                chosen = condition.findtext(".//q:varequal", namespaces=QTI) == name
                score += int(condition.findtext("q:setvar", "0", QTI)) if chosen else 0
            said = item.findtext(f".//q:itemfeedback[@ident='{name}_fb']//q:mattext", namespaces=QTI)
            choices[words(label.findtext(".//q:mattext", namespaces=QTI))] = (score, words(said))
        found.append((words(item.findtext("q:presentation/q:material/q:mattext", namespaces=QTI)), choices))
    return found


@pytest.mark.notebook
def test_every_quiz_question_is_exported_with_one_right_choice() -> None:
    told = {path.stem: quizzes.questions(path) for path in CHAPTERS}
    for path in CHAPTERS:
        ids = re.findall(r'<fieldset class=\\"quiz\\" id=\\"(quiz-\d\d-\d)\\">', path.read_text(encoding="utf-8"))
        assert [question.id for question in told[path.stem]] == ids and len(ids) >= 3
    tree = ElementTree.fromstring(quizzes.moodle(told).encode())
    asked = tree.findall("question[@type='multichoice']")
    assert len(asked) == sum(map(len, told.values())) >= 49
    assert len(tree.findall("question[@type='category']")) == len(CHAPTERS)
    for item in asked:
        scores = [answer.get("fraction") for answer in item.iterfind("answer")]
        right = item.findtext("answer[@fraction='100']/feedback/text", "")
        assert sorted(scores) == ["0"] * (len(scores) - 1) + ["100"] and "✓ Correct." in right


def test_a_platform_shows_the_words_of_the_book(tmp_path: Path) -> None:
    """Signs that Markdown or TeX would read as markup come out as they went in, in both formats."""
    quizzes.write_qti(tmp_path / "one.zip", "One", [NASTY])
    want = {words(choice.text): (100 * choice.right, words(choice.feedback)) for choice in NASTY.choices}
    assert read_qti(tmp_path / "one.zip") == [(words(NASTY.text), want)]
    item = ElementTree.fromstring(quizzes.moodle({"A/B": [NASTY]}).encode())[1]
    assert words(item.findtext("questiontext/text")) == words(NASTY.text)
    assert [words(answer.findtext("text")) for answer in item.iterfind("answer")] == list(want)


@pytest.mark.notebook
def test_a_package_holds_what_its_chapter_asks(tmp_path: Path) -> None:
    asked = quizzes.questions(CHAPTERS[0])
    quizzes.write_qti(tmp_path / "one.zip", "One", asked)
    choices = [{words(c.text): (100 * c.right, words(c.feedback)) for c in question.choices} for question in asked]
    shown = read_qti(tmp_path / "one.zip")
    # Typographic quotes are text2qti's.
    straight = json.loads(
        re.sub("[’‘]", "'", json.dumps(shown, ensure_ascii=False)).replace("“", '\\"').replace("”", '\\"')
    )
    assert [one for _, one in straight] == json.loads(json.dumps(choices, ensure_ascii=False))


@pytest.mark.notebook
def test_slides_hold_figures_and_questions_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    path = next(path for path in CHAPTERS if path.stem.startswith("07"))
    page = slides.write_slides(path, tmp_path)
    text = page.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len(re.findall(r"<img\b[^>]*data:image/png", text)) == sum(
        "figure" in cell["metadata"].get("mystnb", {}) for cell in cells
    )
    loaded = re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="(?!data:)([^"]+)"', text)
    assert len(loaded) >= 4 and [name for name in loaded if not (tmp_path / name).exists()] == []
    assert "import " not in "".join(re.findall(r"<script[^>]*type=.module", text))
    for question in quizzes.questions(path):
        assert words(question.text) in words(text)


@pytest.mark.notebook
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_markup_of_the_book_is_left_on_a_slide(path: Path) -> None:
    shown = [cell for cell in slides.slides(path).cells if cell.cell_type == "markdown"]
    left = [
        cell.source for cell in shown if re.search(r"\{[a-z:-]+\}`|^:::|^```\{|^:label:|^% ", cell.source, re.MULTILINE)
    ]
    assert left == [] and len(shown) > 20


@pytest.mark.notebook
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_each_section_begins_a_stack_and_an_answer_shows_nothing_but_itself(path: Path) -> None:
    """A cell may hold several sections, and a question may stand anywhere in one."""
    made = [(cell.metadata["slideshow"]["slide_type"], cell.source) for cell in slides.slides(path).cells]
    begun = [re.match(r"## (.+)", text) for kind, text in made if kind == "slide"]
    headings, answers = [], []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and not slides.LEFT_OUT & set(cell.metadata.get("tags", [])):
            headings += re.findall(r"^## (.+)", cell.source, re.MULTILINE)
            answers += re.findall(r"^(:{3,})\{admonition\} Answer\n(.*?)^\1 *$", cell.source, re.MULTILINE | re.DOTALL)
    assert [words(head[1]) for head in begun if head] == [words(slides.plain(head)) for head in headings]
    shown = [text for kind, text in made if kind == "fragment" and not text.startswith("<b>")]
    assert [words(text) for text in shown] == [words(slides.plain(body)) for _, body in answers]
    assert not [text for kind, text in made if kind != "notes" and re.search(r"^\(eq-|\$\$ \(eq-", text, re.MULTILINE)]


def test_the_course_map_has_a_row_per_chapter_and_the_syllabi_name_chapters_that_are_there() -> None:
    chapters = read_chapters()
    table = course_map(chapters)
    assert table.count("* - ") == len(chapters) + 1
    for chapter in chapters:
        assert f"</chapters/{chapter.stem}>`" in table
    assert "(eq" not in table and not re.search(r"<\d\d_", table)
    named = set(re.findall(r"</chapters/(\w+)>", (ROOT / "book" / "course.md").read_text(encoding="utf-8")))
    assert named <= {chapter.stem for chapter in chapters}


def test_a_week_of_the_syllabi_has_at_most_two_lectures() -> None:
    """A chapter with a marked seam is two of them, so a row says which of the two it means."""
    seam = {path.stem for path in CHAPTERS if "{admonition} Second lecture" in path.read_text(encoding="utf-8")}
    page = (ROOT / "book" / "course.md").read_text(encoding="utf-8").partition("\n## What each chapter")[0]
    rows = re.findall(r"^\| \d+ \| (.*?) \|", page, re.MULTILINE)
    parts = [[part for part in row.split("; ") if "</chapters/" in part] for row in rows]
    assert len(rows) == 4 + 8 + 14 and len(seam) == 10
    wrong = [
        part
        for row in parts
        for part in row
        for stem in re.findall(r"</chapters/(\w+)>", part)
        if (stem in seam) != bool(re.search("(first|second|both) lecture", part))
    ]
    assert wrong == []
    assert [row for row in parts if sum(1 + ("both lectures" in part) for part in row) > 2] == []


def test_the_table_of_assignments_is_that_of_the_folders() -> None:
    page = (ROOT / "book" / "course.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| A(\d) \| (To come)?", page, re.MULTILINE)
    there = sorted(int(folder.name[:2]) for folder in (ROOT / "assignments").glob("[0-9][0-9]_*"))
    assert [int(number) for number, _ in rows] == list(range(1, 9))
    assert [int(number) for number, later in rows if not later] == there


def test_a_row_of_the_map_is_what_the_chapter_states(monkeypatch: pytest.MonkeyPatch) -> None:
    told = (
        "Why.\n\n**Objectives.** After this chapter you can\n\n- measure it,\n  twice;\n- repair it.\n\n"
        "**Prerequisites.** {doc}`Chapter 02 <02_availability>`: poison.\n\n**Reading time.** An hour.\n\n"
    )
    chapter = read_chapters()[0]
    monkeypatch.setattr(generate_course, "objectives", lambda chapter: told)
    (row,) = course_map([chapter]).split("* - ")[2:]
    assert [cell.strip() for cell in row.replace("```", "").split("\n  - ")] == [
        f"{{doc}}`01. {chapter.title} </chapters/{chapter.stem}>`",
        "{doc}`Chapter 02 </chapters/02_availability>`: poison.",
        "measure it, twice; repair it.",
    ]
    monkeypatch.setattr(generate_course, "objectives", lambda chapter: told.replace("- repair it.\n", ""))
    with pytest.raises(ValueError, match="01_life_cycle"):
        course_map([chapter])


def test_a_chapter_without_objectives_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_course, "objectives", lambda chapter: "**Objectives.** none\n\n")
    with pytest.raises(ValueError, match="01_life_cycle"):
        course_map(read_chapters()[:1])


def test_chapters_and_assignments_use_the_public_checks() -> None:
    """Each chapter with cells from scratch calls one, and each check is called somewhere."""
    called, without = set[str](), set[str]()
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        found = {name for c in cells for name in re.findall(r"\bchecks\.(\w+)\(", c.source)}
        assert found <= set(check.__all__), path.name
        called |= found
        if not found and any("from-scratch" in c.metadata.get("tags", []) for c in cells):
            without.add(path.name[:2])
    for path in (ROOT / "assignments").glob("*/source.ipynb"):
        called |= set(re.findall(r"\bcheck\.(\w+)\(", path.read_text(encoding="utf-8")))
    assert not without
    assert set(check.__all__) - {"ConvexSet", "Wrong"} <= called
