"""What a complete verifier is asked, and what it answers.

A :class:`Case` is one box and one conjunction of linear constraints on the outputs that says what is *unsafe*:

    is there an x in [low, high] with C·f(x) + d ≤ 0 in every row?

A query is a list of cases, the unsafe set being their union. Label y is kept on the box of x exactly if K − 1 cases of
one row each, f_y − f_k ≤ 0, have no solution.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from robustlab.graph.node import Graph
from robustlab.graph.time_limit import OutOfTime, tick, time_limit

Status = Literal["verified", "falsified", "unknown", "timeout"]
TIE = 1e-6  # solvers' answers within this of zero decide nothing
NEAR_ONE = 2.0**10  # numbers within this factor of 1 suit solvers, whose tolerances are absolute


@dataclass(frozen=True, eq=False)
class Case:
    """A box of inputs and a conjunction of unsafe outputs, all float64 on the CPU.

    Attributes:
        low, high: (n,), the flat input box.
        C, d: (k, m) and (k,); y is unsafe if C·y + d ≤ 0 in every row. Without rows every y is.
        error: by so much the program that runs may be off in a margin.
    """

    low: Tensor
    high: Tensor
    C: Tensor
    d: Tensor
    error: float = 0.0

    @property
    def least(self) -> float:
        """A margin above this is shown to be positive."""
        return self.error + TIE

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


class TooLarge(Exception):
    """A network with too many ReLUs that are not stable."""


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


def relative(graph: Graph, cases: Sequence[Case]) -> list[Case]:
    """The same cases in units of the outputs' scale, so that ``TIE`` is relative to it, as are solvers' tolerances.

    The scale of a case is the largest Σ|C·f(x)| + |d| of a row at five points of its box. Where it is far from 1, C, d
    and the error are divided by a power of two near it, which changes no digit.
    """
    outputs: dict[tuple[int, int], Tensor] = {}
    found = []
    for case in cases:
        key = case.low.data_ptr(), case.high.data_ptr()
        if key not in outputs:  # the cases of one label share their box
            tick()
            shares = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
            points = (case.low + shares * (case.high - case.low)).to(graph_device(graph))
            with torch.no_grad():
                outputs[key] = graph(points.reshape(-1, *graph.input_shape)).flatten(1).abs().cpu()
        scale = float((outputs[key] @ case.C.abs().T + case.d.abs()).max()) if len(case.d) else 1.0
        one = unit(scale)
        found.append(replace(case, C=case.C / one, d=case.d / one, error=case.error / one))
    return found


def unit(size: float) -> float:
    """A power of two near a positive number; 1 if that is near enough, or there is none."""
    far = 0 < size < 1 / NEAR_ONE or NEAR_ONE < size < float("inf")
    return 2.0 ** round(math.log2(size)) if far else 1.0


def graph_device(graph: Graph) -> torch.device:
    """Where the weights of a graph are."""
    for node in graph.nodes:
        for value in vars(node.op).values() if node.op is not None else ():
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.device
    return torch.device("cpu")


def one_by_one(graph: Graph, cases: Sequence[Case], decide: Callable[[Case], Verdict], clock: Clock) -> Verdict:
    """Decide each case by itself: the first counterexample ends it, and all must be verified."""
    details: dict[str, float] = {}
    status: Status = "verified"
    try:
        with time_limit(clock.end):
            cases = relative(graph, cases)
    except OutOfTime:
        return Verdict("timeout")
    for case in cases:
        try:
            with time_limit(clock.end):
                verdict = Verdict("timeout") if clock.over else decide(case)
        except OutOfTime:
            verdict = Verdict("timeout")
        except TooLarge:
            verdict = Verdict("unknown")
        for key, count in verdict.details.items():
            details[key] = details.get(key, 0) + count
        if verdict.status == "falsified":
            return Verdict("falsified", verdict.witness, details)
        if verdict.status != "verified" and status != "timeout":
            status = verdict.status
    return Verdict(status, None, details)


def label_cases(low: Tensor, high: Tensor, y: int, classes: int, errors: Tensor | None = None) -> list[Case]:
    """The K − 1 cases in which label y loses on a flat box; by ``errors`` (K,) the program's outputs may be off."""
    eye = torch.eye(classes, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    off = [0.0] * classes if errors is None else errors.tolist()
    return [Case(low, high, (eye[y] - eye[k])[None], zero, off[y] + off[k]) for k in range(classes) if k != y]
