"""The few pieces of MyST Markdown that the generated pages need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def one_line(text: str) -> str:
    """``text`` with every run of white space as one space, so that it fits a table cell."""
    return " ".join(text.split())


def list_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    widths: Sequence[int] | None = None,
    *,
    filterable: bool = False,
) -> str:
    """A ``list-table`` directive. Unlike a pipe table it takes cells that hold ``|``, as in a norm.

    The page gets one field that filters the rows of all its tables that are ``filterable``.
    """
    lines = ["```{list-table}", ":header-rows: 1"]
    if filterable:
        lines.append(":class: filterable")
    if widths is not None:
        lines.append(":widths: " + " ".join(str(width) for width in widths))
    lines.append("")
    for row in (header, *rows):
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells where the header has {len(header)}: {row!r}")
        for position, cell in enumerate(row):
            lines.append(("* - " if position == 0 else "  - ") + one_line(cell))
    return "\n".join([*lines, "```"])


def page(title: str, *blocks: str) -> str:
    """A page: a heading, then blocks with one blank line between them."""
    return "\n\n".join([f"# {title}", *(block.strip("\n") for block in blocks if block.strip())]) + "\n"
