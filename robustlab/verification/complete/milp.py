"""Exact verification as a mixed-integer linear program.

Tjeng, Xiao and Tedrake, "Evaluating robustness of neural networks with mixed integer programming" (2019), section 4.
A ReLU a = max(b, 0) with bounds l < 0 < u on b is the linear system

    a ≥ b,   a ≤ b − l·(1 − z),   a ≤ u·z,   a ≥ 0,   z ∈ {0, 1},

in which z says whether it is active. The tighter l and u, the faster: they come from CROWN, and for neurons that CROWN
leaves open from two linear programs each (the paper's progressive tightening). A ReLU whose sign is known needs no z.
Max-pooling and the like are rewritten in ReLUs. The program is solved by HiGHS (Huangfu and Hall 2018). Its word that
there is no counterexample is then proved, by a tree of linear programs
(:mod:`~robustlab.verification.complete.sign_tree`).

Different here: the paper minimizes the distance of an adversarial example; we ask at a fixed ε whether a margin can
become negative, and stop at the first point where it is. Bounds are from CROWN, which the paper did not have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.graph.node import Graph
from robustlab.verification.complete.encode import System, encode, require_piecewise_linear
from robustlab.verification.complete.linear_program import SMALL, infeasible, proved_minimum
from robustlab.verification.complete.query import Case, Clock, Replay, Verdict, one_by_one
from robustlab.verification.complete.sign_tree import shown_safe
from robustlab.verification.complete.silence import silence
from robustlab.verification.complete.verify import verify
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.region import Box

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array = NDArray[np.float64]

_SAFE = 1e-6  # bounds from linear programs are moved outward by so much


def milp(
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
    """Decide by mixed-integer programming whether labels are kept on ℓ∞ balls.

    For each other label k, is min f_y(x′) − f_k(x′) over the ball positive? One binary variable for each ReLU that can
    be active and inactive there.

    Args:
        model: from (N, ...) to (N, K), with affine layers, ReLUs and what can be rewritten in ReLUs (leaky ReLU, abs,
            clamp, max-pooling).
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

    Source: Tjeng et al. (2019), section 4.
    """
    return verify(model, x, y, norm=norm, eps=eps, method="milp", timeout=timeout, processes=processes, box=box)


def solve(graph: Graph, cases: list[Case], replay: Replay, clock: Clock) -> Verdict:
    """Decide a query."""
    systems: dict[tuple[int, int], System] = {}

    def decide(case: Case) -> Verdict:
        key = (case.low.data_ptr(), case.high.data_ptr())
        if key not in systems:  # the cases of one label share their box
            systems[key] = tight_system(graph, case, clock)
        return _decide(systems[key], case, replay, clock)

    return one_by_one(graph, cases, decide, clock)


def minimum(
    graph: Graph, case: Case, clock: Clock | None = None, *, system: System | None = None
) -> tuple[float, float, Tensor | None]:
    """The exact least margin of a case: min over the box of max over rows of C·f(x) + d.

    Args:
        graph: the network.
        case: a box and margins.
        clock: a time limit; None for none.
        system: the encoded network on the box; None encodes it with :func:`tight_system`.

    Returns:
        (proved, found, x): no margin is below ``proved``, on HiGHS's word; ``found`` is that of the best point x. They
        agree to the solver's tolerance (1e-6) unless the clock ran out.
    """
    clock = clock or Clock(None)
    system = tight_system(graph, case, clock) if system is None else system
    return _minimize(system, case, clock, limit=np.inf, gap=1e-9)


def tight_system(graph: Graph, case: Case, clock: Clock) -> System:
    """The network on a box, with bounds by CROWN and then by linear programs."""
    require_piecewise_linear(graph)
    graph = graph.to("cpu", torch.float64)
    region = Box(*(end.reshape(1, *graph.input_shape) for end in (case.low, case.high)))
    with torch.no_grad():
        system = encode(graph, case.low, case.high, layer_bounds(graph, region, BoundOptions()).bounds)
    return tighten(system, clock)


def tighten(system: System, clock: Clock) -> System:
    """The bounds of each ReLU's input from two linear programs, in the order of the network.

    The program of neuron i has the triangle relaxation of the neurons before it:
    a ≥ 0, a ≥ b, (u − l)·a ≤ u·(b − l).
    """
    lower, upper, high = system.lower.copy(), system.upper.copy(), system.high.copy()
    n = system.inputs
    rows: list[Array] = []
    right: list[float] = []
    for i in range(len(system.p)):
        if clock.over:
            break
        slope, shift = system.P[i], system.p[i]
        for sign in (1.0, -1.0) if rows else ():
            seconds = max(0.01, min(clock.left, 60.0))
            least, _ = proved_minimum(sign * slope, np.array(rows), np.array(right), system.low, high, seconds)
            if least is None or not np.isfinite(least):
                continue
            value = sign * least + shift
            if sign > 0:
                lower[i] = max(lower[i], value - _SAFE)
            else:
                upper[i] = min(upper[i], value + _SAFE)
        unit = np.eye(1, len(slope), n + i)[0]
        l, u = min(lower[i], 0.0), max(upper[i], 0.0)
        high[n + i] = u
        if u == 0.0:
            continue  # inactive: a = 0 by its bounds
        rows += [slope - unit, u * (-slope) + (u - l) * unit]
        right += [-shift, u * (shift - l)]
    return replace(system, lower=lower, upper=upper, high=high)


def _decide(system: System, case: Case, replay: Replay, clock: Clock) -> Verdict:
    """First any margin that is not safe; if the model does not confirm it, the point of the least margin."""
    for gap in (np.inf, 1e-9):
        if clock.over:
            return Verdict("timeout")
        proved, _, point = _minimize(system, case, clock, limit=case.least, gap=gap)
        if proved > case.least:
            if shown_safe(system, case, clock):
                return Verdict("verified")
            return Verdict("timeout" if clock.over else "unknown")
        witness = None if point is None else replay(point[None])
        if witness is not None:
            return Verdict("falsified", witness)
    return Verdict("timeout" if clock.over else "unknown")


def _minimize(
    system: System, case: Case, clock: Clock, *, limit: float, gap: float
) -> tuple[float, float, Tensor | None]:
    """min t subject to the network, t ≥ every margin and t ≤ limit: (proved, found, point).

    ``proved`` is +∞ if there is no point under the limit. With an infinite gap, HiGHS stops at the first point.
    """
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.optimize import milp as highs

    n, r, k = system.inputs, len(system.p), len(case.d)
    C, d = case.C.numpy(), case.d.numpy()
    l, u = np.minimum(system.lower, 0.0), np.maximum(system.upper, 0.0)
    own, z, t = n + np.arange(r), n + r + np.arange(r), n + 2 * r
    before = -system.P
    before[np.arange(r), own] += 1.0
    # Variables: inputs, a, z, t.
    rows = _sparse(3 * r + k, t + 1, [
        (before, 0, 0),  # a − b ≥ 0
        (before, r, 0), (-l, r + np.arange(r), z),  # a − b − l·z ≤ −l
        (np.ones(r), 2 * r + np.arange(r), own), (-u, 2 * r + np.arange(r), z),  # a − u·z ≤ 0
        (C @ system.O, 3 * r, 0), (-np.ones(k), 3 * r + np.arange(k), np.full(k, t)),  # margin − t ≤ 0
    ])  # fmt: skip
    free = np.full(r, np.inf)
    low = np.concatenate([system.p, -free, -free, np.full(k, -np.inf)])
    high = np.concatenate([free, system.p - l, np.zeros(r), -(C @ system.o + d)])
    # A neuron that turned out to be stable has its z fixed.
    box = Bounds(
        np.concatenate([system.low, np.where(system.lower >= 0, 1.0, 0.0), [-np.inf if k else -1.0]]),
        np.concatenate([system.high, np.where(system.upper <= 0, 0.0, 1.0), [limit]]),
    )
    # HiGHS with presolve: a bound of a net of seven ReLUs lay 3e-4 above the least margin (tests/unit/test_exact).
    options: dict[str, Any] = {"mip_rel_gap": gap, "presolve": False}
    if np.isfinite(clock.left):
        options["time_limit"] = max(clock.left, 0.01)
    # HiGHS takes the smallest coefficients as 0: what they could add widens their rows.
    lost = abs(rows) - abs(rows).multiply(abs(rows) > SMALL)
    largest = np.maximum(np.abs(box.lb), np.abs(box.ub))
    largest[t] = 0.0  # its coefficients are 1
    by = lost @ largest
    with silence():
        answer = highs(
            np.eye(1, n + 2 * r + 1, n + 2 * r)[0],
            constraints=LinearConstraint(rows, low - by, high + by),
            integrality=np.concatenate([np.zeros(n + r), np.ones(r), [0.0]]),
            bounds=box,
            options=options,
        )
    if infeasible(answer):
        return np.inf, np.inf, None
    bound = getattr(answer, "mip_dual_bound", None)
    if bound is None and answer.status == 0:  # no ReLU is open: a linear program, solved
        bound = answer.fun
    proved = -np.inf if bound is None else float(bound)
    if answer.x is None:
        return proved, np.inf, None
    return proved, float(answer.fun), system.point(answer.x).clamp(case.low, case.high)


def _sparse(height: int, width: int, parts: list[tuple[Array, Any, Any]]) -> csr_array:
    """A sparse matrix of dense blocks, each with its corner, and of lists of numbers, each with its place."""
    from scipy.sparse import csr_array

    values, rows, columns = [], [], []
    for part, row, column in parts:
        if part.ndim == 2:
            at = part.nonzero()
            part, row, column = part[at], row + at[0], column + at[1]
        values.append(part)
        rows.append(row)
        columns.append(column)
    places = (np.concatenate(rows).astype(np.int32), np.concatenate(columns).astype(np.int32))  # what HiGHS reads
    found = csr_array((np.concatenate(values), places), shape=(height, width))
    found.eliminate_zeros()
    return found
