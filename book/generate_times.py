"""The page "Execution times", from the timings that ``python -m book.execute`` leaves in each notebook."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from book.myst import list_table, page
from book.notebooks import Chapter

BUDGET_SECONDS = 60
BUDGET_MB = 2000

INTRODUCTION = f"""
Every chapter should run on a laptop. The budget of a chapter is a median of **{BUDGET_SECONDS} s** and a
peak of **{BUDGET_MB // 1000} GB** of memory, on two processor cores and without a GPU.

The times below are read from the notebooks. A chapter is executed three times before it is committed, each
time in a fresh kernel, whose start is not counted. The table shows the median and the slowest run. Peak
memory is that of the kernel's process. Yours will differ with the machine.
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
    return page("Execution times", *blocks, COMMAND)


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
