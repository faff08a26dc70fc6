"""The simplex method with bounds on every variable: is a system of linear equations and bounds solvable?

Dutertre and de Moura, "A fast linear-arithmetic solver for DPLL(T)" (2006), which is what Reluplex is built on (Katz
et al. 2017, figure 3 of their section III). There is nothing to minimize. The variables are split into *basic* ones,
each a row of the tableau,

    v_B = T·v_N,      ℓ ≤ v ≤ u,

and *non-basic* ones, which stay within their bounds. The equations hold at all times; a bound of a basic variable may
be broken. To mend it, look in its row for a non-basic variable with slack, move it, and let the two change places (a
*pivot*). Where the row has no such variable, its largest (or smallest) value within the bounds is still on the wrong
side: the row is a proof that there is no solution.

Different here: the leaving and the entering variable are the worst broken bound and the largest coefficient, which
keeps numbers tame; when that takes long, Bland's rule (smallest index), under which simplex cannot cycle. The numbers
are float64, not rationals, hence tolerances; the tableau is computed anew from the rows now and then, and always
before the answer is "no solution".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robustlab.graph.time_limit import OutOfTime, tick, time_left

Array = NDArray[np.float64]

TOLERANCE = 1e-9  # tolerance of a bound
_SMALL = 1e-10  # smaller coefficients count as 0
_REFRESH = 50  # pivots after which the tableau is computed anew
_FLOPS = 1e9  # per second, at least
_TOGETHER = 2**20  # numbers of the tableau that are looked at between two looks at the time
_PATIENCE = 200  # pivots in one call after which Bland's rule takes over


class Simplex:
    """Find v with ``v[n + i] = rows[i] @ v[:n]`` and ``lower <= v <= upper``.

    Args:
        rows: (m, n); row i defines variable n + i from the first n variables. They are kept, and never changed.
        lower, upper: (n + m,) bounds, ±∞ where there are none.

    Attributes:
        lower, upper: may be changed between calls of :meth:`solve`; say :meth:`bound` to do so.
        value: (n + m,) the present assignment; it meets the equations always, the bounds after ``solve()`` said True.
        basic, nonbasic: indices of the variables of the tableau's rows and columns.
        pivots: how many there were.

    Raises:
        ValueError: if the shapes do not fit.
    """

    def __init__(self, rows: Array, lower: Array, upper: Array) -> None:
        self.rows = np.asarray(rows, dtype=np.float64)
        m, n = self.rows.shape
        if np.shape(lower) != (n + m,) or np.shape(upper) != (n + m,):
            raise ValueError(f"lower, upper: want shape ({n + m},), got {np.shape(lower)} and {np.shape(upper)}")
        self.lower, self.upper = np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)
        self.nonbasic, self.basic = np.arange(n), np.arange(n, n + m)
        tick()
        self.tableau = self.rows.copy()
        self.value = np.zeros(n + m)
        self.pivots = self._since = 0
        self._settle()

    def bound(self, variable: int, lower: float = -np.inf, upper: float = np.inf) -> None:
        """Make the bounds of one variable tighter (never looser)."""
        self.lower[variable] = max(self.lower[variable], lower)
        self.upper[variable] = min(self.upper[variable], upper)

    def solve(self, limit: int = 100_000) -> bool:
        """Move and pivot until all bounds hold (True) or a row proves that they cannot (False).

        Raises:
            RuntimeError: after ``limit`` pivots, or if rounding allows no answer.
        """
        if (self.lower > self.upper + TOLERANCE).any():
            return False
        self._settle()
        for step in range(limit):
            tick()
            broken = np.maximum(self.lower - self.value, self.value - self.upper)[self.basic]
            if not broken.size or broken.max() <= TOLERANCE:
                return True
            bland = step >= _PATIENCE
            row = _first(broken > TOLERANCE, self.basic) if bland else int(broken.argmax())
            column = self._entering(row, bland)
            if column is None:
                if not self._since:
                    if self._proves(row):
                        return False
                    raise RuntimeError(f"no answer: rounding hides what row {row} says")
                self._refresh()  # the proof must hold for the rows themselves
                continue
            leaving = self.basic[row]
            goal = min(max(self.value[leaving], self.lower[leaving]), self.upper[leaving])
            self._move(column, (goal - self.value[leaving]) / self.tableau[row, column])
            self.value[leaving] = goal  # exactly: rounding must not leave it room to move
            self.pivot(row, column)
        raise RuntimeError(f"limit: no answer after {limit} pivots")

    def update(self, variable: int, value: float) -> bool:
        """Give a variable a value; if it is basic it is made non-basic first (Reluplex's Update and PivotForRelu).

        Returns False, and does nothing, if the variable depends on fixed variables alone.

        Raises:
            RuntimeError: if rounding allows no answer.
        """
        where = np.flatnonzero(self.basic == variable)
        if where.size:
            free = self.lower[self.nonbasic] < self.upper[self.nonbasic]
            size = np.where(free, np.abs(self.tableau[where[0]]), 0.0)
            if not size.size or size.max() <= _SMALL:
                return False
            self.pivot(int(where[0]), int(size.argmax()))
        column = int(np.flatnonzero(self.nonbasic == variable)[0])
        self._move(column, value - self.value[variable])
        return True

    def pivot(self, row: int, column: int) -> None:
        """Basic variable ``row`` and non-basic variable ``column`` change places; no value changes."""
        table = self.tableau
        pivot = table[row, column]
        table[row] /= -pivot
        table[row, column] = 1 / pivot
        new, factor = table[row].copy(), table[:, column].copy()
        factor[row] = 0
        table[:, column] -= factor  # the sum below then leaves factor / pivot in this column
        table += np.outer(factor, new)
        self.basic[row], self.nonbasic[column] = self.nonbasic[column], self.basic[row]
        self.pivots += 1
        self._since += 1
        if self._since >= _REFRESH:
            self._refresh()

    def ranges(self, *, refresh: bool = False) -> tuple[Array, Array]:
        """(low, high): what the rows of the tableau and the non-basic bounds imply for every variable, (n + m,).

        Args:
            refresh: compute the tableau anew before, as a proof wants it.

        Raises:
            RuntimeError: if the numbers are not finite where they should be, or rounding allows no answer.
        """
        if refresh:
            self._refresh()
        lower, upper = self.lower[self.nonbasic], self.upper[self.nonbasic]
        low, high = self.lower.copy(), self.upper.copy()
        together = max(1, _TOGETHER // max(1, self.tableau.shape[1]))
        for start in range(0, len(self.basic), together):
            tick()
            some = self.tableau[start : start + together]
            basic = self.basic[start : start + together]
            positive, negative = some.clip(min=0), some.clip(max=0)
            low[basic] = np.maximum(low[basic], _dot(positive, lower) + _dot(negative, upper))
            high[basic] = np.minimum(high[basic], _dot(positive, upper) + _dot(negative, lower))
        if not ((low < np.inf) & (high > -np.inf)).all():  # NaN is refused, too
            raise RuntimeError("no answer: numbers are too large")
        return low, high

    def copy(self) -> Simplex:
        """An independent copy, for a branch of a search."""
        other = object.__new__(Simplex)
        other.__dict__.update({k: v.copy() if isinstance(v, np.ndarray) else v for k, v in self.__dict__.items()})
        other.rows = self.rows  # never changed
        return other

    def _entering(self, row: int, bland: bool) -> int | None:
        """The column that can move the row's variable towards its bounds; None if there is none."""
        leaving = self.basic[row]
        sign = 1.0 if self.value[leaving] < self.lower[leaving] else -1.0
        slope = sign * self.tableau[row]
        value = self.value[self.nonbasic]
        able = ((slope > _SMALL) & (value < self.upper[self.nonbasic])) | (
            (slope < -_SMALL) & (value > self.lower[self.nonbasic])
        )
        if not able.any():
            return None
        return _first(able, self.nonbasic) if bland else int(np.where(able, np.abs(slope), -1).argmax())

    def _proves(self, row: int) -> bool:
        """Whether no values within the bounds, small coefficients too, bring the row's variable within its own."""
        leaving, line = self.basic[row], self.tableau[row : row + 1]
        positive, negative = line.clip(min=0), line.clip(max=0)
        lower, upper = self.lower[self.nonbasic], self.upper[self.nonbasic]
        most = float((_dot(positive, upper) + _dot(negative, lower))[0])
        least = float((_dot(positive, lower) + _dot(negative, upper))[0])
        return most < self.lower[leaving] or least > self.upper[leaving]

    def _move(self, column: int, step: float) -> None:
        self.value[self.nonbasic[column]] += step
        self.value[self.basic] += self.tableau[:, column] * step

    def _settle(self) -> None:
        """Put the non-basic variables within their bounds and compute the basic ones."""
        inside = self.value[self.nonbasic].clip(self.lower[self.nonbasic], self.upper[self.nonbasic])
        self.value[self.nonbasic] = inside
        self.value[self.basic] = self.tableau @ inside

    def _refresh(self) -> None:
        """Solve the defining equations for the basic variables anew, so that rounding does not pile up."""
        m = len(self.rows)
        if m**3 > _FLOPS * time_left():  # one call, which nothing can end
            raise OutOfTime
        equations = np.hstack([self.rows, -np.eye(m)])
        try:
            self.tableau = np.linalg.solve(equations[:, self.basic], -equations[:, self.nonbasic])
        except np.linalg.LinAlgError as error:  # a pivot was 0 but for rounding
            raise RuntimeError("no answer: to rounding, the basic variables do not determine each other") from error
        self._since = 0
        self._settle()


def _first(mask: NDArray[np.bool_], variables: NDArray[np.int64]) -> int:
    """Position of the smallest variable among those in the mask."""
    return int(np.where(mask, variables, np.iinfo(np.int64).max).argmin())


def _dot(matrix: Array, bounds: Array) -> Array:
    """matrix @ bounds with 0·∞ = 0."""
    with np.errstate(invalid="ignore"):
        return np.where(matrix != 0, matrix * bounds, 0.0).sum(axis=1)
