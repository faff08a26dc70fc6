"""The command that builds the book: what it says where it cannot write."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from book import build


def _said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], html: Path) -> list[str]:
    """The lines of complaint of a build whose output folder is ``html``; Sphinx must not be started."""
    monkeypatch.setattr(sys, "argv", ["book.build"])
    monkeypatch.setattr(build, "HTML", html)
    monkeypatch.setattr(build, "build", lambda **_: pytest.fail("the build began"))
    assert build.main() == 1
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err.splitlines()


@pytest.mark.parametrize("place", ["below a file", "a folder that is there and cannot be written to"])
def test_a_checkout_that_cannot_be_written_to_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    """Permissions do not bind root, so no folder is made read-only here: /proc is one in which nobody makes files."""
    (tmp_path / "file").touch()
    html = tmp_path / "file" / "html" if place == "below a file" else Path("/proc/self")
    monkeypatch.setattr("book.generate.write_generated", lambda: pytest.fail("pages were generated"))
    (line,) = _said(monkeypatch, capsys, html)
    assert line.startswith("The book is built inside the checkout, which cannot be written to: ") and str(html) in line


def test_generated_pages_that_cannot_be_written_are_the_same_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "book/generated/method_index.md")

    monkeypatch.setattr("book.generate.write_generated", refuse)
    (line,) = _said(monkeypatch, capsys, tmp_path / "html")
    assert "cannot be written to" in line and "book/generated/method_index.md" in line


@pytest.mark.parametrize("changed", [None, "_toc.yml", "_config.yml"])
def test_pages_read_under_another_table_of_contents_are_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str | None
) -> None:
    for k, name in enumerate(("_toc.yml", "_config.yml", "_build/doctrees/environment.pickle", "_build/html/a.html")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (k, k))
    if changed:
        os.utime(tmp_path / changed, (9, 9))
    kept: list[bool] = []

    def look(root: Path, output: Path, doctrees: Path) -> None:
        kept.extend(folder.exists() for folder in (output, doctrees))
        raise InterruptedError

    monkeypatch.setattr(build, "_run_sphinx", look)
    with pytest.raises(InterruptedError):
        build.build(tmp_path)
    assert kept == [changed is None] * 2
