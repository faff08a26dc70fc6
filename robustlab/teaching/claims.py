"""Machine-checked claims of the chapters.

A chapter states a finding, and the same cell that measured it calls `claim`. The verdict that
is shown has the same text on every machine, so strict nbval can compare it; the numbers behind
it travel in the output's metadata, from where the book builds its page "paper beside ours".
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METADATA_KEY = "robustlab_claim"
"""Key of an output's metadata under which a claim's record travels."""

HOLDS = "holds"
FAILS = "does not reproduce here"

Number = float | int | str
Numbers = Number | dict[str, Number] | None

_KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_DIGITS = 4
_stated: dict[str, tuple[str, str]] = {}


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
    reason: str | None = None

    @property
    def line(self) -> str:
        """The one line that a reader sees."""
        return f"{self.id}: {self.text} — {HOLDS if self.reproduces else FAILS}"


def claim(
    id: str,
    text: str,
    outcome: Any,
    *,
    method: str,
    ours: Numbers = None,
    paper: Numbers = None,
    reproduces: bool = True,
    reason: str | None = None,
) -> None:
    """State a finding, check it, and show its verdict.

    The verdict reads ``id: text — holds``, or ``id: text — does not reproduce here`` where a
    paper's finding is declared not to reproduce at this book's scale.

    Args:
        id: name of the claim in kebab-case, unique over the book.
        text: the finding in one sentence, without numbers that vary between machines.
        outcome: what the cell measured; its truth must equal ``reproduces``.
        method: key of the catalogue row that the claim is about.
        ours: our number, or several by name; rounded to four digits.
        paper: the paper's number, or several by name, in the same form.
        reproduces: whether the finding is expected to hold here (default True).
        reason: why it does not; needed exactly where ``reproduces`` is False.

    Raises:
        ClaimError: the outcome is not the declared one, the id or the method is no name, the
            text is not one line, a reason is missing or superfluous, or this id already stands
            for another claim in this kernel. Running the same cell again is no error.

    Source: this book.
    """
    record = ClaimRecord(id, text, method, bool(reproduces), _rounded(ours), _rounded(paper), reason)
    _check_form(record)
    if bool(outcome) != record.reproduces:
        declared = "to hold" if record.reproduces else "not to reproduce"
        raise ClaimError(f"claim {id!r} is declared {declared}, but its outcome is {bool(outcome)} ({ours=})")
    _stated[id] = (text, method)
    _show(record)


def recorded_claims(notebook: Path) -> list[ClaimRecord]:
    """Read the claims that an executed notebook carries, in their order.

    Args:
        notebook: path of an ``.ipynb`` file with its outputs.

    Returns:
        One record per claim.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    found = [output.get("metadata", {}).get(METADATA_KEY) for output in outputs]
    return [ClaimRecord(**record) for record in found if record]


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
    if isinstance(value, dict):
        return {str(key): _rounded(entry) for key, entry in value.items()}  # type: ignore[misc]
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    short = float(f"{number:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _show(record: ClaimRecord) -> None:
    """Display the verdict in a notebook, print it anywhere else."""
    try:
        from IPython import get_ipython  # IPython is not a dependency of the library
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(record.line)
        return
    from IPython.display import display

    carried = {key: value for key, value in asdict(record).items() if value is not None}
    display({"text/plain": record.line}, raw=True, metadata={METADATA_KEY: carried})
