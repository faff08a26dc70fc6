"""The search for the weight c of the attacker's loss that penalty-based attacks share, one state a sample.

Carlini and Wagner (2017b), section V-B, and those who follow them: up by a factor until a first success, then halve the
interval between the largest c that failed and the smallest that succeeded.
"""

from __future__ import annotations

import torch
from torch import Tensor


class WeightSearch:
    """Which c each sample tries next.

    Args:
        x: the batch (N, ...), for its length, dtype and device.
        first_c: first value of c.
        tries: values of c tried.
        factor: by which c grows while nothing has succeeded.

    Attributes:
        c: (N,), what is tried now.
    """

    def __init__(self, x: Tensor, first_c: float, tries: int, factor: float = 10.0) -> None:
        self.c = x.new_full(x.shape[:1], first_c)
        self.lower, self.upper = torch.zeros_like(self.c), torch.full_like(self.c, torch.inf)
        self.left, self.factor = torch.full_like(self.c, tries), factor

    def next(self, rows: Tensor, won: Tensor) -> Tensor:
        """``rows`` tried their c, with or without success: choose the next; returns which of them have one."""
        c = self.c[rows]
        self.upper[rows] = upper = torch.where(won, torch.minimum(self.upper[rows], c), self.upper[rows])
        self.lower[rows] = lower = torch.where(won, self.lower[rows], torch.maximum(self.lower[rows], c))
        self.c[rows] = torch.where(upper.isfinite(), (lower + upper) / 2, c * self.factor)
        self.left[rows] -= 1
        return self.left[rows] > 0
