"""Rays that are clipped to the box, the boundary's distance along them, and the line search, against closed forms."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from robustlab.attacker.live import Live
from robustlab.attacker.victim import Victim
from robustlab.attacks.hardlabel.boundary_search import Starts
from robustlab.attacks.hardlabel.ray_search import RaySearch, refine, rooms
from robustlab.geometry.norms import get_norm
from tests.suite.models import Affine, Counting

WIDE = (-100.0, 100.0)
N, D = 12, 5


def plane(d: int = D, seed: int = 0) -> tuple[Affine, Tensor]:
    """Class 1 where ⟨w, x⟩ > 0, and w of length 1."""
    w = torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w /= w.norm()
    return Affine(torch.stack([-w, w]), torch.zeros(2, dtype=torch.float64)), w


def unit(n: int, d: int = D, seed: int = 1) -> Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True)


@contextmanager
def search_from(x: Tensor, bounds: tuple[float, float] = WIDE, **victim: int) -> Iterator[tuple[RaySearch, Counting]]:
    seen = Counting(plane(x.shape[1])[0])
    with Victim(seen, bounds=bounds, access="hard", **victim).session(x, access="hard") as session:
        yield RaySearch(session, get_norm("l2"), seed=0), seen


def test_points_of_a_clipped_ray_are_named_by_their_own_distance() -> None:
    x = 0.1 + 0.8 * torch.rand(N, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theta = unit(N)
    with search_from(x, (0.0, 1.0)) as (search, _):
        room = rooms(search.session, x, theta)
        for length in (0.05, 0.4, 0.8, 50.0):
            points = torch.empty_like(x)
            search.on_ray(x, theta, room, torch.full((N,), length, dtype=torch.float64), out=points)
            assert float(points.min()) >= -1e-12 and float(points.max()) <= 1 + 1e-12
            end = room.norm(dim=1)
            torch.testing.assert_close((points - x).norm(dim=1), end.clamp_max(length))
            free = ((points - x).abs() < room - 1e-9) & (theta.abs() > 1e-9)
            s = torch.where(free, (points - x) / theta, -1.0).amax(dim=1, keepdim=True)  # how far the free ones went
            rays = torch.where(s > 0, (x + s * theta).clamp(0, 1), points)
            torch.testing.assert_close(points, rays)


@pytest.mark.parametrize("guess", [1e-3, 0.3, 1.0, 7.0])
def test_distance_is_the_closed_form_of_a_plane(guess: float) -> None:
    """g(θ) = −⟨w, x⟩/⟨w, θ⟩ where that is above 0, from below and from above; else none before the box's ends."""
    w, theta = plane()[1], unit(N)
    x = (-0.7 * w).expand(N, D).contiguous()
    with search_from(x) as (search, _):
        live, start = search.session.live(), torch.full((N,), guess, dtype=torch.float64)
        g, points = search.distance(live, theta, start, torch.full_like(start, 1e-6))
        asked = search.session.queries - 1
        nearer, _ = search.distance(live, theta, start, torch.full_like(start, 1e-6), only_nearer=True)
        more = search.session.queries - 1 - asked
    slope = theta @ w
    want = torch.where(slope > 0.01, 0.7 / slope, torch.inf)
    met = want.isfinite()
    assert 3 < int(met.sum()) < N
    assert bool((g[met] >= want[met]).all()) and bool((g[met] - want[met] <= 1e-6 * guess + 1e-9).all())
    assert bool((g[slope < 0] > 100).all())
    torch.testing.assert_close((points - x).norm(dim=1)[met], g[met])
    assert bool(((points @ w)[met] > 0).all()), "not on the adversarial side"
    assert int(asked.max()) <= 80, "the search has no end"
    assert torch.equal(nearer.isfinite(), want <= guess) and bool((more[want > guess] == 1).all())


def test_distance_on_bent_rays_is_that_of_a_fine_search() -> None:
    w = plane()[1]
    x = (0.5 - 0.25 * w.sign()).expand(25, D).contiguous() - 0.5
    theta = unit(25)
    with search_from(x, (-0.5, 0.5)) as (search, _):
        live, start = search.session.live(), torch.full((25,), 0.4, dtype=torch.float64)
        g, points = search.distance(live, theta, start, torch.full_like(start, 1e-6))
    s = torch.linspace(0, 60, 120_001, dtype=torch.float64)[:, None]
    bent = 0
    for i in range(25):
        ray = (x[i] + s * theta[i]).clamp(-0.5, 0.5)
        over = (ray @ w > 0).nonzero().flatten()
        if not bool(ray[-1] @ w > 0):  # the goal is met nowhere, or in a part that the search may step over
            continue
        first = ray[over[0]]
        bent += bool((first.abs() == 0.5).any())
        assert abs(float(g[i] - (first - x[i]).norm())) < 6e-4
        torch.testing.assert_close(points[i], first, rtol=0, atol=1e-3)
    assert bent >= 3


def test_directions_of_one_sample_share_its_budget() -> None:
    """Four directions each, and a budget that ends in the midst: what was found is kept, nothing is overdrawn."""
    w = plane()[1]
    x = (-0.7 * w).expand(3, D).contiguous()
    before = torch.full((12,), torch.inf, dtype=torch.float64)
    for budget in range(5, 90, 4):
        with search_from(x, budget=budget) as (search, seen):
            probes = search.session.of(torch.arange(3).repeat_interleave(4))
            guess = torch.full((12,), 2.0, dtype=torch.float64)
            g, _ = search.distance(probes, unit(12), guess, torch.full_like(guess, 1e-6))
            spent = search.session.queries.clone()
        assert int(spent.max()) <= budget - 2 and int(spent.sum()) == seen.forwards, "one is kept for each last query"
        assert bool((g <= before).all())
        before = g
    assert int(before.isfinite().sum()) >= 3


def test_line_search_is_that_of_exact_values() -> None:
    """α doubles after a step that helped alone; where the first does not help it is quartered until one does."""
    w = plane()[1]
    x = (-0.7 * w).expand(N, D).contiguous()
    theta = unit(N, seed=4)
    theta = torch.where((theta @ w > 0)[:, None], theta, -theta)

    def exact(direction: Tensor) -> Tensor:
        return 0.7 / (direction @ w)

    gradient = -(w - (theta @ w)[:, None] * theta)
    alpha = torch.logspace(-2, 4, N, dtype=torch.float64)
    with search_from(x) as (search, _):
        live: Live = search.session.live()
        live.theta, live.g, live.alpha = theta, exact(theta), alpha
        search.line_search(live, gradient, torch.full((N,), 1e-9, dtype=torch.float64))
    doubled = quartered = 0
    for i in range(N):
        a, best, turned = float(alpha[i]), float(exact(theta[i])), theta[i]
        start = best
        while True:
            trial = torch.nn.functional.normalize(theta[i] - a * gradient[i], dim=0)
            if not 0 < float(exact(trial)) < best * (1 - 1e-8):
                break
            best, turned, a, doubled = float(exact(trial)), trial, 2 * a, doubled + 1
        while best == start:
            a, quartered = a / 4, quartered + 1
            trial = torch.nn.functional.normalize(theta[i] - a * gradient[i], dim=0)
            if 0 < float(exact(trial)) < start * (1 - 1e-8):
                best, turned = float(exact(trial)), trial
        assert float(live.alpha[i]) == a
        torch.testing.assert_close(live.theta[i], turned)
        torch.testing.assert_close(float(live.g[i]), best, rtol=1e-7, atol=0)
    assert doubled >= 5 and quartered >= 3


def test_small_steps_are_refined_and_end() -> None:
    with search_from(torch.zeros(3, D, dtype=torch.float64) - 0.1) as (search, _):
        live = search.session.live()
        live.alpha = torch.tensor([0.5, 0.9e-4, 1e-9]).double()
        live.beta = torch.tensor([1e-3, 1e-3, 5e-8]).double()
        refine(live)
        assert live.rows.tolist() == [0, 1]
        torch.testing.assert_close(live.alpha, torch.tensor([0.5, 1.0]).double())
        torch.testing.assert_close(live.beta, torch.tensor([1e-3, 1e-4]).double())


def test_of_many_directions_the_nearest_is_aimed_at_and_the_worse_cost_one_query() -> None:
    """Starts from a pool on a plane, whose distances along their rays are known."""
    w = plane()[1]
    x = (-0.7 * w)[None]
    aims = unit(30, seed=6)
    aims = aims[(aims @ w) > 0.05]
    g = 0.7 / (aims @ w)
    pool = x + (1.5 * g)[:, None] * aims
    order = (pool - x).norm(dim=1).argsort()
    with search_from(x) as (search, seen):
        live = search.aim(Starts(None, (pool, torch.ones(len(pool), dtype=torch.int64)), len(pool)), 1e-6)
        torch.testing.assert_close(live.g[0], g.min(), rtol=1e-5, atol=0)
        torch.testing.assert_close(live.theta[0], aims[g.argmin()], rtol=0, atol=1e-9)
        improving = int((g[order].cummin(0).values[1:] < g[order].cummin(0).values[:-1]).sum()) + 1
        assert int(search.session.queries) <= 1 + (len(pool) - improving) + 45 * improving
        assert improving < len(pool) and seen.forwards == int(search.session.queries)


@pytest.mark.parametrize("budget", [None, 3, 9, 17, 30, 45, 61])
def test_all_ask_in_each_round_and_find_what_they_find_one_start_after_the_other(budget: int | None) -> None:
    """Held to a search in which all wait for the slowest at each start: outcome and queries equal, fewer rounds."""
    w, limit, tries = plane()[1], {} if budget is None else {"budget": budget}, 12
    x, starts = -torch.linspace(0.2, 1.5, N, dtype=torch.float64)[:, None] * w, Starts(None, None, tries, normal=True)
    with search_from(x, (-2.0, 2.0), **limit) as (search, seen), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no start may be found at the end of the budget
        live = search.aim(starts, 1e-6)
        found, queries, rounds = search.best.points, search.session.queries.clone(), seen.calls
    with search_from(x, (-2.0, 2.0), **limit) as (slow, waiting):
        turn = slow.session.live(noise=slow.session.noise(0))
        starts.prepare(slow.session, turn)
        for j in range(tries):
            turn.keep(slow.can_pay(turn))
            if not len(turn):
                break
            away = starts.point(slow.session, turn, torch.full_like(turn.rows, j)) - turn.x
            length = torch.minimum(slow.ball.length(away), slow.best.of(turn))
            slow.nearer(turn, slow.ball.steepest(away), length, torch.full_like(length, 1e-6))
        torch.testing.assert_close(found, slow.best.points, rtol=0, atol=1e-12)
        assert torch.equal(queries, slow.session.queries)
    assert rounds == int(queries.max()), "a round is wasted, or somebody waits"
    if budget is None:
        assert len(live) == N and 2 * rounds < waiting.calls
        torch.testing.assert_close(live.theta * live.g[:, None], found - x, rtol=0, atol=1e-12)
