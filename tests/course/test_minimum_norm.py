"""What the judge of ``03_minimum_norm`` goes by, held against the networks themselves."""

from __future__ import annotations

import pytest
import torch

from assignments.grading.task import VARIANTS, load
from robustlab.teaching import handout
from tests.course.test_assignments import KEY

pytestmark = pytest.mark.slow


def test_nobody_gets_the_length_that_is_worked_out() -> None:
    assignment = load("03_minimum_norm")
    kinds = [assignment.draw(KEY, f"{number:02}")["kind"] for number in range(VARIANTS)]
    assert set(kinds) == {"values", "pixels"}
    assert assignment.variant(KEY, handout.INSTRUCTOR)["kind"] == "ellipsoid"


def test_the_dual_is_the_largest_product_with_a_direction_of_length_one() -> None:
    """Its gradient is such a direction, since a support function's gradient is the point that reaches it."""
    tasks, g = load("03_minimum_norm").tasks, torch.randn(20, 3, 4, 4, dtype=torch.float64)
    for kind, shape in (("ellipsoid", (3, 4, 4)), ("values", (3, 4, 4)), ("pixels", (1, 4, 4))):
        ball = tasks.a_length(kind, 1 + torch.rand(shape))
        point = g.clone().requires_grad_()
        (v,) = torch.autograd.grad(ball.dual(point).sum(), point)
        assert torch.allclose(ball.length(v), torch.ones(20, dtype=torch.float64))
        assert torch.allclose((g * v).flatten(1).sum(dim=1), ball.dual(g))
        others = torch.randn(500, 3, 4, 4, dtype=torch.float64)
        others = others / ball.length(others).reshape(-1, 1, 1, 1)
        assert bool(((others.flatten(1) @ g.flatten(1).T).amax(dim=0) <= ball.dual(g)).all())


def test_the_maze_is_the_maximum_of_its_faces_and_hides_the_nearest() -> None:
    """At the distances that the judge knows, the best direction of a face crosses, and none does before."""
    assignment = load("03_minimum_norm")
    for number in range(4):
        mine, tasks = assignment.draw(KEY, f"{number:02}"), assignment.tasks
        ball, maze, x = tasks.a_length(mine["kind"], mine["weights"]), mine["maze"].double(), mine["maze_x"].double()
        assert len(x) >= 40
        exact = tasks.maze_distances(maze, x, ball)
        far = torch.randn(3000, 48, dtype=torch.float64).reshape(-1, 3, 4, 4).requires_grad_()
        z = maze(far)
        (slopes,) = torch.autograd.grad((z[:, 1] - z[:, 0]).sum(), far)
        slopes = torch.unique((slopes * 1e4).round(), dim=0) / 1e4
        assert len(slopes) == tasks.FACES
        at = slopes.clone().requires_grad_()
        (best,) = torch.autograd.grad(ball.dual(at).sum(), at)
        for share, crossed in ((0.999, False), (1.001, True)):
            points = x[:, None] + share * exact.reshape(-1, 1, 1, 1, 1) * best[None]
            met = (maze(points.flatten(0, 1)).argmax(dim=1) == 1).reshape(len(x), -1).any(dim=1)
            assert bool((met == crossed).all())
        here = x.clone().requires_grad_()
        z = maze(here)
        (slope,) = torch.autograd.grad((z[:, 1] - z[:, 0]).sum(), here)
        seen = (z[:, 0] - z[:, 1]).detach() / ball.dual(slope)
        assert float((seen > 1.5 * exact).double().mean()) > 0.5


@pytest.mark.parametrize("cells", [1000, 3000])
def test_a_scan_in_even_steps_is_as_right_as_a_bisection(cells: int) -> None:
    """No crossing is where such a scan stops: there the order of sums would decide."""
    tasks = load("03_minimum_norm").tasks
    for seed in range(5):
        across = tasks._bisect(seed)[0]
        model, x, y, direction, far = across.arguments
        crossing = tasks.crossing_case(tasks.SHAPE, seed=seed)[4]
        t = far * torch.arange(cells + 1, dtype=x.dtype) / cells
        assert (t - crossing[1:3, None]).abs().min() > 1e-6 * far, "the two that are near the ends"
        wrong = torch.stack([model(x + step * direction).argmax(dim=1) != y for step in t], dim=1)
        first = wrong.double().argmax(dim=1)
        moved = (wrong.any(dim=1) & ~wrong[:, 0]).reshape(-1, 1, 1, 1)
        across.judge(torch.where(moved, x + t[first].reshape(-1, 1, 1, 1) * direction, x))
