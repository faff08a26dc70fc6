"""Runs the tests of the files that changed since origin/main (or, without one, since the last commit).

    python tests/changed.py [pytest's own options]

A changed test runs itself. A changed module runs the tests that mention it, and the contract suites that import its
package. A changed chapter is compared with its stored outputs. A changed page rebuilds the book and opens it in the
browser. It is a quick look while you work; `make test` runs everything.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
# Changes to these may break anything.
EVERYTHING = {"pyproject.toml", "requirements.txt", "constraints.txt", "tests/conftest.py"}
BOOK = ("book/", "_config.yml", "_toc.yml")
SUITE = "tests/suite"


def git(*arguments: str) -> list[str]:
    """The lines that a git command prints; none if it fails."""
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def changed_files() -> list[str]:
    """Paths that differ from where this branch left origin/main, untracked ones too."""
    base = git("merge-base", "HEAD", "origin/main") or ["HEAD"]
    found = git("diff", "--name-only", base[0]) + git("ls-files", "--others", "--exclude-standard")
    return sorted(path for path in set(found) if (ROOT / path).exists())


def mentions(module: PurePosixPath) -> set[str]:
    """The tests that mention a module by its name, or a package by its folder's."""
    name = module.parent.name if module.stem == "__init__" else module.stem
    word = re.compile(rf"\b{re.escape(name)}\b")
    tests = (ROOT / "tests").rglob("test_*.py")
    return {test.relative_to(ROOT).as_posix() for test in tests if word.search(test.read_text(encoding="utf-8"))}


def suites(package: str) -> set[str]:
    """The contract suites' folders that import a package of robustlab; all of them where none does by its name."""
    word = re.compile(rf"\brobustlab(?:\.| import .*\b){package}\b")
    files = [file for file in (ROOT / SUITE).rglob("*.py") if word.search(file.read_text(encoding="utf-8"))]
    return {file.parent.relative_to(ROOT).as_posix() for file in files} or {SUITE}


def tests_of(paths: Iterable[str]) -> set[str]:
    """What to hand to pytest for the changed ``paths``; "book" stands for a rebuilt book in the browser."""
    chosen: set[str] = set()
    for text in paths:
        path = PurePosixPath(text)
        if text in EVERYTHING:
            chosen.add("tests")
        elif text.startswith("chapters/") and path.suffix == ".ipynb":
            chosen |= {text, "tests/book", "book"}
        elif text.startswith(BOOK):
            chosen |= mentions(path) | {"book"}
        elif text.startswith(("experiments/", "robustlab/teaching/tables/")):
            chosen.add("tests/book/test_recorded.py")
        elif text.startswith("tests/"):
            chosen.add(text if path.name.startswith("test_") else path.parent.as_posix())
        elif text.startswith("robustlab/"):
            chosen |= mentions(path) | suites(path.parts[1].removesuffix(".py"))
    return chosen


def main(options: list[str]) -> int:
    """Runs what has to run; returns pytest's exit status."""
    chosen = tests_of(changed_files())
    if not chosen:
        print("No file has changed that a test looks at.")
        return 0
    if "book" in chosen or "tests" in chosen:
        chosen = (chosen - {"book"}) | {"tests/browser"}
        built = subprocess.run([sys.executable, "-m", "book.build"], cwd=ROOT, check=False)
        if built.returncode != 0:
            return built.returncode
    command = [sys.executable, "-m", "pytest", *options, *sorted(chosen)]
    print(" ".join(["pytest", *sorted(chosen)]))
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
