"""The bounded simplex against SciPy's linear programs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustlab.verification.complete.simplex import Simplex


def solvable(rows: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> bool:
    """What SciPy says of the same system."""
    from scipy.optimize import linprog

    m, n = rows.shape
    equal = np.hstack([rows, -np.eye(m)])
    answer = linprog(np.zeros(n + m), A_eq=equal, b_eq=np.zeros(m), bounds=list(zip(lower, upper, strict=True)))
    assert answer.status in (0, 2)
    return answer.status == 0


def random_system(seed: int, m: int, n: int, *, integers: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (m, n)).astype(float) if integers else rng.normal(size=(m, n))
    center = rows @ rng.uniform(-1, 1, n) + rng.normal(size=m) * 0.5
    half = rng.choice([0.0, 0.1, 1.0, np.inf], m)
    if integers:
        center = np.round(center)
    lower = np.concatenate([np.full(n, -1.0), center - half])
    upper = np.concatenate([np.full(n, 1.0), center + half])
    return rows, lower, upper


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 8), st.booleans())
def test_agrees_with_scipy(seed: int, m: int, n: int, integers: bool) -> None:
    """Integer rows repeat and cancel: degenerate systems."""
    rows, lower, upper = random_system(seed, m, n, integers=integers)
    simplex = Simplex(rows, lower, upper)
    assert simplex.solve() == solvable(rows, lower, upper)


def test_both_answers_occur() -> None:
    said = [Simplex(*random_system(seed, 8, 5, integers=seed % 2 == 0)).solve() for seed in range(60)]
    assert 10 < sum(said) < 50


@pytest.mark.parametrize("seed", range(20))
def test_solution_meets_equations_and_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(15, 10))
    inside = rng.uniform(-1, 1, 10)
    truth = np.concatenate([inside, rows @ inside])  # a solution by construction
    simplex = Simplex(rows, truth - rng.uniform(0, 0.2, 25), truth + rng.uniform(0, 0.2, 25))
    assert simplex.solve()
    np.testing.assert_allclose(simplex.value[10:], rows @ simplex.value[:10], atol=1e-9)
    assert (simplex.value >= simplex.lower - 1e-8).all() and (simplex.value <= simplex.upper + 1e-8).all()


def test_pivot_and_update_keep_the_equations() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 4))
    simplex = Simplex(rows, np.full(10, -np.inf), np.full(10, np.inf))
    for step in range(120):  # passes a refresh of the tableau
        simplex.pivot(int(rng.integers(6)), int(rng.integers(4)))
        variable = int(rng.integers(10))
        simplex.update(variable, float(step % 7))
        assert simplex.value[variable] == pytest.approx(step % 7)
        np.testing.assert_allclose(simplex.value[4:], rows @ simplex.value[:4], atol=1e-6)


def test_ranges_contain_every_solution() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(6, 4))
    lower, upper = np.full(10, -np.inf), np.full(10, np.inf)
    lower[:4], upper[:4] = -1, 1
    simplex = Simplex(rows, lower, upper)
    for row, column in [(0, 1), (3, 2), (5, 0)]:
        simplex.pivot(row, column)
    low, high = simplex.ranges()
    points = rng.uniform(-1, 1, (500, 4))
    every = np.hstack([points, points @ rows.T])
    assert (every >= low - 1e-9).all() and (every <= high + 1e-9).all()
    assert np.isfinite(low[:4]).all()


def test_a_cycling_system_ends() -> None:
    """Beale's example, on which the largest-coefficient rule cycles, as a system of bounds."""
    rows = np.array([[0.25, -60, -1 / 25, 9], [0.5, -90, -1 / 50, 3], [0, 0, 1, 0], [-0.75, 150, -0.02, 6]])
    lower = np.array([0, 0, 0, 0, -np.inf, -np.inf, -np.inf, -np.inf])
    upper = np.array([np.inf, np.inf, np.inf, np.inf, 0, 0, 1, -0.0499])
    assert Simplex(rows, lower, upper).solve()
    upper[-1] = -0.0501  # the optimum of Beale's program is −1/20
    assert not Simplex(rows, lower, upper).solve()


def test_copy_is_independent() -> None:
    simplex = Simplex(np.array([[1.0, 1.0]]), np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 3.0]))
    other = simplex.copy()
    other.bound(2, lower=2.5)
    assert not other.solve() and simplex.solve()


def test_shapes() -> None:
    with pytest.raises(ValueError, match="lower, upper"):
        Simplex(np.eye(2), np.zeros(3), np.zeros(4))


def test_a_basis_that_rounding_has_made_singular_is_no_answer() -> None:
    """Two equal rows cannot be solved for their two variables, whatever pivots say that have divided by rounding."""
    simplex = Simplex(np.ones((2, 2)), np.full(4, -1.0), np.ones(4))
    simplex.basic, simplex.nonbasic = np.array([0, 1]), np.array([2, 3])
    with pytest.raises(RuntimeError, match="no answer"):
        simplex.ranges(refresh=True)
