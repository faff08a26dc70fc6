"""Linear programs whose answers are proofs: what a solver says is a hint, what its multipliers show is a bound.

HiGHS works to absolute tolerances and takes coefficients up to 1e-9 as 0; SciPy gives its refusal of a program ("model
error", with a coefficient of 1e15) the number of "infeasible". None of that may become a certificate. For any y ≥ 0

    min {c·x : A·x ≤ b, low ≤ x ≤ high}  ≥  min {(c + Aᵀy)·x : low ≤ x ≤ high} − b·y,

and the right side is a sum, of which it is known how far rounding may be off. At the solver's multipliers both sides
agree, to the solver's tolerance.

Source: Neumaier and Shcherbina, "Safe bounds in linear and mixed-integer linear programming" (2004), section 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SMALL = 1e-9  # coefficients up to this are 0 to HiGHS


def proved_minimum(
    cost: Array, A: Array, b: Array, low: Array, high: Array, seconds: float
) -> tuple[float | None, Array | None]:
    """min c·x over A·x ≤ b, low ≤ x ≤ high.

    Args:
        cost: (n,).
        A, b: (m, n) and (m,).
        low, high: (n,), finite.
        seconds: for the solver; ∞ for no limit.

    Returns:
        What is proved that no c·x is below, and where the solver found its least; +∞ and None if it is proved that
        there is no such x; None and None if nothing is.
    """
    if not (np.isfinite(A).all() and np.isfinite(b).all()):  # a product was too large
        return None, None
    answer = _solved(cost, A, b, low, high, seconds)
    if answer.status == 0:
        return _shown(cost, A, b, low, high, answer), answer.x
    if answer.status != 2:
        return None, None
    # By how much must the rows give way? With multipliers that say more than 0, no x meets them all.
    most = float((np.abs(A) @ np.maximum(np.abs(low), np.abs(high)) + np.abs(b)).max())
    looser = np.hstack([A, -np.ones((len(b), 1))])
    low, high = np.append(low, 0.0), np.append(high, most)
    cost = np.eye(1, len(low), len(low) - 1)[0]
    answer = _solved(cost, looser, b, low, high, seconds)
    empty = answer.status == 0 and _shown(cost, looser, b, low, high, answer) > 0
    return (float("inf") if empty else None), None


def infeasible(answer: Any) -> bool:
    """Whether HiGHS found that there is no solution; a program that it refused has the same status, 2."""
    return answer.status == 2 and "infeasible" in answer.message


def _solved(cost: Array, A: Array, b: Array, low: Array, high: Array, seconds: float) -> Any:
    from scipy.optimize import linprog

    bounds = np.stack([low, high], axis=1)
    return linprog(cost, A_ub=A, b_ub=b, bounds=bounds, options={"time_limit": seconds})


def _shown(cost: Array, A: Array, b: Array, low: Array, high: Array, answer: Any) -> float:
    """The right side of the inequality at the solver's multipliers, less what rounding may add to it."""
    y = np.maximum(-answer.ineqlin.marginals, 0.0)
    reduced = cost + A.T @ y
    terms = (np.abs(cost) + np.abs(A).T @ y) @ np.maximum(np.abs(low), np.abs(high)) + np.abs(b) @ y
    value = np.where(reduced > 0, low, high) @ reduced - b @ y
    return float(value - np.finfo(np.float64).eps * sum(A.shape) * terms)
