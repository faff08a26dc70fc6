"""What the judge of ``02_pgd`` goes by, held against the networks themselves."""

from __future__ import annotations

import math

import pytest
import torch

from assignments.grading.task import VARIANTS, load
from robustlab.teaching import handout
from tests.course.test_assignments import KEY

pytestmark = pytest.mark.slow


def test_nobody_gets_the_set_that_is_worked_out() -> None:
    assignment = load("02_pgd")
    kinds = [assignment.draw(KEY, f"{number:02}")["kind"] for number in range(VARIANTS)]
    assert set(kinds) == {"costs", "pixels"}
    assert assignment.variant(KEY, handout.INSTRUCTOR)["kind"] == "ellipsoid"


def test_the_smallest_radii_are_where_the_decision_changes() -> None:
    """Against the network itself, at the best point of each set, which a vertex or the dual's maximizer is."""
    assignment = load("02_pgd")
    for number in range(4):
        mine = assignment.draw(KEY, f"{number:02}")
        tasks, model, x, y = assignment.tasks, mine["model"].double(), mine["x"].double(), mine["y"]
        radii = tasks.smallest_radii(model, x, y, tasks.a_set(mine["kind"], mine["weights"]))
        for share, fooled in ((0.999, False), (1.001, True)):
            met = torch.zeros(len(x), dtype=torch.bool)
            for k in range(5):
                slope = (model[1].weight[k] - model[1].weight[y]).detach().reshape(x.shape)
                best = best_point(mine["kind"], mine["weights"].double(), slope)
                point = x + share * radii.reshape(-1, 1, 1, 1) * best
                met |= model(point).argmax(dim=1) != y
            right = (met == fooled) | (radii == 0)
            assert bool(right.all())


def best_point(kind: str, weights: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """argmax ⟨slope, v⟩ over the set of radius 1: all of it on the one value, or pixel, with the best price."""
    size = slope if kind == "costs" else torch.linalg.vector_norm(slope, dim=1, keepdim=True)
    where = (size.abs() / weights).flatten(1).argmax(dim=1)
    chosen = torch.nn.functional.one_hot(where, size[0].numel()).reshape(size.shape)
    return (chosen * slope / size.abs() / weights).nan_to_num()  # a class has no slope towards itself


def test_the_loop_that_is_asked_for_reaches_what_its_judge_wants() -> None:
    """Under any key and for any student: else who does as told loses points by a draw."""
    tasks = load("02_pgd").tasks
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        kind = tasks.FOR_STUDENTS[seed % 2]
        ball = tasks.a_set(kind, 1 + torch.rand((1, 4, 4) if kind == "pixels" else tasks.SHAPE, generator=generator))
        optimum, box = tasks._in_the_set(seed, ball)
        model, x, _, eps, steps, step_size = optimum.arguments
        slope = (model[1].weight[0] - model[1].weight[1]).detach().double().reshape(1, *x.shape[1:])
        # A convex bound for steps along the unit slope: short by at most |δ*|² / 2αk, and no weight is below one.
        best = eps * float(ball.dual(slope / slope.norm()))
        assert eps**2 / (2 * step_size * steps) <= 0.02 * best, seed
        # In single precision the cross-entropy is in steps of 6e-8: no corner of the box may be far on either side.
        for net in (model, box.arguments[0]):
            slope = (net[1].weight[0] - net[1].weight[1]).detach()
            furthest = max(float(slope.clamp(min=0).sum()), float(-slope.clamp(max=0).sum()))
            assert math.exp(-furthest) > 1e-5, seed
