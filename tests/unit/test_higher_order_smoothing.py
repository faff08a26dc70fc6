"""The first-order certificate against linear programs over all classifiers, exact radii of slabs, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import binom, norm
from torch import Tensor, nn

from robustlab.defenses import higher_order_radius, higher_order_smoothing, randomized_smoothing
from robustlab.defenses.certified.smoothing.higher_order_smoothing import _PROXY, _density, gradient_bound
from tests.unit.test_randomized_smoothing import plane


def steepest(p: float) -> float:
    """The fall of a half-space."""
    return float(norm.pdf(norm.ppf(p)))


class Slab(nn.Module):
    """Class 1 where low ≤ ⟨w, x⟩ ≤ high, class 0 below, and class 2 above."""

    def __init__(self, w: Tensor, low: float, high: float) -> None:
        super().__init__()
        self.w, self.low, self.high = w, low, high

    def forward(self, x: Tensor) -> Tensor:
        at = x @ self.w
        return torch.stack([at < self.low, (at >= self.low) & (at <= self.high), at > self.high], dim=1).to(x.dtype)


@pytest.mark.parametrize(("share", "radius"), [(1.0, 0.842), (0.9, 0.868), (0.5, 1.012), (0.0, 1.268)])
def test_known_values(share: float, radius: float) -> None:
    found = higher_order_radius(torch.tensor(0.8).double(), torch.tensor(share * steepest(0.8)).double())
    assert float(found) == pytest.approx(radius, abs=5e-4)


def least(p: float, slope: Tensor, delta: Tensor) -> float:
    """The smallest probability at x + δ of any classifier with p and this gradient at x, on a grid of the noise."""
    side = np.linspace(-4.5, 4.5, 91)
    cells = np.diff(norm.cdf(np.concatenate([[-np.inf], (side[1:] + side[:-1]) / 2, [np.inf]])))
    if len(delta) == 1:
        points, mass = side[:, None], cells
    else:
        points = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
        mass = np.outer(cells, cells).ravel()
    shift = delta.numpy()
    moved = np.exp(points @ shift - 0.5 * shift @ shift)
    fixed = np.vstack([np.ones(len(mass)), points.T])  # moments of the mass that votes for the class
    limits = np.stack([np.zeros_like(mass), mass], axis=1)
    answer = linprog(moved, A_eq=fixed, b_eq=np.concatenate([[p], slope.numpy()]), bounds=limits)
    assert answer.status == 0
    return float(answer.fun)


@pytest.mark.parametrize("p", [0.55, 0.8, 0.97])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_no_classifier_loses_its_votes_sooner(p: float, share: float) -> None:
    """A linear program over all answers: ½ at the radius, more before; R falls in g and rises in p."""
    g = torch.tensor(share * steepest(p)).double()
    radius = higher_order_radius(torch.tensor(p).double(), g)
    assert least(p, -g[None], radius[None]) == pytest.approx(0.5, abs=4e-3)
    assert least(p, -g[None], 0.97 * radius[None]) > 0.5
    assert norm.ppf(p) - 1e-12 <= float(radius) < float(higher_order_radius(torch.tensor(p), 0.9 * g))
    assert float(radius) < float(higher_order_radius(torch.tensor(p + 0.01).double(), g))


@pytest.mark.slow
@pytest.mark.parametrize(("q", "dual"), [(1, torch.inf), (2, 2), (torch.inf, 1)])
def test_no_direction_of_the_ball_is_worse(q: float, dual: float) -> None:
    """In the plane, all around the ball of each norm, for an inclined gradient."""
    slope = torch.tensor([-0.12, -0.07]).double()
    steep = torch.linalg.vector_norm(slope, dual) / (math.sqrt(2) if q == torch.inf else 1)
    radius = higher_order_radius(torch.tensor(0.8).double(), steep) / (math.sqrt(2) if q == torch.inf else 1)
    turn = torch.cat([torch.linspace(0, 2 * torch.pi, 9)[:-1], torch.tensor([0.528])]).double()
    around = torch.stack([turn.cos(), turn.sin()], dim=1)
    around = around / torch.linalg.vector_norm(around, q, dim=1, keepdim=True)
    values = [least(0.8, slope, radius * u) for u in around]
    assert min(values) > 0.5 - 4e-3
    assert min(least(0.8, slope, 1.1 * radius * u) for u in around[[0, 1, 2, 8]]) < 0.5


def test_the_radius_of_a_slab_is_the_distance_at_which_it_loses() -> None:
    """It is the worst classifier itself: found from below, and beyond what p alone could certify."""
    d, n = 3, 400_000
    w = torch.tensor([2.0, -1.0, 2.0]).double() / 3
    low, high = -2.0, 1.0
    p = norm.cdf(high) - norm.cdf(low)
    edge = torch.linspace(0, 3, 300_001)
    exact = float(edge[torch.as_tensor(norm.cdf(high - edge) - norm.cdf(low - edge)) >= 0.5][-1])
    x = torch.zeros(2, d).double()
    found = higher_order_smoothing(Slab(w, low, high), x, sigma=1.0, n=n, batch_size=50_000)
    assert norm.ppf(p) + 0.05 < float(found.radius.min()) and float(found.radius.max()) <= exact
    assert float(found.radius.min()) > 0.97 * exact
    along = torch.linalg.qr(torch.stack([w, x[0] + 1], dim=1))[0]
    inside = higher_order_smoothing(Slab(w, low, high), x, sigma=1.0, n=n, subspace=along, batch_size=50_000)
    assert 0.97 * exact < float(inside.radius.min()) and float(inside.radius.max()) <= exact
    flat = torch.linalg.qr(torch.stack([w, x[0] + 1, w.flip(0)], dim=1))[0][:, 2:]
    across = higher_order_smoothing(Slab(w, low, high), x, sigma=1.0, n=n, subspace=flat, batch_size=50_000)
    assert float(across.radius.min()) > 1.08 * exact  # no votes are lost there at all, and the bound sees no fall


def test_it_is_between_cohens_radius_and_the_distance_of_a_plane() -> None:
    model, _, x = plane()
    distance = torch.linspace(0.02, 0.6, 12, dtype=torch.float64)
    cohen = randomized_smoothing(model, x, sigma=0.3, n=4000, alpha=0.005)
    found = higher_order_smoothing(model, x, sigma=0.3, n=4000, alpha=0.01)
    assert torch.equal(found.counts, cohen.counts)
    assert bool((cohen.radius - 1e-12 <= found.radius).all()) and bool((found.radius <= distance).all())
    for q, length in (("l1", 1), ("linf", math.inf)):
        other = higher_order_smoothing(model, x, sigma=0.3, n=4000, alpha=0.01, norm=q)  # type: ignore[arg-type]
        w = model.weight[1].detach()  # type: ignore[union-attr]
        exact = distance / w.norm(p=math.inf if length == 1 else 1)  # type: ignore[operator]
        assert other.norm == q and bool((other.radius <= exact).all()) and int(other.verified.sum()) > 8
        assert bool((other.radius >= cohen.radius / (math.sqrt(3) if q == "linf" else 1) - 1e-12).all())


@pytest.mark.slow
@pytest.mark.parametrize(("q", "dual"), [("l1", torch.inf), ("l2", 2), ("linf", 1)])
def test_the_bound_of_the_gradient_holds_as_often_as_it_says(q: str, dual: float) -> None:
    """And not always by a mile: at a mean of 16 times as many draws it is within twice the truth."""
    generator = torch.Generator().manual_seed(0)
    repeats, d, alpha = 4000, 4, 0.1
    w = torch.tensor([0.8, -0.6, 0.0, 0.0]).double()
    true = w * (norm.pdf(-0.3) - norm.pdf(2.0))
    truth = float(torch.linalg.vector_norm(true, dual)) / (2 if q == "linf" else 1)
    for n, most in ((101, 20.0), (1616, 2.0)):
        sums = torch.zeros(2, repeats, d, dtype=torch.float64)
        for j in range(n):
            noise = torch.randn(repeats, d, generator=generator, dtype=torch.float64)
            at = noise @ w
            sums[j % 2] += noise * ((at > -0.3) & (at < 2.0))[:, None]
        bound, length = gradient_bound(sums, n, alpha, q)  # type: ignore[arg-type]
        assert length == (0.5 if q == "linf" else 1.0)
        assert int((bound < truth).sum()) <= binom.isf(1e-6, repeats, alpha)
        assert float(bound.median()) < most * truth


def test_the_proxy_variance_is_enough_and_hardly_more() -> None:
    """log E exp(t(X − μ)) ≤ 1.2·t²/2 for X = ε·1(answer), by quadrature over intervals and their complements."""
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64)
    mass = torch.exp(-z * z / 2) / math.sqrt(2 * torch.pi) * (z[1] - z[0])
    total = torch.cat([z[:1] * 0, (mass[1:] + mass[:-1]).cumsum(0) / 2])
    first = torch.cat([z[:1] * 0, ((mass * z)[1:] + (mass * z)[:-1]).cumsum(0) / 2])
    ends = torch.arange(0, len(z), 200)
    largest = 0.0
    for t in (0.1, 0.5, 1.0, 2.0, 3.2, 5.0, 8.0):
        weight = mass * torch.exp(t * z)
        tilted = torch.cat([z[:1] * 0, (weight[1:] + weight[:-1]).cumsum(0) / 2])
        kept, mean, moved = (part[ends][:, None] - part[ends] for part in (total, first, tilted))
        for sign in (1, -1):
            inside = torch.log1p(sign * (moved - kept) + (0 if sign > 0 else math.expm1(t * t / 2))) - sign * t * mean
            largest = max(largest, float(2 * inside.tril().amax() / t**2))
    assert 1.19 < largest < _PROXY


def test_bad_input() -> None:
    model, _, x = plane()
    for changes, message in (
        ({"norm": "l0"}, "^norm: want one of"), ({"subspace": torch.eye(3)[:, :1], "norm": "l1"}, "^norm: want 'l2'"),
        ({"subspace": torch.eye(4)}, r"^subspace: want columns of 3 numbers"),
        ({"subspace": 2 * torch.eye(3)}, "^subspace: want orthonormal"), ({"n0": 5, "n": 5}, "^n: want more draws"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            higher_order_smoothing(model, x, sigma=0.3, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^p, steepest: want probabilities"):
        higher_order_radius(torch.tensor(1.2), torch.tensor(0.1))
    assert higher_order_radius(torch.tensor([0.5, 0.3]), torch.tensor([0.0, 0.0])).tolist() == [0.0, 0.0]
    assert float(_density(torch.tensor(0.5))) == pytest.approx(1 / math.sqrt(2 * math.pi))
    empty = higher_order_smoothing(model, x[:0], sigma=0.3)
    assert len(empty) == 0
