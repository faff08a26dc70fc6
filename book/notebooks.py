"""Reading the committed chapters: titles, claims and timings, as plain data and without running anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustlab.teaching.claims import ClaimRecord, recorded_claims

ROOT = Path(__file__).resolve().parents[1]
TIMING_KEY = "robustlab_timing"


@dataclass(frozen=True)
class Timing:
    """What ``python -m book.execute`` measured: seconds of each run, and the kernel's peak memory in MB."""

    runs_s: tuple[float, ...]
    peak_mb: float


@dataclass(frozen=True)
class Chapter:
    """One committed notebook, as the generated pages see it."""

    stem: str
    title: str
    claims: tuple[ClaimRecord, ...] = ()
    timing: Timing | None = None

    @property
    def number(self) -> int:
        """The chapter's number, from the file name ``NN_topic``."""
        return int(self.stem.partition("_")[0])

    @property
    def link(self) -> str:
        """A Markdown link to the chapter, for a page that lies in book/generated."""
        return f"[{self.number:02d}. {self.title}](../../chapters/{self.stem}.ipynb)"


def read_chapter(path: Path) -> Chapter:
    """The chapter at ``path``; raises ValueError where it has no top-level heading."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    titles = (line[2:].strip() for line in _markdown_lines(notebook) if line.startswith("# "))
    title = next(titles, None)
    if title is None:
        raise ValueError(f"{path.name}: no line of a Markdown cell starts with '# ', so there is no title")
    recorded = notebook.get("metadata", {}).get(TIMING_KEY)
    timing = Timing(tuple(recorded["runs_s"]), recorded["peak_mb"]) if recorded else None
    return Chapter(path.stem, title, tuple(recorded_claims(path)), timing)


def read_chapters(folder: Path = ROOT / "chapters") -> list[Chapter]:
    """All chapters of ``folder``, sorted by file name and so by number."""
    return [read_chapter(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def _markdown_lines(notebook: Mapping[str, Any]) -> Iterator[str]:
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = cell["source"]
            yield from (source if isinstance(source, str) else "".join(source)).splitlines()
