"""Reluplex: the simplex method with a rule for ReLUs.

Katz, Barrett, Dill, Julian and Kochenderfer, "Reluplex: An efficient SMT solver for verifying deep neural networks"
(2017), sections III and IV. For each ReLU there are two variables, its input b and its output a. Simplex knows nothing
of a = max(b, 0); it finds values that meet the linear equations and the bounds. Then, while some ReLU is broken,

    repair    set a to max(b, 0), or b to a (Update, after PivotForRelu if it is basic), and run simplex again,
    split     a ReLU that had to be repaired too often: search b ≤ 0, a = 0 and then b ≥ 0, a = b (ReluSplit),
    tighten   bounds that rows of the tableau imply (deriveLowerBound, deriveUpperBound); a bound that decides the sign
              of b decides the ReLU without a split.

Splitting is lazy: a ReLU is split only where repairs fail. In the worst case the search still grows like 2^ReLUs. What
ran out of time, or of simplex's pivots, is not decided.

Different here: the difference a − b, which is never negative, is a variable of its own, so that the active phase is
its bound 0 (the paper merges the two variables); numbers are float64; a depth-first search on copies takes the place of
the SMT solver with its conflict analysis. For small networks: everything is a dense table.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import tick
from robustlab.verification.complete.encode import System, encode
from robustlab.verification.complete.query import TIE, Case, Clock, Replay, Verdict, one_by_one
from robustlab.verification.complete.simplex import Simplex
from robustlab.verification.complete.verify import verify

_BROKEN = 1e-7  # tolerance of a = max(b, 0)
_REPAIRS = 5  # repairs of one ReLU before it is split


def reluplex(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["linf"] = "linf",
    eps: float | Tensor,
    timeout: float | None = 60.0,
    processes: int = 1,
    box: tuple[float, float] = (0.0, 1.0),
) -> Certificate:
    """Decide by Reluplex whether labels are kept on ℓ∞ balls; for networks with few ReLUs.

    For each other label k it looks for x′ with ‖x′ − x‖∞ ≤ ε, x′ in the box and f_y(x′) ≤ f_k(x′).

    Args:
        model: from (N, ...) to (N, K), affine layers and ReLUs (or what can be rewritten in ReLUs).
        x: (N, ...) in the box.
        y: (N,) labels; None takes the model's own prediction.
        norm: ``"linf"``.
        eps: ε > 0, one number or one per sample, in the units of x.
        timeout: seconds for each sample (default 60), None for no limit; then nothing is known of it.
        processes: how many samples are decided at a time, each by a process of its own (default 1: none), as in
            :func:`robustlab.verification.verify`.
        box: the range of valid inputs (default (0, 1)).

    Returns:
        A Certificate: per sample verified, falsified with a counterexample that was replayed on the model, or neither.

    Raises:
        ValueError, TypeError: naming the argument, or the operator that is not piecewise linear.

    Source: Katz et al. (2017), sections III and IV.
    """
    return verify(model, x, y, norm=norm, eps=eps, method="reluplex", timeout=timeout, processes=processes, box=box)


def solve(graph: Graph, cases: list[Case], replay: Replay, clock: Clock) -> Verdict:
    """Decide a query; details count pivots, splits and repairs."""
    return one_by_one(graph, cases, partial(_decide, graph, replay=replay, clock=clock), clock)


def _decide(graph: Graph, case: Case, replay: Replay, clock: Clock) -> Verdict:
    """Look for margins up to what is safe; if the model confirms none that is found, for margins below −TIE."""
    system = encode(graph, case.low, case.high)
    search = Search(system, case, clock)
    point = search.run(case.least)
    if point is None:
        return Verdict("timeout" if search.stopped else "verified", None, search.count)
    witness = replay(point[None])
    if witness is None:
        point = search.run(-TIE)
        witness = None if point is None else replay(point[None])
    return Verdict("unknown" if witness is None else "falsified", witness, search.count)


class Search:
    """Variables: the inputs x, the outputs a, the number 1; defined by rows: b, a − b, and the margins."""

    def __init__(self, system: System, case: Case, clock: Clock) -> None:
        n, r, k = system.inputs, len(system.p), len(case.d)
        C, d = case.C.numpy(), case.d.numpy()
        self.clock, self.system, self.stopped = clock, system, False
        self.count = {"pivots": 0.0, "splits": 0.0, "repairs": 0.0}
        self.a = np.arange(n, n + r)
        self.b = np.arange(n + r + 1, n + 2 * r + 1)
        self.gap = self.b + r
        self.margins = np.arange(n + 3 * r + 1, n + 3 * r + 1 + k)
        self.rows = np.empty((2 * r + k, n + r + 1))
        before, gap, margins = np.split(self.rows, [r, 2 * r])  # views, which are filled without a copy
        before[:, :-1], before[:, -1] = system.P, system.p
        tick()
        np.negative(before, out=gap)
        gap[np.arange(r), self.a] += 1.0  # a − b
        margins[:, :-1], margins[:, -1] = C @ system.O, C @ system.o + d
        free, zero = np.full(k, -np.inf), np.zeros(r)
        self.lower = np.concatenate([system.low, [1.0], system.lower, zero, free])
        self.upper = np.concatenate([system.high, [1.0], system.upper, -system.lower, -free])

    def run(self, margin: float) -> Tensor | None:
        """An input whose margins are all at most ``margin``, or None (see ``stopped``)."""
        upper = self.upper.copy()
        upper[self.margins] = margin
        branches = [(Simplex(self.rows, self.lower, upper), np.zeros(len(self.a), dtype=np.int64))]
        while branches:
            simplex, repairs = branches.pop()
            before = simplex.pivots
            split = self._work(simplex, repairs)
            self.count["pivots"] += simplex.pivots - before
            if self.stopped or self.clock.over:
                self.stopped = True
                return None
            if split is None:
                continue  # no solution on this branch
            if split < 0:
                return self.system.point(simplex.value)
            self.count["splits"] += 1
            for active in (False, True):
                branch = simplex.copy()
                self._fix(branch, split, active)
                branches.append((branch, np.zeros_like(repairs)))
        return None

    def _work(self, simplex: Simplex, repairs: NDArray[np.int64]) -> int | None:
        """Simplex and repairs in turn: the ReLU to split, −1 for a solution, None if there is none (or no answer)."""
        while not self.clock.over:
            try:
                if not self._tighten(simplex) or not simplex.solve():
                    return None
                a, b = simplex.value[self.a], simplex.value[self.b]
                wrong = np.abs(a - b.clip(min=0))
                if not wrong.size or wrong.max() <= _BROKEN:
                    return -1
                i = int(wrong.argmax())
                repairs[i] += 1
                set_b = repairs[i] % 2 == 0 and a[i] > 0
                variable, value = (self.b[i], a[i]) if set_b else (self.a[i], max(b[i], 0.0))
                if repairs[i] > _REPAIRS or not simplex.update(int(variable), float(value)):
                    return i
            except RuntimeError:  # too many pivots, or numbers that prove nothing: this branch is not decided
                break
            self.count["repairs"] += 1
        self.stopped = True
        return None

    def _tighten(self, simplex: Simplex) -> bool:
        """Bounds that the rows imply, and what follows for each ReLU; False if there is nothing left."""
        low, high = simplex.ranges()
        if (low > high + 1e-7).any():
            low, high = simplex.ranges(refresh=True)
        if (low > high + 1e-7).any():
            return False
        slack = 1e-9  # keep what rounding could cut off
        simplex.lower, simplex.upper = np.maximum(simplex.lower, low - slack), np.minimum(simplex.upper, high + slack)
        a, b = self.a, self.b
        top = np.minimum(simplex.upper[a], simplex.upper[b].clip(min=0))
        simplex.upper[a] = top
        simplex.upper[b] = np.where(top > 0, np.minimum(simplex.upper[b], top), simplex.upper[b])
        simplex.lower[a] = np.maximum(simplex.lower[a], simplex.lower[b].clip(min=0))
        for i in np.flatnonzero((simplex.lower[b] > 0) | (simplex.lower[a] > _BROKEN)):
            self._fix(simplex, int(i), active=True)
        for i in np.flatnonzero((simplex.upper[b] < 0) | (simplex.upper[a] <= 0)):
            self._fix(simplex, int(i), active=False)
        return True

    def _fix(self, simplex: Simplex, i: int, active: bool) -> None:
        if active:
            simplex.bound(self.b[i], lower=0.0)
            simplex.bound(self.gap[i], upper=0.0)
        else:
            simplex.bound(self.b[i], upper=0.0)
            simplex.bound(self.a[i], upper=0.0)
