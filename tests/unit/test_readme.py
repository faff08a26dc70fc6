"""The README does what it says: its code runs as printed, its commands and its files exist."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import robustlab
from robustlab import zoo
from robustlab.attacker.results import AttackResult

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    """The contents of the README's code blocks in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def make_targets(text: str) -> set[str]:
    """The targets of all ``make TARGET`` commands in ``text``."""
    return set(re.findall(r"\bmake ([a-z][a-z-]*)", text))


def split_numbers(text: str) -> tuple[str, list[float]]:
    """``text`` with ``#`` for each percentage, and the percentages."""
    return re.sub(r"\d+(?=%)", "#", text).strip(), [float(number) for number in re.findall(r"\d+(?=%)", text)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_readme_code_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *others), (shown,) = fenced("python"), fenced("text")
    printed = io.StringIO()
    names: dict[str, Any] = {"__name__": "readme"}
    with contextlib.redirect_stdout(printed):
        exec(compile(first, "README.md", "exec"), names)
    # What the reader brings: an ONNX file.
    digit = (torch.zeros(1, 1, 28, 28),)
    batches = {"input": {0: "batch"}}
    torch.onnx.export(
        zoo.load("mnist_mlp"),
        digit,
        str(tmp_path / "mnist.onnx"),
        dynamo=False,
        input_names=["input"],
        dynamic_axes=batches,
    )
    monkeypatch.chdir(tmp_path)
    for code in others:
        names.pop("result", None)
        exec(compile(code, "README.md", "exec"), names)
        assert isinstance(names["result"], AttackResult)
    clean, *under_attack = names["curve"].accuracy.tolist()
    assert clean > 0.9 > under_attack[-1]
    words, numbers = split_numbers(printed.getvalue())
    words_shown, numbers_shown = split_numbers(shown)
    assert words == words_shown
    # Sums are ordered differently on other processors: 2 of the 100 images may go the other way.
    assert numbers == pytest.approx(numbers_shown, abs=2.01)


def test_readme_code_is_about_ten_lines() -> None:
    code = fenced("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_make_targets_of_the_readme_and_the_pages_exist() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", rules, flags=re.MULTILINE))
    code = [*fenced("bash"), *re.findall(r"`([^`\n]+)`", README)]
    for page in (ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))):
        code += re.findall(r"`([^`\n]+)`|^(make .*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = set().union(*(make_targets("\n".join(part) if isinstance(part, tuple) else part) for part in code))
    assert {"book", "test"} <= named
    assert named <= targets, f"no such target in the Makefile: {sorted(named - targets)}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_that_it_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:)([^)#\s]+)\)", text)
    named = re.findall(r"`([\w.-]+/[\w./-]*|[A-Z][\w-]*\.(?:md|cff)|[\w-]+\.txt)`", text)
    assert named and (linked or page != "README.md")
    missing = [
        name for name in {*linked, *named} if not re.search("KEY|NAME|NN|FOLDER", name) and not (ROOT / name).exists()
    ]
    assert not missing, f"{page} names files that do not exist: {sorted(missing)}"


def test_the_picture_has_a_text() -> None:
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert [path for _, path in pictures] == ["book/static/images/readme.png"]
    assert len(pictures[0][0]) > 40


def test_citation_file_is_valid_and_agrees_with_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= set(citation)
    assert citation["title"] == README.splitlines()[0].removeprefix("# ")
    assert citation["version"] == robustlab.__version__


def test_changelog_opens_with_the_current_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert versions[0] == robustlab.__version__


def test_licenses_are_what_the_readme_says() -> None:
    code, prose = (ROOT / "LICENSE").read_text(), (ROOT / "LICENSE-PROSE").read_text()
    assert "Apache License" in code and "Version 2.0" in code
    assert "Attribution 4.0 International" in prose
    assert "https://creativecommons.org/licenses/by/4.0/legalcode" in prose
