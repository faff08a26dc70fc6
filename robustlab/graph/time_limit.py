"""A coarse time limit that reaches into bounds and readers: who has one sets it, and long loops look at it.

A single pass of bounds through a large network may take minutes, so a search cannot look at its clock between passes
alone. Passing a clock through all operators would put it into every signature; a context variable does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_END: ContextVar[float] = ContextVar("_END", default=float("inf"))


class OutOfTime(Exception):
    """The time limit is over; nothing is known of what was being computed."""


@contextmanager
def time_limit(end: float) -> Iterator[None]:
    """Inside, :func:`tick` raises once ``time.monotonic()`` is past ``end`` (or an earlier limit around it)."""
    token = _END.set(min(end, _END.get()))
    try:
        yield
    finally:
        _END.reset(token)


def time_left() -> float:
    """Seconds until the limit, at least 0.01; infinity without one. For solvers that look at a clock of their own."""
    return max(0.01, _END.get() - time.monotonic())


def tick() -> None:
    """To be called in every loop whose rounds take some milliseconds.

    Raises:
        OutOfTime: past the limit.
    """
    if time.monotonic() > _END.get():
        raise OutOfTime
