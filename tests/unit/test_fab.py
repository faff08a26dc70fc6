"""FAB beyond the shared suite: its projection against a convex solver, its step, its restarts, its final search."""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.live import closest
from robustlab.attacker.victim import Victim
from robustlab.attacks import deepfool, fab
from robustlab.attacks.whitebox.hyperplane import to_hyperplane
from robustlab.attacks.whitebox.minimum_norm import pull
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp
from tests.suite.oracles import ORDER, affine_problem, free_optimum

CPU = torch.device("cpu")
WIDE = (-50.0, 50.0)
NORMS = ["l1", "l2", "linf"]


class Recording(nn.Module):
    """Keeps every batch that it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.points = model, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.points.append(x.detach().clone())
        return self.model(x)


def solve(point: Tensor, slope: Tensor, gap: float, norm: str) -> Tensor:
    """The problem as a convex program, in the box [0, 1]."""
    v = cp.Variable(len(point))
    inside = [point.numpy() + v >= 0, point.numpy() + v <= 1, slope.numpy() @ v == gap]
    size = cp.sum_squares(v) if norm == "l2" else cp.norm(v, ORDER[norm])
    problem = cp.Problem(cp.Minimize(size), inside)
    problem.solve(solver=cp.CLARABEL)
    assert problem.status == "optimal"
    return torch.tensor(v.value)


def projections(n: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points with a quarter of the elements at the bounds, slopes, gaps from tiny to nearly out of reach, the reach."""
    points = noise_box(n, (d,), torch.float64)
    generator = torch.Generator().manual_seed(1)
    slope = torch.randn(n, d, generator=generator, dtype=torch.float64)
    slope[:, 0] = 0
    sign = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).to(torch.float64)
    help_ = slope * sign[:, None]
    reach = (torch.where(help_ > 0, 1 - points, points) * help_.abs()).sum(1)
    share = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64).repeat(n // 5 + 1)[:n]
    return points, slope, sign * share * reach, sign * reach


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_the_solvers(norm: str) -> None:
    """On the hyperplane, in the box, and as short as a convex solver's answer, row by row."""
    points, slope, gap, _ = projections(20, 7)
    v = to_hyperplane(get_norm(norm), points, slope, gap, 0.0, 1.0)
    torch.testing.assert_close((v * slope).sum(1), gap, rtol=1e-10, atol=1e-12)
    assert bool(((points + v >= -1e-12) & (points + v <= 1 + 1e-12)).all())
    for i in range(len(points)):
        best = solve(points[i], slope[i], float(gap[i]), norm)
        length = get_norm(norm).length(torch.stack([v[i], best]))
        assert float(length[0]) == pytest.approx(float(length[1]), rel=1e-5, abs=1e-8)
        if norm == "l2":  # the only one whose answer is unique
            torch.testing.assert_close(v[i], best, rtol=0, atol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_far_from_the_box_is_the_formula(norm: str) -> None:
    """v = gap / ‖w‖_q · (steepest unit step)."""
    points, slope, gap, _ = projections(12, 5)
    ball = get_norm(norm)
    v = to_hyperplane(ball, points, slope, gap, -100.0, 100.0)
    torch.testing.assert_close(v, (gap / ball.dual.length(slope))[:, None] * ball.steepest(slope))


@pytest.mark.parametrize("norm", NORMS)
def test_projection_out_of_reach_is_the_corner(norm: str) -> None:
    points, slope, _, reach = projections(12, 5)
    v = to_hyperplane(get_norm(norm), points, slope, 2 * reach, 0.0, 1.0)
    help_ = slope * reach.sign()[:, None]
    corner = torch.where(help_ > 0, 1 - points, torch.where(help_ < 0, -points, 0.0))
    torch.testing.assert_close(v, corner)


def test_slopes_that_are_rounding_cost_no_l1() -> None:
    """Out of reach of the hyperplane, an element moves only where that brings it nearer by more than rounding."""
    points, slope = torch.full((1, 3), 0.25), torch.tensor([[2.0, -1e-9, 1e-3]])
    v = to_hyperplane(get_norm("l1"), points, slope, torch.tensor([10.0]), 0.0, 1.0)
    torch.testing.assert_close(v, torch.tensor([[0.75, 0.0, 0.75]]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_projection_of_extreme_slopes(norm: str, scale: float) -> None:
    """The scale of w and g plays no part; a slope of zeros gives zeros."""
    points, slope, gap, _ = projections(12, 5)
    plain = to_hyperplane(get_norm(norm), points, slope, gap, 0.0, 1.0)
    torch.testing.assert_close(to_hyperplane(get_norm(norm), points, slope * scale, gap * scale, 0.0, 1.0), plain)
    nothing = to_hyperplane(get_norm(norm), points, slope * 0, gap * scale, 0.0, 1.0)
    assert bool((nothing == 0).all())


@pytest.mark.parametrize("norm", NORMS)
def test_projection_of_two_points_at_once(norm: str) -> None:
    points, slope, gap, _ = projections(6, 5)
    both = to_hyperplane(get_norm(norm), torch.stack([points, 1 - points]), slope, torch.stack([gap, -gap]), 0.0, 1.0)
    torch.testing.assert_close(both[0], to_hyperplane(get_norm(norm), points, slope, gap, 0.0, 1.0))
    torch.testing.assert_close(both[1], to_hyperplane(get_norm(norm), 1 - points, slope, -gap, 0.0, 1.0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("beta", [0.9, 0.5])  # α is below its limit with the one, and at it with the other
def test_steps_are_those_of_the_algorithm(norm: str, beta: float) -> None:
    """Two classes, wide box. First x + η·v, since both projections are the same; then from β of the way, with α."""
    model, x, y = affine_problem(2, 10, 5, CPU, spread=1.0)
    seen = Recording(model)
    fab(Victim(seen, bounds=WIDE), x, y, norm=norm, steps=2, alpha_max=0.1, eta=1.05, beta=beta)
    asked = seen.points[2:5:2]  # clean, then two forwards per step: for the gradient, and of the new point
    assert torch.equal(seen.points[1], x)
    ball = get_norm(norm)
    with torch.no_grad():
        z = model(x)
        w = model.weight[1 - y] - model.weight[y]

        def move(point: Tensor) -> Tensor:
            z_there = model(point)
            spare = 1.01e-4 * torch.maximum(model(here).abs().amax(1), z.abs().amax(1))
            gap = (z_there.gather(1, y[:, None]) - z_there.gather(1, 1 - y[:, None])).squeeze(1) + spare
            return (gap / ball.dual.length(w))[:, None] * ball.steepest(w)

        here = x
        first = x + 1.05 * move(x)
        torch.testing.assert_close(asked[0], first, rtol=1e-9, atol=1e-12)
        here = x + beta * (first - x)
        torch.testing.assert_close(seen.points[3], here, rtol=1e-9, atol=1e-12)
        back, whole = move(here), move(x)
        alpha = (ball.length(back) / (ball.length(back) + ball.length(whole))).clamp_max(0.1)[:, None]
        second = (1 - alpha) * (here + 1.05 * back) + alpha * (x + 1.05 * whole)
        torch.testing.assert_close(asked[1], second, rtol=1e-9, atol=1e-12)
    assert z.shape == (10, 2)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [None, 0.02])
def test_restarts_begin_near_x(norm: str, eps: float | None) -> None:
    """At most half of the best distance so far, and of ε, away; not at x; and more restarts never end farther away."""
    model, x = mlp((6,), 4), noise_box(8, (6,), torch.float64) * 0.6 + 0.2
    y = model(x).argmax(1)
    seen, ball = Recording(model), get_norm(norm)
    one = fab(model, x, y, norm=norm, steps=4)
    two = fab(seen, x, y, norm=norm, steps=4, restarts=2, eps=eps)
    start = seen.points[1 + 2 * 4]
    length = ball.length(start - x)
    # The final search comes after all restarts, so the best distance so far is that of a run without it, or more.
    tried = torch.stack([ball.length(p - x) for p in seen.points[2:9:2]])
    won = torch.stack([model(p).argmax(1) != y for p in seen.points[2:9:2]])
    limit = torch.where(won, tried, torch.inf).amin(0)
    if eps is not None:
        limit = limit.clamp_max(eps)
    assert bool((length <= limit / 2 * (1 + 1e-9)).all()) and bool((length > 0).all())
    assert bool((two.radius(norm) <= one.radius(norm) * 1.001).all())


def test_toward_leaves_y_by_one_boundary() -> None:
    """One gradient per iteration; the best over all classes is at least as good as DeepFool's; errors name the rows."""
    model, x = mlp((6,), 4), noise_box(8, (6,), torch.float64) * 0.6 + 0.2
    y = model(x).argmax(1)
    best = torch.full((8,), torch.inf, dtype=torch.float64)
    for step in (1, 2, 3):
        result = fab(model, x, y, norm="l2", steps=10, toward=(y + step) % 4)
        assert bool((result.gradients == 10).all())
        best = torch.minimum(best, result.radius("l2"))
    assert bool((best <= deepfool(model, x, y).radius("l2") * 1.001).all())
    with pytest.raises(ValueError, match=r"toward: want a label other than y, got toward = y in rows \[2\]"):
        fab(model, x, y, toward=(y + (torch.arange(8) != 2)) % 4)
    with pytest.raises(ValueError, match="toward: want None beside a target"):
        fab(model, x, y, toward=1, target=(y + 1) % 4)
    with pytest.raises(ValueError, match="toward: want labels in 0 … 3"):
        fab(model, x, y, toward=4)


@pytest.mark.parametrize("norm", NORMS)
def test_every_class_is_considered(norm: str) -> None:
    """One step and the final search solve an affine problem, whose nearest class is often not the second largest."""
    model, x, y = affine_problem(6, 30, 5, CPU, spread=1.0)
    result = fab(Victim(model, bounds=WIDE), x, y, norm=norm, steps=1)
    ratio = result.radius(norm) / free_optimum(model, x, y, norm)
    assert float(ratio.median()) < 1.001 and bool((ratio > 1 - 1e-9).all())
    few = fab(Victim(model, bounds=WIDE), x, y, norm=norm, steps=1, candidates=2)
    assert bool((few.gradients == 1).all() and (result.gradients == 5).all())
    assert float((few.radius(norm) / result.radius(norm)).max()) > 1.05


class Curved(nn.Module):
    """Two classes that tie where Σ x_i³ = 1."""

    def forward(self, x: Tensor) -> Tensor:
        rise = 20 * (x.pow(3).sum(dim=1) - 1)
        return torch.stack([torch.zeros_like(rise), rise], dim=1)


def test_final_search_finds_the_boundary() -> None:
    """From x = (a, 0, 0) towards (1, 1, 1)·b the tie is where the cubes add up to 1: by the closed form."""
    x = torch.zeros(4, 3, dtype=torch.float64)
    far = torch.tensor([1.0, 0.9, 0.8, 0.75], dtype=torch.float64)[:, None].expand(4, 3).contiguous()
    with Victim(Curved()).session(x) as session:
        best = closest(session)
        best.keep(session.live(), far, get_norm("l2").length(far))
        pull(session, best, get_norm("l2"), 30)
        with torch.no_grad():
            rise = Curved()(best.points)[:, 1]
        # Where the tie is met with a spare of 1e-4 of 20, the logit at x.
        expected = ((1 + 1.01e-4 * 20 / 20) / 3) ** (1 / 3)
        assert bool((rise >= 20e-4).all())
        torch.testing.assert_close(best.points, torch.full_like(x, expected), rtol=1e-4, atol=0)
        assert bool((session.queries == 1 + 1 + 30).all())


@pytest.mark.parametrize(
    "wrong", [{"alpha_max": 1.5}, {"eta": 0.5}, {"beta": 0.0}, {"beta": 1.1}, {"candidates": 1}, {"eps": -1.0}]
)
def test_wrong_arguments(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: want"):
        fab(Affine(torch.eye(2), torch.zeros(2)), torch.rand(2, 2), **wrong)
