"""Batches that are a tensor (N, ...) or a tuple of such, which may be nested: their size, some rows, choices of two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = Any
"""A tensor (N, ...), or a tuple of batches of as many samples. Which of them, the domain says: its check is made when
an attack starts, and a static one could not be."""
Reply: TypeAlias = Any
"""What a model says of a batch: scores, or for boxes whatever it returns."""


def every(function: Callable[..., Any], *batches: Batch) -> Any:
    """``function`` on a tensor, or on each part of a tuple (with the like parts of the further ``batches``)."""
    if isinstance(batches[0], tuple):
        return tuple(every(function, *parts) for parts in zip(*batches, strict=True))
    return function(*batches)


def first(x: Batch) -> Tensor:
    """The first tensor of a batch."""
    return first(x[0]) if isinstance(x, tuple) else x


def tensors(x: Batch) -> list[Tensor]:
    """All tensors of a batch, in order."""
    return [found for part in x for found in tensors(part)] if isinstance(x, tuple) else [x]


def size(x: Batch) -> int:
    """How many samples a batch has."""
    return first(x).shape[0]


def ordinary(x: Batch) -> Batch:
    """Without the caller's graph; what was made in inference mode, which takes no part in autograd, is cloned."""
    return every(lambda part: (part.clone() if part.is_inference() else part).detach(), x)


def copied(x: Batch) -> Batch:
    """A copy that shares neither memory nor graph."""
    return every(lambda part: part.detach().clone(), x)


def detached(answer: Reply) -> Reply:
    """What a model returned, without the graph of tensors in lists, tuples and mappings; other objects as they are."""
    if isinstance(answer, Tensor):
        return answer.detach()
    if isinstance(answer, Mapping):
        return {name: detached(part) for name, part in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [detached(part) for part in answer]
    return answer


def take(x: Batch, index: Tensor) -> Batch:
    """The rows that an index (int64, or a mask) names."""

    def read(part: Tensor) -> Tensor:  # whole rows are copied four times as fast as elements are picked
        return part[index] if index.dtype == torch.bool else part.index_select(0, index)

    return every(read, x)


def put(x: Batch, index: Tensor, values: Batch) -> Batch:
    """``x`` with the rows of an index replaced, in place."""

    def write(part: Tensor, value: Tensor) -> Tensor:
        part[index] = value.to(part)
        return part

    return every(write, x, values)


def overwrite(x: Batch, mask: Tensor, values: Batch) -> None:
    """Put the rows of finite ``values`` where a mask (N,) holds into ``x``, in place and without waiting for a GPU."""

    def write(part: Tensor, value: Tensor) -> Tensor:
        if part.is_floating_point():  # exact at both ends, and several times as fast as a choice by a broadcast mask
            return part.lerp_(value, beside(mask.to(part.dtype), part))
        return torch.where(beside(mask, part), value, part, out=part)

    every(write, x, values)


def where(mask: Tensor, x: Batch, other: Batch) -> Batch:
    """The rows of ``x`` where a mask (N,) holds, those of ``other`` elsewhere."""
    return every(lambda a, b: torch.where(beside(mask, a), a, b), x, other)


def beside(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (n,) as (n, 1, ..., 1), to broadcast with ``like`` (n, ...)."""
    return values.reshape((-1,) + (1,) * (like.dim() - 1))
