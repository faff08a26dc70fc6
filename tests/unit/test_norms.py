"""The geometry of norms.py against convex solvers, brute force and statistics."""

from __future__ import annotations

import itertools

import cvxpy as cp
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm, linear_distance, measure
from robustlab.geometry.projections import clip, clip_

CONVEX = ("l1", "l2", "linf")
ALL = ("l0", *CONVEX)

# Zeros, ties, tiny and large elements, next to ordinary ones.
ELEMENTS = st.one_of(
    st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0, 1e-7, -1e-7, 30.0]),
    st.floats(-3, 3, allow_nan=False, width=32),
)
VECTORS = st.integers(1, 7).flatmap(lambda d: hnp.arrays(np.float64, d, elements=ELEMENTS))
RADII = st.one_of(st.sampled_from([1e-3, 0.5, 1.0, 2.0, 100.0]), st.floats(0.01, 5))


def rooms(d: int) -> st.SearchStrategy[np.ndarray]:
    """Distances to the box: degenerate (0), touching, ordinary, out of reach."""
    return hnp.arrays(np.float64, d, elements=st.one_of(st.sampled_from([0.0, 0.5, 1.0, 50.0]), st.floats(0, 2)))


BOXED = st.integers(1, 6).flatmap(
    lambda d: st.tuples(hnp.arrays(np.float64, d, elements=ELEMENTS), rooms(d), rooms(d), RADII)
)


def row(values: np.ndarray | list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64), dtype=dtype)[None]


def solver_projection(point: np.ndarray, norm: str, eps: float, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    u = cp.Variable(point.shape[0])
    order = {"l1": 1, "l2": 2, "linf": "inf"}[norm]
    limits = [cp.norm(u, order) <= eps] + ([u >= low, u <= high] if np.isfinite(low).all() else [])
    cp.Problem(cp.Minimize(cp.norm(u - point, 2)), limits).solve(solver=cp.CLARABEL)
    return np.asarray(u.value)


def assert_nearest(u: np.ndarray, point: np.ndarray, norm: str, eps: float, low: np.ndarray, high: np.ndarray) -> None:
    """``u`` is feasible, and no farther from ``point`` than the solver's answer."""
    length = {"l1": np.abs(u).sum(), "l2": np.sqrt((u**2).sum()), "linf": np.abs(u).max()}[norm]
    assert length <= eps * (1 + 1e-9) + 1e-12
    assert (u >= low).all() and (u <= high).all()
    best = solver_projection(point, norm, eps, low, high)
    ours, theirs = np.linalg.norm(u - point), np.linalg.norm(best - point)
    assert ours <= theirs + 1e-5 * max(1.0, theirs)
    assert np.abs(u - best).max() <= 2e-3 * max(1.0, np.abs(best).max())


@pytest.mark.slow
@pytest.mark.parametrize("norm", CONVEX)
@settings(max_examples=40)
@given(point=VECTORS, eps=RADII)
@example(point=np.zeros(4), eps=0.5)
@example(point=np.full(5, 1.0), eps=1.0)
@example(point=np.array([1e3, -1e3, 1e-6]), eps=1.0)
def test_projection_matches_solver(norm: str, point: np.ndarray, eps: float) -> None:
    u = get_norm(norm).project(row(point), eps)[0].numpy()
    assert_nearest(u, point, norm, eps, np.full_like(point, -np.inf), np.full_like(point, np.inf))


@pytest.mark.slow
@pytest.mark.parametrize("norm", CONVEX)
@settings(max_examples=40)
@given(case=BOXED)
@example(case=(np.array([3.0, 3.0, 3.0]), np.zeros(3), np.zeros(3), 1.0))  # a box of one point
@example(case=(np.array([2.0, 2.0, -2.0]), np.zeros(3), np.full(3, 0.5), 0.5))  # ties
@example(case=(np.array([5.0, 1.0]), np.ones(2), np.ones(2), 100.0))  # the ball holds the box
@example(case=(np.zeros(3), np.ones(3), np.ones(3), 1e-3))
def test_box_projection_matches_solver(norm: str, case: tuple[np.ndarray, np.ndarray, np.ndarray, float]) -> None:
    point, below, above, eps = case
    u = get_norm(norm).project_box(row(point), eps, row(-below), row(above))[0].numpy()
    assert_nearest(u, point, norm, eps, -below, above)


@settings(max_examples=80)
@given(case=BOXED, k=st.integers(1, 7), boxed=st.booleans())
@example(case=(np.array([3.0, 2.0]), np.full(2, 9.0), np.array([0.1, 2.0]), 1.0), k=1, boxed=True)  # 3 has no room
def test_l0_projection_matches_brute_force(case: tuple[np.ndarray, ...], k: int, boxed: bool) -> None:
    point, below, above, _ = case
    norm = get_norm("l0")
    if boxed:
        u = norm.project_box(row(point), k, row(-below), row(above))[0].numpy()
    else:
        below = above = np.full_like(point, 1e9)
        u = norm.project(row(point), k)[0].numpy()
    assert (u != 0).sum() <= k and (u >= -below).all() and (u <= above).all()
    clipped = np.clip(point, -below, above)
    best = min(
        ((np.where(np.isin(np.arange(len(point)), keep), clipped, 0) - point) ** 2).sum()
        for keep in itertools.combinations(range(len(point)), min(k, len(point)))
    )
    assert ((u - point) ** 2).sum() <= best * (1 + 1e-12) + 1e-15


@pytest.mark.slow
@pytest.mark.parametrize("norm", CONVEX)
@settings(max_examples=40)
@given(case=BOXED)
@example(case=(np.zeros(3), np.ones(3), np.ones(3), 2.0))
@example(case=(np.full(4, 2.0), np.ones(4), np.full(4, 0.1), 1.0))
@example(case=(np.array([1e-7, -1e-7]), np.ones(2), np.ones(2), 0.5))
def test_linear_max_matches_solver(norm: str, case: tuple[np.ndarray, np.ndarray, np.ndarray, float]) -> None:
    grad, below, above, eps = case
    v = get_norm(norm).linear_max(row(grad), eps, row(-below), row(above))[0].numpy()
    length = {"l1": np.abs(v).sum(), "l2": np.sqrt((v**2).sum()), "linf": np.abs(v).max()}[norm]
    assert length <= eps * (1 + 1e-9) and (v >= -below).all() and (v <= above).all()
    assert (v[grad == 0] == 0).all()
    scale = max(np.abs(grad).max(), 1e-300)
    u = cp.Variable(len(grad))
    order = {"l1": 1, "l2": 2, "linf": "inf"}[norm]
    problem = cp.Problem(cp.Maximize((grad / scale) @ u), [cp.norm(u, order) <= eps, u >= -below, u <= above])
    problem.solve(solver=cp.CLARABEL)
    assert grad @ v >= scale * (problem.value - 1e-5 * max(1.0, abs(problem.value)))


@settings(max_examples=40)
@given(case=BOXED, k=st.integers(1, 4))
def test_l0_linear_max_matches_brute_force(case: tuple[np.ndarray, ...], k: int) -> None:
    grad, below, above, _ = case
    v = get_norm("l0").linear_max(row(grad), k, row(-below), row(above))[0].numpy()
    assert (v != 0).sum() <= k and (v >= -below).all() and (v <= above).all()
    gains = np.sort(np.where(grad > 0, grad * above, -grad * below))[::-1]
    assert grad @ v == pytest.approx(gains[:k].sum(), abs=1e-12)


@pytest.mark.parametrize("norm", ALL)
@settings(max_examples=40)
@given(point=VECTORS, eps=RADII)
def test_projection_is_idempotent_and_keeps_inner_points(norm: str, point: np.ndarray, eps: float) -> None:
    ball = get_norm(norm)
    eps = max(1, round(eps)) if norm == "l0" else eps
    once = ball.project(row(point), eps)
    torch.testing.assert_close(ball.project(once, eps), once, rtol=1e-12, atol=1e-15)
    if float(ball.length(row(point))) <= eps:
        assert torch.equal(once, row(point))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("norm", CONVEX)
def test_projection_scales(norm: str, size: float, dtype: torch.dtype) -> None:
    """project(s·δ, s·ε) = s·project(δ, ε): tiny and huge numbers neither under- nor overflow."""
    ball = get_norm(norm)
    delta = torch.linspace(-2, 3, 11, dtype=dtype)[None]
    low, high = torch.full_like(delta, -0.7), torch.full_like(delta, 0.4)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for plain, scaled in (
        (ball.project(delta, 1.1), ball.project(delta * size, 1.1 * size)),
        (ball.project_box(delta, 0.6, low, high), ball.project_box(delta * size, 0.6 * size, low * size, high * size)),
        (ball.linear_max(delta, 0.6, low, high), ball.linear_max(delta * size, 0.6, low, high)),
        (ball.steepest(delta), ball.steepest(delta * size)),
    ):
        peak = float(scaled.abs().max() / plain.abs().max())
        torch.testing.assert_close(scaled / peak, plain, rtol=tolerance, atol=tolerance)
        assert peak == pytest.approx(size, rel=tolerance) or peak == pytest.approx(1, rel=tolerance)


@pytest.mark.parametrize("norm", ALL)
def test_float32_projections_stay_in_ball_and_box(norm: str) -> None:
    """The budget holds up to float32 rounding and the box exactly, for images of MNIST's size."""
    ball, noise = get_norm(norm), Noise(0, torch.arange(50))
    x = noise.uniform(0, (1, 28, 28)).round(decimals=1)
    delta = noise.normal(1, (1, 28, 28))
    eps = torch.logspace(-3, 3, 50) if norm != "l0" else torch.arange(1, 51).float()
    for u in (
        ball.project_box(delta, eps, -x, 1 - x),
        ball.linear_max(delta, eps, -x, 1 - x),
        ball.project_box(ball.uniform(noise, 2, x, eps), eps, -x, 1 - x),
    ):
        assert (ball.length(u) <= eps * (1 + 1e-6)).all()
        assert (u >= -x).all() and (u <= 1 - x).all()
    assert (ball.length(ball.project(delta, eps)) <= eps * (1 + 1e-6)).all()


@pytest.mark.parametrize("norm", ALL)
def test_rows_are_independent(norm: str) -> None:
    ball, noise = get_norm(norm), Noise(3, torch.arange(6))
    delta, x = noise.normal(0, (2, 3, 3), torch.float64), noise.uniform(1, (2, 3, 3), torch.float64)
    eps = torch.tensor([1.0, 2.0, 3.0, 1.5, 2.5, 8.0], dtype=torch.float64)
    for i in range(6):
        one = slice(i, i + 1)
        assert torch.equal(ball.project(delta, eps)[one], ball.project(delta[one], eps[one]))
        assert torch.equal(
            ball.project_box(delta, eps, -x, 1 - x)[one], ball.project_box(delta[one], eps[i], -x[one], 1 - x[one])
        )
        assert torch.equal(
            ball.linear_max(delta, eps, -x, 1 - x)[one], ball.linear_max(delta[one], eps[one], -x[one], 1 - x[one])
        )


@pytest.mark.parametrize("norm", CONVEX)
def test_steepest_attains_the_dual_norm(norm: str) -> None:
    """⟨g, v⟩ = ‖g‖_* with ‖v‖ = 1, and 0 for a zero gradient."""
    ball = get_norm(norm)
    grad = torch.cat([torch.randn(5, 7, dtype=torch.float64), torch.zeros(1, 7, dtype=torch.float64)])
    v = ball.steepest(grad)
    torch.testing.assert_close((grad * v).sum(1), ball.dual.length(grad))
    torch.testing.assert_close(ball.length(v[:5]), torch.ones(5, dtype=torch.float64))
    assert torch.equal(v[5], grad[5])
    assert ball.dual.dual is ball


def test_lengths_match_numpy() -> None:
    delta = torch.randn(4, 2, 3, 3, dtype=torch.float64) * (torch.rand(4, 2, 3, 3) > 0.5)
    for name, order in (("l0", 0), ("l1", 1), ("l2", 2), ("linf", np.inf)):
        expected = [np.linalg.norm(d.numpy().ravel(), order) for d in delta]
        np.testing.assert_allclose(measure(delta)[name].numpy(), expected, rtol=1e-12)


def test_length_neither_overflows_nor_underflows() -> None:
    delta = torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
    torch.testing.assert_close(get_norm("l2").length(delta), torch.tensor([5e30, 5e-30, 0.0]))


@pytest.mark.parametrize("norm", CONVEX)
@pytest.mark.parametrize("d", [1, 2, 9])
def test_uniform_fills_the_ball_evenly(norm: str, d: int) -> None:
    """‖u‖/ε of a uniform point in a d-ball has the distribution function r^d (one-sample KS test, false alarms 1e-3).

    Marginals are compared with those of rejection sampling from the cube (two-sample KS test).
    """
    n, eps = 4000, 0.7
    ball = get_norm(norm)
    like = torch.zeros(n, d, dtype=torch.float64)
    u = ball.uniform(Noise(11, torch.arange(n)), 0, like, eps)
    radius = (ball.length(u) / eps).numpy()
    assert radius.max() <= 1 + 1e-12
    assert stats.kstest(radius, lambda r: np.clip(r, 0, 1) ** d).pvalue > 1e-3
    if d == 2:
        cube = np.random.default_rng(5).uniform(-eps, eps, (20000, d))
        inside = cube[np.linalg.norm(cube, {"l1": 1, "l2": 2, "linf": np.inf}[norm], axis=1) <= eps]
        for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
            assert stats.ks_2samp(u.numpy() @ direction, inside @ direction).pvalue > 1e-3


def test_l0_keeps_exactly_k_and_the_first_of_equals() -> None:
    """Each row has its own k, 0 and all included."""
    rows = torch.tensor([[1.0, -1.0, 2.0, 1.0]]).repeat(6, 1)
    kept = get_norm("l0").project(rows, torch.tensor([0.0, 1.0, 2.0, 3.5, 4.0, 9.0]))
    expected = [[0, 0, 0, 0], [0, 0, 2, 0], [1, 0, 2, 0], [1, -1, 2, 0], [1, -1, 2, 1], [1, -1, 2, 1]]
    assert kept.tolist() == expected


def test_l0_uniform_changes_eps_random_elements() -> None:
    u = get_norm("l0").uniform(Noise(2, torch.arange(3000)), 0, torch.zeros(3000, 6), 2)
    assert (get_norm("l0").length(u) == 2).all()
    counts = (u != 0).sum(0).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest(u[u != 0].double().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_linear_distance_is_the_distance_to_the_hyperplane() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    margin = torch.tensor([10.0, 1.0])
    for norm, expected in (("l2", 2.0), ("linf", 10 / 7), ("l1", 2.5)):
        assert linear_distance(margin, weight, norm).tolist() == pytest.approx([expected, float("inf")])


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"norm: want one of .* got 'l3'"):
        get_norm("l3")
    with pytest.raises(ValueError, match="norm: l0"):
        _ = get_norm("l0").dual
    assert get_norm(get_norm("l2")) is get_norm("l2")


@pytest.mark.parametrize("ends", ["numbers", "elements", "channels", "samples"])
def test_clipping_is_that_of_numpy(ends: str) -> None:
    """Whatever the ends are, also where they meet; NaN stays NaN."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 2, 2, generator=draw)
    x[1, 2, 0, 1] = torch.nan
    shape = {"elements": x.shape, "channels": (3, 1, 1), "samples": (5, 1, 1, 1)}.get(ends, ())
    low = -torch.rand(shape, generator=draw)
    high = low + torch.rand(shape, generator=draw).mul_(torch.rand(shape, generator=draw) > 0.3)
    bounds = (float(low), float(high)) if ends == "numbers" else (low, high)
    wanted, given = torch.from_numpy(np.clip(x.numpy(), *map(np.asarray, bounds))).to(x), x.clone()
    torch.testing.assert_close(clip(x, *bounds), wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(x.nan_to_num(), given.nan_to_num()) and clip_(x, *bounds) is x
    torch.testing.assert_close(x, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("boxed", [False, True])
def test_the_linf_projection_can_be_differentiated(boxed: bool) -> None:
    """1 where an element stays, 0 where it is cut off."""
    delta = torch.tensor([[0.05, 0.3, -0.2, -0.04]], dtype=torch.float64, requires_grad=True)
    low, high = torch.full((4,), -0.5, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    norm = get_norm("linf")
    (norm.project_box(delta, 0.1, low, high) if boxed else norm.project(delta, 0.1)).sum().backward()
    assert delta.grad is not None and delta.grad.tolist() == [[1.0, 0.0, 0.0, 1.0]]
