"""The page "The papers beside our numbers", from the claims that the chapters' stored outputs carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from book.myst import list_table, one_line, page
from book.notebooks import Chapter
from robustlab.teaching.claims import FAILS, HOLDS, ClaimRecord
from robustlab.teaching.reports import number_text

Found = tuple[Chapter, ClaimRecord]

INTRODUCTION = """
Each row is one claim. Most come from a paper; some are facts that a chapter relies on. A cell of the
chapter computed the number under *ours* and compared the outcome with the outcome that the chapter
declares. If the two differ, the chapter fails its test and this book is not built. So *holds* below means
that it held when the chapter last ran, and that the test suite checks it again on each run.

Our models and data are far smaller than those of the papers. Read the two numbers as a comparison of
directions, not as a contest.
"""

NOTHING_FAILS = """
No chapter declares a claim that does not reproduce here. That says something about the claims we chose,
too: they are those that can be tested at this scale.
"""

FAILURES = """
These claims were tested and did not come out as the paper reports. Each chapter says so where the claim
stands. A claim that fails on a small model is no proof against the paper: the reason beside it is our best
explanation.
"""


def claims_page(chapters: Sequence[Chapter], titles: Mapping[str, str] | None = None) -> str:
    """The page as MyST Markdown.

    Args:
        chapters: the chapters, in the book's order.
        titles: the name to print for a method's catalogue key; a key that is not there is printed as it is.
    """
    found = [(chapter, claim) for chapter in chapters for claim in chapter.claims]
    failing = [(chapter, claim) for chapter, claim in found if not claim.reproduces]
    blocks = [INTRODUCTION, _count_text(len(found), len(failing))]
    for chapter in chapters:
        if chapter.claims:
            blocks += [f"## {chapter.link}", _table(chapter.claims, titles or {})]
    blocks.append("## What does not reproduce here")
    blocks.append(_failures(failing) if failing else NOTHING_FAILS)
    return page("The papers beside our numbers", *blocks)


def _count_text(total: int, failing: int) -> str:
    if not total:
        return "No chapter states a claim yet."
    noun = "claim" if total == 1 else "claims"
    return f"**{total} {noun}**: {total - failing} hold, {failing} do not reproduce here."


def _table(claims: Sequence[ClaimRecord], titles: Mapping[str, str]) -> str:
    rows = [
        (
            claim.text + (f" *Refuted by* {claim.refuted_by}." if claim.refuted_by else ""),
            titles.get(claim.method, f"`{claim.method}`"),
            one_line(number_text(claim.paper)),
            one_line(number_text(claim.ours)) + (f" ({claim.n})" if claim.n else ""),
            HOLDS if claim.reproduces else f"**{FAILS}**",
        )
        for claim in claims
    ]
    return list_table(("Claim", "Method", "Paper", "Ours", "Verdict"), rows, (34, 16, 16, 22, 12), filterable=True)


def _failures(failing: Sequence[Found]) -> str:
    items = [
        f"- **{claim.text}** ({chapter.link}) {one_line(claim.reason or '')}".rstrip() for chapter, claim in failing
    ]
    return "\n".join([FAILURES.strip("\n"), "", *items])
