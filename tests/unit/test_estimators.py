"""Gradients from values: unbiased, as precise as theory says, inside the box, and every value counted."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import gammaln
from scipy.stats import chi2
from torch import Tensor

from robustlab.attacker import estimators
from robustlab.attacker.estimators import (
    Directions,
    Ends,
    Kind,
    central,
    coordinates,
    difference_step,
    forward,
    variance_reduced,
)
from robustlab.attacker.losses import ATTACKER_LOSSES, attacker_loss
from robustlab.attacker.victim import Victim
from robustlab.geometry.keyed import Noise
from tests.suite.cases import noise_box
from tests.suite.models import Counting, mlp

N = 6000  # draws, one for each row of a batch
KINDS: tuple[Kind, ...] = ("gaussian", "sphere")
generator = torch.Generator().manual_seed(0)
ROOT = torch.randn(5, 5, generator=generator, dtype=torch.float64)
SLOPE = torch.randn(5, generator=generator, dtype=torch.float64)


def quadratic(points: Tensor) -> Tensor:
    """½ vᵀRRᵀv + bᵀv, of any points (..., 5)."""
    return 0.5 * (points @ ROOT).square().sum(dim=-1) + points @ SLOPE


def draws(kind: Kind, q: int, d: int, n: int = N, seed: int = 0) -> Directions:
    return Directions(Noise(seed, torch.arange(n)), 0, q, torch.zeros(n, d, dtype=torch.float64), kind)


def assert_mean(estimates: Tensor, want: Tensor) -> None:
    """Hotelling's test, at a false-alarm rate of 1e-6, that (N, d) rows have this mean."""
    error = estimates.mean(dim=0) - want
    spread = estimates.T.cov() / len(estimates)
    statistic = float(error @ torch.linalg.solve(spread, error))
    assert statistic < chi2.isf(1e-6, len(want)), f"off by {error.norm():.3g} of {want.norm():.3g}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", [forward, central])
@pytest.mark.parametrize("q", [1, 3])
def test_unbiased_on_quadratics(kind: Kind, estimator: object, q: int) -> None:
    """For every μ, since the odd moments of a direction vanish."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    found = estimator(quadratic, x.expand(N, 5), draws(kind, q, 5), 0.7)  # type: ignore[operator]
    assert_mean(found, ROOT @ ROOT.T @ x + SLOPE)


@pytest.mark.parametrize(("kind", "more"), [("sphere", -1), ("gaussian", 1)])
@pytest.mark.parametrize("q", [1, 20, 60])
def test_ratio_of_means(kind: Kind, more: int, q: int) -> None:
    """E⟨ĝ, g⟩/√(E‖ĝ‖²‖g‖²) is √(q/(q + d ∓ 1)); the mean cosine tends to it, and is E|u₁| at q = 1."""
    d, n = 40, 1500
    g = torch.randn(d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = central(lambda v: v @ g, torch.zeros(n, d, dtype=torch.float64), draws(kind, q, d, n), 1.0)
    along, square = found @ g, found.square().sum(dim=1)
    ratio = float(along.mean() / (square.mean() * g.square().sum()).sqrt())
    theory = math.sqrt(q / (q + d + more))
    assert ratio == pytest.approx(theory, rel=0.06 if q == 1 else 0.02)
    cosine = (along / (square * g.square().sum()).sqrt()).mean()
    if q == 1:
        exact = math.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / math.sqrt(math.pi)
        assert exact == pytest.approx(math.sqrt(2 / (math.pi * d)), rel=0.01)
        assert float(cosine) == pytest.approx(exact, rel=0.06) and float(cosine) < 0.87 * theory
    else:
        assert float(cosine) == pytest.approx(math.sqrt(q / (q + d - 1)), rel=0.02)


def test_directions_are_uniform_on_the_sphere() -> None:
    """Archimedes: each coordinate of a uniform point on the sphere in R³ is uniform on [−1, 1]."""
    noise, n = Noise(0, torch.arange(6250)), 16
    (u,) = Directions(noise, 0, n, torch.zeros(6250, 3, dtype=torch.float64), "sphere")
    u = u.reshape(-1, 3)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(len(u)).double())
    torch.testing.assert_close(u.T @ u / len(u), torch.eye(3).double() / 3, atol=0.006, rtol=0)
    quantiles = u[:, 0].quantile(torch.tensor([0.1, 0.25, 0.5, 0.9]).double())
    torch.testing.assert_close(quantiles, torch.tensor([-0.8, -0.5, 0.0, 0.8]).double(), atol=0.02, rtol=0)


def test_signs_alone_point_along_the_gradient() -> None:
    """E[sign(gᵀu) u] = √(2/π)·g/‖g‖ for Gaussian u, however small the differences."""
    found = central(lambda v: v @ (1e-9 * SLOPE), torch.zeros(N, 5).double(), draws("gaussian", 1, 5), 1.0, signs=True)
    assert_mean(found, math.sqrt(2 / math.pi) * SLOPE / SLOPE.norm())


@pytest.mark.parametrize("estimator", [forward, central])
def test_what_is_not_heard_is_left_out_with_its_pair(estimator: object) -> None:
    """Values of NaN: the mean is over the other directions, and 0 without any."""

    def deaf(points: Tensor) -> Tensor:
        return torch.where(points[..., 0] > 0.5, torch.nan, points @ SLOPE)

    x = torch.zeros(N, 5, dtype=torch.float64)
    found = estimator(deaf, x, draws("gaussian", 4, 5), 1.0)  # type: ignore[operator]
    heard = found.abs().sum(dim=1) > 0
    share = {central: 0.617, forward: 0.309}[estimator]  # P(|u_1| > ½) and P(u_1 > ½)
    assert float(heard.double().mean()) == pytest.approx(1 - share**4, abs=0.02)
    assert_mean(found[heard][:, 1:], SLOPE[1:])


def test_variance_falls_with_the_distance_to_the_snapshot() -> None:
    """On a quadratic Var v = (d + 1)/q·‖A(x − x̃)‖² in sum, against (d + 1)/q·‖∇f(x)‖² of the plain estimate."""
    hessian, x = ROOT @ ROOT.T, torch.linspace(-1, 1, 5, dtype=torch.float64)
    gradient, q = hessian @ x + SLOPE, 2
    away = torch.randn(5, generator=generator, dtype=torch.float64)
    away /= (hessian @ away).norm() / gradient.norm()  # at distance 1 both vary alike
    u = draws("gaussian", q, 5)
    plain = central(quadratic, x.expand(N, 5), u, 0.5)
    size = float(6 / q * gradient.square().sum())
    assert float(plain.var(dim=0).sum()) == pytest.approx(size, rel=0.15)
    for distance in (1.0, 0.3, 0.01):
        snapshot = x + distance * away
        here, there = (central(quadratic, point.expand(N, 5), u, 0.5) for point in (x, snapshot))
        v = variance_reduced(here, there, hessian @ snapshot + SLOPE)
        assert_mean(v, gradient)
        assert float(v.var(dim=0).sum()) == pytest.approx(distance**2 * size, rel=0.15)


# The box --------------------------------------------------------------------------------------------------------------

ENDS: list[tuple[str, Ends]] = [
    ("numbers", (0.0, 1.0)),
    ("tensors", (torch.tensor([0.0, -0.1, 0.0, 0.3, 0.0]), torch.tensor([1.0, 1.0, 0.9, 1.0, 1.0]))),
]


@pytest.mark.parametrize(("name", "box"), ENDS, ids=["numbers", "tensors"])
@pytest.mark.parametrize("estimator", [forward, central])
def test_unbiased_at_the_ends_of_the_box(name: str, box: Ends, estimator: object) -> None:
    """At both ends, near one and in the middle, on a linear function; and nothing is asked outside."""
    x, mu, asked = torch.tensor([0.0, 1.0, 0.02, 0.5, 1.0], dtype=torch.float64), 0.05, list[Tensor]()
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in box)
    x = torch.minimum(torch.maximum(x, low), high)

    def linear(points: Tensor) -> Tensor:
        asked.append(points)
        return points @ SLOPE

    ends = (low, high) if name == "tensors" else box
    found = estimator(linear, x.expand(N, 5), draws("gaussian", 2, 5), mu, box=ends)  # type: ignore[operator]
    assert all(bool(((p >= low) & (p <= high)).all()) for p in asked)
    assert_mean(found, SLOPE)


@pytest.mark.parametrize("estimator", [forward, central])
def test_on_the_sphere_too(estimator: object) -> None:
    """At the ends of the box, where the half of a direction that is left is known exactly."""
    x = torch.tensor([0.0, 1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    box: Ends = (0.0, 1.0)
    found = estimator(lambda v: v @ SLOPE, x.expand(N, 5), draws("sphere", 2, 5), 0.1, box=box)  # type: ignore[operator]
    assert_mean(found, SLOPE)


def test_pairs_stay_pairs() -> None:
    """The two points of a pair differ by 2μu, at an end of the box too; a short box is crossed from end to end."""
    asked, mu, box = list[Tensor](), 0.05, (0.0, 1.0)
    u = draws("gaussian", 20, 5, 2)
    x = torch.tensor([0.0, 1.0, 0.02, 0.5, 1.0], dtype=torch.float64).expand(2, 5)
    central(lambda v: (asked.append(v), v.sum(dim=2))[1], x, u, mu, box=box)
    up, down = asked[0].chunk(2, dim=1)
    torch.testing.assert_close(up - down, 2 * mu * next(iter(u)))
    reach = mu * float(next(iter(u)).abs().max())  # is reached where the longest element begins at an end
    assert float(((up + down) / 2 - x[:, None]).abs().max()) <= reach * (1 + 1e-12)
    central(lambda v: (asked.append(v), v.sum(dim=2))[1], x, u, 10.0, box=box)
    up, down = asked[1].chunk(2, dim=1)
    wide = (20.0 * next(iter(u))).abs() >= 1.0
    assert bool(((up - down).abs() == 1.0)[wide].all())


# Coordinates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "margin", "logprob"])
def test_all_coordinates_are_autograd(loss: str) -> None:
    """Through a session, in float64, to 1e-3 (and in fact to 1e-6); 2d queries, none of them a success."""
    model, x = mlp((2, 3, 3), 4), noise_box(3, (2, 3, 3), torch.float64)
    seen, g = Counting(model), attacker_loss(loss)  # type: ignore[arg-type]
    with Victim(seen, access="soft").session(x, None, access="soft") as session:
        live = session.live()
        found = coordinates(session.values(live, g), live.x, box=(session.low, session.high))
        result = session.result(live.x)
    assert result.queries.tolist() == [1 + 2 * 18 + 1] * 3 and seen.forwards == 3 * 38
    assert result.first_success.tolist() == [-1] * 3
    point = x.clone().requires_grad_(True)
    (want,) = torch.autograd.grad(g(model(point), model(x).argmax(1)).sum(), point)
    interior = ((x > 0) & (x < 1)).flatten(1)
    torch.testing.assert_close(found.slope[interior], want.flatten(1)[interior], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.slope, want.flatten(1), rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_step_is_chosen_by_the_dtype() -> None:
    """In float32 1e-4 loses more than a percent to rounding, the step of its own less than a thousandth."""
    model, x = mlp((30,), 4, gain=1.5), 0.2 + 0.6 * torch.rand(4, 30, generator=generator, dtype=torch.float64)
    point = x.clone().requires_grad_(True)
    (want,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    small = mlp((30,), 4, torch.float32, gain=1.5)

    def off(h: float | None) -> float:
        def scores(points: Tensor) -> Tensor:
            with torch.no_grad():
                return 1e3 + small(points.flatten(0, 1))[:, 0].reshape(points.shape[:2])

        found = coordinates(scores, x.float(), h=h).slope.double()
        return float((found - want).norm() / want.norm())

    assert off(1e-4) > 10 * off(None)
    assert difference_step(torch.float32) == pytest.approx(4.92e-3, rel=1e-2)
    assert difference_step(torch.float64) == pytest.approx(6.06e-6, rel=1e-2)


def test_chosen_coordinates_and_their_curvature() -> None:
    """Of a quadratic both are exact; what is differenced on one side has its slope in the middle, and no curvature."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).expand(2, 5)
    index = torch.tensor([[4, 0], [2, 1]])
    slope, bend = coordinates(quadratic, x, index, h=0.1, base=quadratic(x))
    hessian = ROOT @ ROOT.T
    torch.testing.assert_close(slope, (x @ hessian + SLOPE).gather(1, index))
    assert bend is not None
    torch.testing.assert_close(bend, hessian.diagonal()[index])
    edge = coordinates(quadratic, x, index, h=0.1, base=quadratic(x), box=(-1.0, 1.0))
    unit = torch.eye(5, dtype=torch.float64)
    for (i, j), inward in {(0, 0): -1.0, (0, 1): 1.0}.items():
        middle = x[0] + 0.05 * inward * unit[index[i, j]]
        assert float(edge.slope[i, j]) == pytest.approx(float((hessian @ middle + SLOPE)[index[i, j]]))
        assert edge.bend is not None and float(edge.bend[i, j]) == 0.0


# Directions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_directions_belong_to_their_sample(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, in whatever parts memory makes of them, the same each time, no two alike."""
    x = torch.zeros(3, 2, 4, dtype=torch.float64)
    whole = Directions(Noise(7, torch.tensor([5, 2, 9])), (1, 2), 50, x, kind)
    (u,) = list(whole)
    assert u.shape == (3, 50, 2, 4) and torch.equal(u, next(iter(whole)))
    (alone,) = list(Directions(Noise(7, torch.tensor([2])), (1, 2), 50, x[:1], kind))
    assert torch.equal(alone[0], u[1])
    monkeypatch.setattr(estimators, "AT_ONCE", 1)
    parts = list(whole)
    assert [p.shape[1] for p in parts] == [16, 16, 16, 2] and torch.equal(torch.cat(parts, dim=1), u)
    cosines = F.normalize(u.flatten(2), dim=2) @ F.normalize(u.flatten(2), dim=2).mT - torch.eye(50)
    assert float(cosines.abs().max()) < 1 - 1e-6
    if kind == "sphere":
        torch.testing.assert_close(u.flatten(2).norm(dim=2), torch.ones(3, 50, dtype=torch.float64))


@pytest.mark.parametrize("at_once", [estimators.AT_ONCE, 1])
@pytest.mark.parametrize("estimator", [forward, central])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_may_have_different_numbers_of_directions(
    kind: Kind, estimator: object, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the directions and the estimate that it has alone and asks about its own; in one part, or in many."""
    monkeypatch.setattr(estimators, "AT_ONCE", at_once)
    ids, numbers = torch.tensor([5, 2, 9, 4, 7]), torch.tensor([3, 20, 1, 3, 40])
    x, asked = torch.randn(5, 5, generator=generator).double(), torch.zeros(5, dtype=torch.int64)

    def some(points: Tensor, own: Tensor | None = None) -> Tensor:
        if own is None:  # at x itself
            return quadratic(points)
        asked.add_(own.sum(dim=1))
        return torch.where(own, quadratic(points), torch.nan)

    whole = Directions(Noise(7, ids), (1, 2), numbers, x, kind)
    u, found = torch.cat(list(whole), dim=1), estimator(some, x, whole, 0.3)  # type: ignore[operator]
    assert u.shape == (5, 40, 5) and asked.tolist() == (numbers if estimator is forward else 2 * numbers).tolist()
    for i, q in enumerate(numbers.tolist()):
        alone = Directions(Noise(7, ids[i : i + 1]), (1, 2), q, x[:1], kind)
        assert torch.equal(u[i, :q], torch.cat(list(alone), dim=1)[0]) and not u[i, q:].any()
        torch.testing.assert_close(found[i], estimator(quadratic, x[i : i + 1], alone, 0.3)[0])  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_both_dtypes_walk_along_the_same_directions(kind: Kind) -> None:
    noise = Noise(7, torch.tensor([5, 2, 9]))
    single, double = (
        next(iter(Directions(noise, (1, 2), 20, torch.zeros(3, 6, 7, dtype=dtype), kind)))
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=3e-7, atol=0)


def test_several_functions_share_their_answers() -> None:
    """Estimated at once, each has the gradient that it has alone, also near ends and where one of them is not heard."""

    def other(points: Tensor) -> Tensor:
        return torch.where(points[..., 1] > 0.3, torch.nan, (points @ SLOPE).sin())

    def both(points: Tensor) -> Tensor:
        return torch.stack([quadratic(points), other(points)], dim=2)

    x, u = 0.4 * torch.randn(8, 5, generator=generator).double(), draws("sphere", 30, 5, n=8)
    found = forward(both, x, u, 0.3, box=(-1.0, 1.0))
    assert found.shape == (8, 2, 5)
    for k, alone in enumerate((quadratic, other)):
        torch.testing.assert_close(found[:, k], forward(alone, x, u, 0.3, box=(-1.0, 1.0)), equal_nan=True)


def test_bad_input() -> None:
    x = torch.zeros(2, 3)
    noise = Noise(0, torch.arange(2))
    for q in (0, torch.tensor([1, 0]), torch.tensor([0.5, 1.0])):
        with pytest.raises((ValueError, TypeError), match=r"^q: want"):
            Directions(noise, 0, q, x)
    with pytest.raises(ValueError, match=r"^kind: want"):
        Directions(noise, 0, 1, x, "cube")  # type: ignore[arg-type]
    for mu in (0.0, -1.0, math.nan):
        for estimator in (forward, central):
            with pytest.raises(ValueError, match=r"^mu: want"):
                estimator(quadratic, x, Directions(noise, 0, 1, x), mu)
    with pytest.raises(ValueError, match=r"^h: want"):
        coordinates(quadratic, x, h=0.0)
    with (
        Victim(mlp((3,), 3, torch.float32), access="hard").session(x, None, access="hard") as session,
        pytest.raises(ValueError, match=r"^access: "),
    ):
        session.values(session.live(), ATTACKER_LOSSES["ce"])
