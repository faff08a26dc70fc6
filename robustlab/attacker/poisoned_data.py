"""What every training-phase attack on data returns: tampered training data, and the truth about it kept aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Poisoned:
    """Training data after tampering.

    Whoever trains or defends gets :attr:`data`, two plain tensors, or iterates over the pairs (x_i, y_i). Neither leads
    to the truth: which samples are poisoned is known to this object alone, and it enters a defense's evaluation only by
    :meth:`robustlab.attacker.results.Detection.score`::

        poisoned = badnets(mnist, target=0, rate=0.1)
        fit(model, poisoned.data, epochs=5)
        found = detector(model, poisoned.data)
        found.score(poisoned.is_poison)

    Args:
        x: (N, ...) inputs after tampering.
        y: (N,) labels, or real targets, after tampering.
        is_poison: (N,) bool; the samples that the attacker changed or added.
        original_y: (N,) labels before tampering; for an added sample the label that its source had, or its own.
        row: (N,) int64, the row of the original data that each sample comes from, −1 for one that was added. None means
            0 … N − 1: nothing added, deleted or moved. Every sample that is no poison equals its original bit for bit,
            except for those that an attack names as cover.
        details: what else the attack has to say, such as its loss or its targets.

    Raises:
        ValueError, TypeError: if lengths or dtypes disagree.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        is_poison: Tensor,
        original_y: Tensor,
        row: Tensor | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        row = torch.arange(len(x), device=x.device) if row is None else row
        for name, value in (("y", y), ("is_poison", is_poison), ("original_y", original_y), ("row", row)):
            if value.shape != (len(x),):
                raise ValueError(f"{name}: want shape ({len(x)},), got {tuple(value.shape)}")
        if is_poison.dtype != torch.bool:
            raise TypeError(f"is_poison: want torch.bool, got {is_poison.dtype}")
        self.x, self.y = x, y
        self.is_poison, self.original_y, self.row = is_poison, original_y, row
        self.details: dict[str, Any] = dict(details or {})

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """(x, y): all that a trainer or a defense is given."""
        return self.x, self.y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.x, self.y, strict=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples of shape {tuple(self.x.shape[1:])})"
