"""HiGHS is quiet by its options, but for a line that its integer programs print by C's ``printf``."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_ONE = Lock()  # standard output belongs to the process: threads take turns


@contextmanager
def silence() -> Iterator[None]:
    """What C code prints inside goes nowhere, where the system is POSIX and has a standard output."""
    with _ONE:
        try:
            kept = os.dup(1) if os.name == "posix" else None
        except OSError:
            kept = None
        if kept is None:
            yield
            return
        library = ctypes.CDLL(None)
        if sys.stdout is not None:
            sys.stdout.flush()
        library.fflush(None)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            yield
        finally:
            library.fflush(None)
            os.dup2(kept, 1)
            os.close(nowhere)
            os.close(kept)
