"""The page "Execution times", from the timings that ``python -m book.execute`` leaves in each notebook.

Below the chapters it shows the size of a checkout, counted now, and what book/repository_times.yml states of the rest,
and from the same file what the tests will take when all chapters and methods are there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from book.myst import list_table, page
from book.notebooks import ROOT, Chapter

MEASURED = ROOT / "book" / "repository_times.yml"

BUDGET_SECONDS = 60
BUDGET_MB = 2000
WORKERS = 2
LIMIT_MINUTES = 25  # for `make test`, with all chapters
COUNTED = (  # what, where, megabytes that it may have
    ("A copy of the repository, without git's history", "", None),
    ("of it data sets, pictures, sounds and texts", "robustlab/data/files/", 20),
    ("of it checkpoints of networks", "robustlab/zoo/checkpoints/", 25),
)

INTRODUCTION = f"""
Every chapter should run on a laptop. The budget of a chapter is a median of **{BUDGET_SECONDS} s** and a
peak of **{BUDGET_MB // 1000} GB** of memory, on two processor cores and without a GPU.

The times below are read from the notebooks. A chapter is executed three times before it is committed, each
time in a fresh kernel and on one thread. The seconds are the processor's, as a clock would show them on a core
of its own. The table shows the median and the slowest run. Peak memory is that of the kernel's process. Yours
will differ with the machine. `make test` runs all chapters once more, in one thread each. Chapters are meant to
take 30 s there on average and 45 s at most. The run fails only where the cells of one take longer than 120 s,
about twice what the slowest takes on a core of its own, so that a busy machine does not fail it.
"""

COMMAND = """
To measure on your own machine, run `python -m book.execute` in the repository, inside the book's
environment. It executes the chapters and writes the new times into them.
"""


def times_page(chapters: Sequence[Chapter]) -> str:
    """The page as MyST Markdown; a chapter without a recorded timing is listed as not measured."""
    rows = [_row(chapter) for chapter in chapters]
    header = ("Chapter", "Median (s)", "Slowest (s)", "Peak memory (MB)", "Within the budget")
    blocks = [INTRODUCTION]
    if rows:
        blocks.append(list_table(header, rows, widths=(44, 12, 12, 16, 16)))
    measured = yaml.safe_load(MEASURED.read_text(encoding="utf-8"))
    sizes = [checkout_bytes(part) for _, part, _ in COUNTED]
    blocks += [COMMAND, *repository_blocks(measured, sizes), *projection_blocks(measured["parts"])]
    return page("Execution times", *blocks)


def repository_blocks(measured: Mapping[str, Any], sizes: Sequence[int | None]) -> tuple[str, ...]:
    """Heading, a sentence on where the numbers come from, and the table of the repository; sizes of COUNTED."""
    rows = [
        (what, f"{size / 1e6:.1f} MB" if size is not None else "not counted: no git checkout", _limit(most))
        for (what, _, most), size in zip(COUNTED, sizes, strict=True)
    ]
    rows += [(row["what"], row["measured"], row.get("limit", "–")) for row in measured["rows"]]
    day = measured["date"]
    origin = f"""
Sizes are counted whenever this page is built. Times are not: they were measured on
{day:%B} {day.day}, {day.year}, on {measured["machine"]}.
"""
    table = list_table(("What", "Measured", "Limit"), rows, widths=(60, 24, 16))
    return ("## The repository as a whole", origin, table)


def _limit(megabytes: int | None) -> str:
    return "–" if megabytes is None else f"{megabytes} MB"


def projected_minutes(parts: Sequence[Mapping[str, Any]]) -> float:
    """Of `make test` with all chapters and methods, on two workers that are always busy."""
    return sum(part["number"] * part["each"] for part in parts) / 60 / WORKERS


def projection_blocks(parts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Heading, the sum, and a table: each part of `make test` today and when all chapters and methods are there."""
    header = ("Part of `make test`", "Today (s)", "With all (s)", "Reckoned as")
    rows = [
        (part["part"], f"{part['today']:,}", f"{part['number'] * part['each']:,.0f}",
         f"{part['number']} {part['of']}, {part['each']} s each" if "of" in part else "one sum")
        for part in parts
    ]  # fmt: skip
    today = sum(part["today"] for part in parts) / 60 / WORKERS
    text = f"""
Processor seconds by part. On {WORKERS} cores they are {today:.0f} minutes today.
With 32 chapters and 145 methods they will be {projected_minutes(parts):.0f} minutes.
At most {LIMIT_MINUTES} are wanted.
"""
    return ("## What the tests will take", text, list_table(header, rows, widths=(34, 14, 14, 38)))


def checkout_bytes(under: str = "", root: Path = ROOT) -> int | None:
    """Bytes of the files ``under`` a folder that git tracks; None where there is no git or no checkout."""
    command = ["git", "-c", f"safe.directory={root}", "ls-files", "-z", "--", under or "."]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return sum((root / name).stat().st_size for name in listed.split("\0") if (root / name).is_file())


def within_budget(chapter: Chapter) -> bool | None:
    """Whether the chapter keeps to time and memory; None where it was not measured."""
    timing = chapter.timing
    if timing is None:
        return None
    return median(timing.runs_s) <= BUDGET_SECONDS and timing.peak_mb <= BUDGET_MB


def _row(chapter: Chapter) -> tuple[str, ...]:
    timing = chapter.timing
    if timing is None:
        return (chapter.link, "not measured", "–", "–", "–")
    runs = timing.runs_s
    verdict = "yes" if within_budget(chapter) else "**no**"
    return (chapter.link, f"{median(runs):.1f}", f"{max(runs):.1f}", f"{timing.peak_mb:,.0f}", verdict)
