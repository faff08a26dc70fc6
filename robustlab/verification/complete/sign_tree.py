"""The proof behind an integer program's answer: a tree of linear programs, each bound shown by its multipliers.

A mixed-integer solver answers by its own arithmetic: which cuts it added, and at which nodes it stopped, is not told.
So its word that no point is unsafe is proved anew. At a node of the tree some ReLUs have an assumed sign, and the
others their triangle,

    a ≥ 0,  a ≥ b,  (u − l)·a ≤ u·(b − l);      inactive: a = 0, b ≤ 0;      active: a = b.

The least margin there is a linear program. Where what is proved of it is above the margin that is wanted, the node is
closed; else the ReLU whose output is farthest from relu(b) at the program's solution is cut in two.

Source: Ehlers, "Formal verification of piece-wise linear feed-forward neural networks" (2017), for the triangles;
Neumaier and Shcherbina (2004), for bounds that hold whatever the solver did.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robustlab.graph.time_limit import tick
from robustlab.verification.complete.encode import System
from robustlab.verification.complete.linear_program import proved_minimum
from robustlab.verification.complete.query import Case, Clock

Signs = NDArray[np.int8]


def shown_safe(system: System, case: Case, clock: Clock) -> bool:
    """Whether it is proved that every margin max over rows of C·f(x) + d is above ``case.least``.

    Args:
        system: the encoded network on the box of the case, with bounds that are proved.
        case: the margins.
        clock: a time limit.

    Returns:
        True with a proof; False where time is over, the solver gave up, or a point is too low.
    """
    if not len(case.d):  # every output is unsafe
        return False
    n, r = system.inputs, len(system.p)
    l, u = np.minimum(system.lower, 0.0), np.maximum(system.upper, 0.0)
    rows = case.C.numpy() @ system.O
    constant = case.C.numpy() @ system.o + case.d.numpy()
    farthest = np.maximum(np.abs(system.low), np.abs(system.high))
    most = 1.0 + 2.0 * float((np.abs(rows) @ farthest + np.abs(constant)).max())  # larger than any margin
    own = np.eye(r, n + r, n)
    below, triangle = system.P - own, (u - l)[:, None] * own - u[:, None] * system.P
    least = np.append(system.low, -most)
    cost = np.eye(1, n + r + 1, n + r)[0]
    tree: list[Signs] = [np.zeros(r, dtype=np.int8)]
    while tree:
        tick()
        if clock.over:
            return False
        signs = tree.pop()
        free, on = signs == 0, signs > 0
        left = np.vstack([below, triangle[free], -below[on], rows])
        right = np.concatenate([-system.p, u[free] * (system.p - l)[free], system.p[on], -constant])
        margin = np.zeros((len(left), 1))
        margin[len(left) - len(rows) :] = -1.0  # margin − t ≤ 0
        greatest = np.append(system.high, most)
        greatest[n : n + r][signs < 0] = 0.0
        seconds = max(0.01, clock.left)
        value, point = proved_minimum(cost, np.hstack([left, margin]), right, least, greatest, seconds)
        if value is not None and value > case.least:
            continue
        if value is None or point is None:
            return False
        gap = (point[n : n + r] - np.maximum(system.P @ point[:-1] + system.p, 0.0)) * free
        i = int(gap.argmax()) if r else 0
        if not r or gap[i] <= 0.0:
            return False  # the program's solution is one of the network
        for sign in (-1, 1):
            branch = signs.copy()
            branch[i] = sign
            tree.append(branch)
    return True
