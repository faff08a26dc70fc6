"""Numbers and expectations as a chapter shows them: the number on the page, the interval in the code.

A number that moves between machines is printed after the mark ``≈``. The comparison of stored and fresh outputs
leaves out what follows the mark, so the cell that prints the number also holds it to the interval in which it must
lie. Where a reader has changed ε, model or data, what was expected need not hold: then it is reported, and the
notebook runs on. In the book's own runs (``ROBUSTLAB_STRICT=1``) it raises.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Real
from typing import Any

MARK = "≈"
"""Stands before every number that may move between machines."""

MOVING = re.compile(MARK + r"(?:[-−+±\d.,e∞%()\[\]/ –]|of|to)*")
"""The mark and the number behind it, with its interval or its "of 300": what the comparison of outputs leaves out."""

STRICT = "ROBUSTLAB_STRICT"
"""The environment variable under which an expectation that does not hold is an error."""

UNEXPECTED = "expected: {}; here it does not hold"


def check(outcome: Any, expected: str) -> None:
    """Hold an experiment to what the text says about it: silent where it holds, a report where it does not.

    Args:
        outcome: what the cell measured, by its truth.
        expected: the expectation in words, such as ``"PGD fools at least 40 of 60 digits"``.

    Raises:
        AssertionError: it does not hold, and ``ROBUSTLAB_STRICT=1``.

    Source: this book.
    """
    if not outcome:
        _report(UNEXPECTED.format(expected))


def about(value: Any, low: float, high: float, form: str = ".3g", *, interval: tuple[Any, Any] | None = None) -> str:
    """A number that moves between machines as text, held to the interval in which the text needs it.

    Args:
        value: the number, or a tensor of one element.
        low, high: where it must lie, ends included.
        form: how it is printed, a format of Python's (default three significant digits).
        interval: the two ends of an interval of confidence to print beside it.

    Returns:
        Such as ``"≈0.97"`` or ``"≈0.97 [0.95, 0.98]"``.

    Raises:
        AssertionError: it lies outside, or is not a number, and ``ROBUSTLAB_STRICT=1``.

    Source: this book.
    """
    number = float(value)
    text = MARK + format(number, form)
    if interval is not None:
        text += " [" + ", ".join(format(float(end), form) for end in interval) + "]"
    if not low <= number <= high:
        _report(UNEXPECTED.format(f"between {low:g} and {high:g}, not {text[1:]}"))
    return text


def show_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Display a table: as HTML in a notebook, as lines of text anywhere else.

    Args:
        header: the names of the columns.
        rows: the cells, each made into text; numbers that move come from `about`.

    Source: this book.
    """
    names, *lines = ([str(cell) for cell in row] for row in (header, *rows))
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (names, *lines)
    )
    show(text, html_table(names, [[escape(cell) for cell in line] for line in lines]))


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    """A table as HTML, of cells that are HTML; each knows its column's name, for screens where rows are stacked."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{escape(name)}">{cell}</td>' for name, cell in zip(header, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def show(text: str, html: str | None = None, metadata: Mapping[str, Any] | None = None) -> None:
    """Display in a notebook, print anywhere else."""
    try:
        from IPython import get_ipython  # IPython is not a dependency of the library
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(text)
        return
    from IPython.display import display

    data = {"text/plain": text} | ({} if html is None else {"text/html": html})
    display(data, raw=True, metadata=dict(metadata or {}))


def number_text(value: Any, mark: str = "") -> str:
    """A number as text: three significant digits, an interval behind it, parts named, a dash where there is none.

    Args:
        value: a number, a text, ``(number, low, high)``, or several of these by name.
        mark: stands before each number; `MARK` for those that move between machines.
    """
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {number_text(part, mark)}" for name, part in value.items())
    if isinstance(value, tuple):
        middle, *ends = map(number_text, value)
        return f"{mark}{middle} [{', '.join(ends)}]"
    text = _real_text(float(value)) if isinstance(value, Real) else " ".join(str(value).split())
    return mark + text if re.match(r"[-−]?[\d∞]", text) else text


def strict() -> bool:
    """Whether an expectation that does not hold is an error."""
    return os.environ.get(STRICT, "") not in ("", "0")


def _report(text: str) -> None:
    if strict():
        raise AssertionError(text)
    print(text)


def _real_text(value: float) -> str:
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")
