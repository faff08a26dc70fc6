"""Hold the chapters to the book's rules: ``python -m book.check_notebooks [CHAPTER ...]``.

The rules stand in `book.chapter_form` (executed, clean, captioned, quick), `book.chapter_anatomy` (parts, length,
quiz, exercises) and `book.chapter_reading` (first screen, folded code, symbols, numbers, hints); tests/book applies the
same ones, and plants a bug for each.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from book import chapter_anatomy, chapter_form, chapter_reading
from book.chapter_form import Notebook
from robustlab.teaching.claims import recorded_claims

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
RULES = {rule.__name__: rule for rule in (*chapter_form.RULES, *chapter_anatomy.RULES)}
READING = {rule.__name__: rule for rule in chapter_reading.RULES}


def read(path: Path) -> Notebook:
    """A notebook as plain data."""
    return json.loads(path.read_text(encoding="utf-8"))


def chapter_paths() -> list[Path]:
    """The committed chapters, in order."""
    return sorted(CHAPTERS.glob("*.ipynb"))


def broken_rules(path: Path) -> Iterator[str]:
    """Complaints about one chapter, each with the name of its rule."""
    notebook = read(path)
    for name, rule in {**RULES, **READING}.items():
        yield from (f"{name}: {problem}" for problem in rule(notebook))
    number = chapter_anatomy.chapter_number(notebook)
    if not path.name.startswith(f"{number}_"):
        yield f"numbers: {path.name} labels its equations with {number}"


def repeated_claims(paths: Iterable[Path]) -> list[str]:
    """Ids of claims that more than one place of the book uses."""
    counts = Counter(record.id for path in paths for record in recorded_claims(path))
    return sorted(name for name, count in counts.items() if count > 1)


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status."""
    paths = [Path(argument).resolve() for argument in arguments] or chapter_paths()
    problems = [f"{path.name}: {problem}" for path in paths for problem in broken_rules(path)]
    # A copied chapter has the claims of the one it was copied from, which need not be among the arguments.
    book = {*paths, *chapter_paths()}
    problems += [f"claim {name!r} occurs more than once in the book" for name in repeated_claims(book)]
    print("\n".join(problems) or f"chapters that keep the rules: {len(paths)}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
