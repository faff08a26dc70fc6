"""Batches in portions that stay in a CPU's cache.

Elementwise work in several passes waits for memory where no cache holds the batch, since each pass fetches it anew. On
a few rows at a time the passes after the first find them at hand. On other devices, where each call is a launch, a
batch stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

IN_CACHE = 2**16
"""Elements of a portion."""


def portions(like: Tensor, elements: int = IN_CACHE) -> Iterator[slice]:
    """Slices of the rows of a batch (n, ...), in order; none for an empty one.

    ``elements``: of a portion. Where each takes many short calls, more of them pay.
    """
    n = like.shape[0]
    rows = max(1, elements // max(1, like.shape[1:].numel())) if like.device.type == "cpu" else max(1, n)
    for first in range(0, n, rows):
        yield slice(first, first + rows)


def fits(numbers: int) -> bool:
    """Whether so many elements are no more than a portion."""
    return numbers <= IN_CACHE
