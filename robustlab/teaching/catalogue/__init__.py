"""One row per method: what the book holds, and what is still to come.

The catalogue holds strings only and imports nothing else of robustlab, so that reading it costs nothing. The
contract suites read it, and so do the checks that every finished method is documented and has a claim in its chapter.
``python -m book.generate`` makes of it the stubs of the lazy packages, the sections of the API reference, the method
index and the changelog's list of methods. The rows stand in one file per part of the survey, in the order in which the
chapters treat them.
"""

from __future__ import annotations

from difflib import get_close_matches

from robustlab.teaching.catalogue.applications import APPLICATIONS
from robustlab.teaching.catalogue.defenses import DEFENSES
from robustlab.teaching.catalogue.evasion_black_box import BLACK_BOX
from robustlab.teaching.catalogue.evasion_transfer_on import TRANSFER_ON
from robustlab.teaching.catalogue.evasion_white_box import WHITE_BOX
from robustlab.teaching.catalogue.row import ACCESS, CHAPTERS, DIMS, FOLDERS, KINDS, NORMS, SECTIONS, Row
from robustlab.teaching.catalogue.training_phase import TRAINING_PHASE
from robustlab.teaching.catalogue.verification import VERIFICATION

__all__ = ["ACCESS", "CHAPTERS", "DIMS", "FOLDERS", "KINDS", "NORMS", "ROWS", "SECTIONS", "Row", "get", "rows"]

ROWS: tuple[Row, ...] = (
    *TRAINING_PHASE,
    *WHITE_BOX,
    *BLACK_BOX,
    *TRANSFER_ON,
    *DEFENSES,
    *VERIFICATION,
    *APPLICATIONS,
)
"""All rows, part by part of the survey."""

_BY_KEY = {row.key: row for row in ROWS}


def get(key: str) -> Row:
    """The row of ``key``.

    Args:
        key: a method's name, such as ``"pgd"``.

    Raises:
        ValueError: no row has this key.
    """
    if key not in _BY_KEY:
        near = ", ".join(get_close_matches(str(key), _BY_KEY)) or "nothing"
        raise ValueError(f"key: got {key!r}, want a key of the catalogue (near it: {near})")
    return _BY_KEY[key]


def rows(kind: str | None = None, done: bool | None = None) -> tuple[Row, ...]:
    """The rows of one kind, or in one state, in the catalogue's order.

    Args:
        kind: one of ``KINDS``; None means all.
        done: True for the methods that exist, False for those to come; None means both.

    Raises:
        ValueError: an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, want one of {', '.join(KINDS)}")
    return tuple(row for row in ROWS if kind in (None, row.kind) and done in (None, row.done))
