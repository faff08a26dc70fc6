"""Machine-checked claims of the chapters.

A chapter states a finding, and a cell that measured it calls `claim`. The claims of one cell are shown as one table
when the cell ends: the finding, the paper's number, ours with its spread, what would have refuted it, and the
verdict. Numbers that move between machines carry the mark of `robustlab.teaching.reports`, so strict nbval compares
all the rest. The records travel in the output's metadata too, from where the book builds its page "paper beside
ours".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from robustlab.teaching.reports import MARK, html_table, number_text, show, strict

METADATA_KEY = "robustlab_claims"
"""Key of an output's metadata under which the records of its claims travel."""

HOLDS = "holds"
FAILS = "does not reproduce here"
OTHERWISE = "declared {}; here it is otherwise"

Number = float | int | str | tuple[float, float, float]
"""A number, a text, or a number with the two ends of its interval."""

Numbers = Number | dict[str, Number] | None

_KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_DIGITS = 4
_HEADER = ("Claim", "Paper", "Here", "Refuted by", "Verdict")
_stated: dict[str, tuple[str, str]] = {}
_pending: list[ClaimRecord] = []
_watched: set[int] = set()


class ClaimError(AssertionError):
    """The outcome of a claim is not the declared one, or the claim is badly formed."""


@dataclass(frozen=True)
class ClaimRecord:
    """One claim as it was recorded in a chapter: its words, its verdict, its numbers."""

    id: str
    text: str
    method: str
    reproduces: bool
    ours: Numbers = None
    paper: Numbers = None
    n: str | None = None
    refuted_by: str | None = None
    reason: str | None = None
    outcome: bool | None = None
    """What came out, where that is not what was declared."""

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        declared = HOLDS if self.reproduces else FAILS
        return declared if self.outcome is None else OTHERWISE.format(f"that it {declared}")

    @property
    def here(self) -> str:
        """Our numbers, each with the mark, and over what they were taken."""
        return number_text(self.ours, MARK) + (f" ({self.n})" if self.n else "")

    @property
    def line(self) -> str:
        """The claim as lines of text."""
        lines = [f"{self.id}: {self.text} — {self.verdict}"]
        rest = {"paper": number_text(self.paper), "here": self.here, "refuted by": self.refuted_by or "–"}
        return "\n".join(lines + [f"    {name:10}  {text}" for name, text in rest.items() if text != "–"])


def claim(
    id: str,
    text: str,
    outcome: Any,
    *,
    method: str,
    ours: Numbers = None,
    paper: Numbers = None,
    n: str | int | None = None,
    refuted_by: str | None = None,
    reproduces: bool = True,
    reason: str | None = None,
) -> None:
    """State a finding, check it, and show its verdict in the table of its cell.

    Args:
        id: name of the claim in kebab-case, unique over the book.
        text: the finding in one sentence, without numbers that vary between machines.
        outcome: what the cell measured; its truth must equal ``reproduces``.
        method: key of the catalogue row that the claim is about.
        ours: our number, or several by name, in the order in which they are shown; each is a number, a text, or
            ``(number, low, high)`` with its interval; rounded to four digits.
        paper: the paper's number, or several by name, in the same form.
        n: over what the numbers were taken, such as ``"300 digits, 3 networks"``; an int counts samples.
        refuted_by: the result that would have refuted the finding, in words.
        reproduces: whether the finding is expected to hold here (default True).
        reason: why it does not; needed exactly where ``reproduces`` is False.

    Raises:
        ClaimError: the id or the method is no name, the text is not one line, a reason is missing or superfluous, or
            this id already stands for another claim in this kernel (running the same cell again is no error); and,
            in the book's own runs (``ROBUSTLAB_STRICT=1``), if the outcome is not the declared one. Elsewhere, where a
            reader may have changed what is measured, the table says that it came out otherwise.

    Source: this book.
    """
    over = f"n = {n:,}" if isinstance(n, int) else n
    record = ClaimRecord(id, text, method, bool(reproduces), _rounded(ours), _rounded(paper), over, refuted_by, reason)
    _check_form(record)
    if bool(outcome) != record.reproduces:
        if strict():
            declared = "to hold" if record.reproduces else "not to reproduce"
            raise ClaimError(f"claim {id!r} is declared {declared}, but its outcome is {bool(outcome)} ({ours=})")
        record = replace(record, outcome=bool(outcome))
    _stated[id] = (text, method)
    _pending.append(record)
    if not _shown_at_the_end_of_the_cell():
        _show_pending()


def recorded_claims(notebook: Path) -> list[ClaimRecord]:
    """Read the claims that an executed notebook carries, in their order.

    Args:
        notebook: path of an ``.ipynb`` file with its outputs.

    Returns:
        One record per claim.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return [record for cell in cells for output in cell.get("outputs", ()) for record in records_of(output)]


def records_of(output: Mapping[str, Any]) -> list[ClaimRecord]:
    """The claims that one output of a cell carries."""
    carried = output.get("metadata", {}).get(METADATA_KEY, ())
    return [ClaimRecord(**{key: _from_json(value) for key, value in one.items()}) for one in carried]


def claims_table(records: Sequence[ClaimRecord]) -> str:
    """Claims as a table in HTML, each of several numbers on a line of its own."""
    return html_table(
        _HEADER,
        [
            (
                f'<span id="claim-{record.id}">{escape(record.text)}</span>',
                *(_lines(text) for text in (number_text(record.paper), record.here, record.refuted_by or "–")),
                escape(record.verdict),
            )
            for record in records
        ],
        kind="claims",
    )


def _lines(text: str) -> str:
    return escape(text).replace("; ", "<br>").replace(" %", "&nbsp;%")


def _check_form(record: ClaimRecord) -> None:
    if not _KEBAB.fullmatch(record.id):
        raise ClaimError(f"id: got {record.id!r}, want kebab-case such as 'fgsm-exact-on-affine'")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", record.method or ""):
        raise ClaimError(f"method: got {record.method!r}, want a key of the catalogue such as 'fgsm'")
    if not record.text.strip() or record.text != " ".join(record.text.split()):
        raise ClaimError(f"text: got {record.text!r}, want one line without stray spaces")
    if not record.reproduces and not (record.reason or "").strip():
        raise ClaimError(f"reason: claim {record.id!r} does not reproduce, so say why")
    if record.reproduces and record.reason is not None:
        raise ClaimError(f"reason: claim {record.id!r} reproduces, so it needs none")
    if _stated.get(record.id, (record.text, record.method)) != (record.text, record.method):
        raise ClaimError(f"id: {record.id!r} already stands for another claim: {_stated[record.id][0]!r}")


def _rounded(value: Any) -> Numbers:
    """Keep four significant digits, as plain Python that JSON can carry."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _rounded(entry) for key, entry in value.items()}  # type: ignore[misc]
    if isinstance(value, tuple):
        return tuple(_rounded(entry) for entry in value)  # type: ignore[return-value]
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    short = float(f"{number:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _to_json(value: Any) -> Any:
    """Parts by name become pairs: notebooks are written with their keys sorted, and the order is the chapter's."""
    if isinstance(value, Mapping):
        return [[name, _to_json(part)] for name, part in value.items()]
    return list(value) if isinstance(value, tuple) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(part, list) for part in value):
        return {name: _from_json(part) for name, part in value}
    return tuple(value) if isinstance(value, list) else value


def _shown_at_the_end_of_the_cell() -> bool:
    """Whether an IPython shell runs this, which then shows the table of its cell; asked to do so on the first claim."""
    try:
        from IPython import get_ipython  # IPython is not a dependency of the library
    except ImportError:
        return False
    shell = get_ipython()
    if shell is None:
        return False
    if id(shell) not in _watched:
        shell.events.register("post_run_cell", lambda _result: _show_pending())
        _watched.add(id(shell))
    return True


def _show_pending() -> None:
    """Show the claims made since the last table as one."""
    if not _pending:
        return
    records = _pending.copy()
    _pending.clear()
    carried = [{key: _to_json(value) for key, value in vars(record).items() if value is not None} for record in records]
    text = "\n".join(record.line for record in records)
    show(text, claims_table(records), {METADATA_KEY: carried})
