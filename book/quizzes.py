"""The quiz questions of all chapters for a learning platform: ``make quizzes``.

In _build/quizzes stand ``moodle.xml``, in Moodle's own format with a category per chapter, and a QTI 1.2 package per
chapter, such as ``qti-07.zip``, which Canvas and others import. Both keep the feedback of every choice. The packages
are written by text2qti (the extra ``course``); the rest needs nothing beside what builds the book.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bs4 import BeautifulSoup, NavigableString, Tag

from book.chapter_anatomy import markdown_cells
from book.chapter_form import source
from book.notebooks import ROOT, read_chapters

QUIZZES = ROOT / "_build" / "quizzes"


@dataclass(frozen=True)
class Choice:
    """One answer of a question: its text and its feedback in HTML, and whether it is the right one."""

    text: str
    feedback: str
    right: bool


@dataclass(frozen=True)
class Question:
    """One quiz question, with its texts in HTML; ``id`` is that of its place in the book, such as quiz-07-1."""

    id: str
    text: str
    choices: tuple[Choice, ...]


def questions(path: Path) -> list[Question]:
    """The questions of the chapter at ``path``, in order."""
    found = []
    for cell in markdown_cells(json.loads(path.read_text(encoding="utf-8"))):
        for field in BeautifulSoup(source(cell), "html.parser").find_all("fieldset", class_="quiz"):
            choices = [
                Choice(_inside(fold.summary), _inside(fold.p), "right" in fold["class"])
                for fold in field.find_all("details")
            ]
            found.append(Question(str(field["id"]), _inside(field.legend), tuple(choices)))
    return found


def moodle(chapters: dict[str, Sequence[Question]]) -> str:
    """Moodle's XML of ``chapters``, title to questions: a category each, answers shuffled, one try."""
    quiz = ElementTree.Element("quiz")
    for title, asked in chapters.items():
        category = ElementTree.SubElement(quiz, "question", type="category")
        _text(ElementTree.SubElement(category, "category"), f"$course$/top/{title.replace('/', '//')}")
        for question in asked:
            item = ElementTree.SubElement(quiz, "question", type="multichoice")
            _text(ElementTree.SubElement(item, "name"), question.id)
            _text(ElementTree.SubElement(item, "questiontext", format="html"), question.text)
            for tag, value in (("single", "true"), ("shuffleanswers", "true"), ("answernumbering", "abc")):
                ElementTree.SubElement(item, tag).text = value
            for choice in question.choices:
                fraction = "100" if choice.right else "0"
                answer = ElementTree.SubElement(item, "answer", fraction=fraction, format="html")
                ElementTree.SubElement(answer, "text").text = choice.text
                _text(ElementTree.SubElement(answer, "feedback", format="html"), choice.feedback)
    ElementTree.indent(quiz)
    return ElementTree.tostring(quiz, encoding="unicode", xml_declaration=True) + "\n"


def as_text2qti(title: str, asked: Sequence[Question]) -> str:
    """The questions in the plain text that text2qti reads."""
    lines = [f"Quiz title: {title}", "shuffle answers: true", ""]
    for place, question in enumerate(asked, start=1):
        lines += [f"Title: {question.id}", f"{place}. {_markdown(question.text)}"]
        for letter, choice in zip("abcdefgh", question.choices, strict=False):
            lines += [f"{'*' if choice.right else ''}{letter}) {_markdown(choice.text)}"]
            lines += [f"... {_markdown(choice.feedback)}"]
        lines.append("")
    return "\n".join(lines)


def write_qti(path: Path, title: str, asked: Sequence[Question]) -> None:
    """Writes a QTI 1.2 package to ``path``; raises ModuleNotFoundError where text2qti is not installed."""
    from text2qti.config import Config
    from text2qti.qti import QTI
    from text2qti.quiz import Quiz

    config = Config()
    QTI(Quiz(as_text2qti(title, asked), config=config)).save(path)


def write_quizzes(folder: Path = QUIZZES) -> list[Path]:
    """Writes all files to ``folder``; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    chapters, written = {}, [folder / "moodle.xml"]
    for chapter in read_chapters():
        title = f"{chapter.number:02d} {chapter.title}"
        chapters[title] = questions(ROOT / "chapters" / f"{chapter.stem}.ipynb")
        written.append(folder / f"qti-{chapter.number:02d}.zip")
        write_qti(written[-1], title, chapters[title])
    written[0].write_text(moodle(chapters), encoding="utf-8")
    return written


def _inside(tag: Tag | None) -> str:
    """The HTML inside of ``tag``, on one line."""
    return "" if tag is None else re.sub(r"\s+", " ", tag.decode_contents()).strip()


def _text(parent: ElementTree.Element, text: str) -> None:
    ElementTree.SubElement(parent, "text").text = text


def _markdown(html: str) -> str:
    """``html`` as Markdown that means the same: tags stay, and what Markdown would read as markup is escaped."""
    soup = BeautifulSoup(html, "html.parser")
    for string in list(soup.find_all(string=True)):
        string.replace_with(NavigableString(re.sub(r"([\\`*_{}\[\]()#+\-.!$~|])", r"\\\1", str(string))))
    return soup.decode()


def main() -> int:
    """Writes the files and says where they are."""
    try:
        written = write_quizzes()
    except ModuleNotFoundError as error:
        print(f"{error.name} is missing: pip install 'robustlab[course]'", file=sys.stderr)
        return 1
    print(f"{len(written)} files in {QUIZZES}: moodle.xml, and a QTI package per chapter")
    return 0


if __name__ == "__main__":
    sys.exit(main())
