"""Progress bars: shown in a terminal, never in a notebook's stored output or a log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def bar(items: Iterable[T], *, show: bool, label: str) -> Iterable[T]:
    """``items``, with a tqdm bar called ``label`` if ``show`` is set and standard error is a terminal."""
    if not show:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=label, leave=False, disable=None)
