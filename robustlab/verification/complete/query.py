"""What a complete verifier is asked, and what it answers.

A :class:`Case` is one box and one conjunction of linear constraints on the outputs that says what is *unsafe*:

    is there an x in [low, high] with C·f(x) + d ≤ 0 in every row?

A query is a list of cases, the unsafe set being their union. Label y is kept on the box of x exactly if K − 1 cases of
one row each, f_y − f_k ≤ 0, have no solution.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Status = Literal["verified", "falsified", "unknown", "timeout"]
TIE = 1e-6  # solvers' answers within this of zero decide nothing


@dataclass(frozen=True, eq=False)
class Case:
    """A box of inputs and a conjunction of unsafe outputs, all float64 on the CPU.

    Attributes:
        low, high: (n,), the flat input box.
        C, d: (k, m) and (k,); y is unsafe if C·y + d ≤ 0 in every row. Without rows every y is.
    """

    low: Tensor
    high: Tensor
    C: Tensor
    d: Tensor

    def margin(self, y: Tensor) -> Tensor:
        """max over rows of C·y + d for outputs (N, m): (N,), at most 0 where y is unsafe."""
        if not len(self.d):
            return y.new_full(y.shape[:1], -torch.inf)
        return (y.to(self.C) @ self.C.T + self.d).amax(dim=1)


@dataclass(frozen=True, eq=False)
class Verdict:
    """The answer to a query.

    Attributes:
        status: ``"verified"`` (no case has a solution), ``"falsified"``, ``"unknown"`` or ``"timeout"``.
        witness: where falsified, the flat input that was replayed, else None.
        details: counts of the solver's own (pivots, nodes, domains).
    """

    status: Status
    witness: Tensor | None = None
    details: dict[str, float] = field(default_factory=dict)


Replay = Callable[[Tensor], Tensor | None]
"""From candidates (N, n) to the first that the original model confirms, as it was given to the model, or None."""


class Clock:
    """A time limit.

    Args:
        seconds: from now; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self.start = time.monotonic()
        self.end = float("inf") if seconds is None else self.start + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self.end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left == 0.0


def one_by_one(cases: Sequence[Case], decide: Callable[[Case], Verdict], clock: Clock) -> Verdict:
    """Decide each case by itself: the first counterexample ends it, and all must be verified."""
    details: dict[str, float] = {}
    status: Status = "verified"
    for case in cases:
        verdict = Verdict("timeout") if clock.over else decide(case)
        for key, count in verdict.details.items():
            details[key] = details.get(key, 0) + count
        if verdict.status == "falsified":
            return Verdict("falsified", verdict.witness, details)
        if verdict.status != "verified" and status != "timeout":
            status = verdict.status
    return Verdict(status, None, details)


def label_cases(low: Tensor, high: Tensor, y: int, classes: int) -> list[Case]:
    """The K − 1 cases in which label y loses on a flat box."""
    eye = torch.eye(classes, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    return [Case(low, high, (eye[y] - eye[k])[None], zero) for k in range(classes) if k != y]
