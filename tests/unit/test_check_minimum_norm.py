"""The checks of minimum-norm attacks: each diagnosis is that of the mutant which causes it, and right answers pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.attacks import deepfool as of_the_library
from robustlab.teaching import check
from robustlab.teaching.check.minimum_norm import affine_case, bend_case, margins, optimum_distances
from robustlab.teaching.check.onto_sets import BALLS
from tests.every import every
from tests.planted import cause_of, run

WEIGHTS = 1 + torch.arange(32, dtype=torch.float64).reshape(2, 4, 4) / 8
MINE = check.ConvexSet(
    lambda d: (d * WEIGHTS.to(d)).flatten(1).norm(dim=1), lambda g: (g / WEIGHTS.to(g)).flatten(1).norm(dim=1)
)
STEEPEST = """
def steepest(g):
    return g / WEIGHTS ** 2 / (g / WEIGHTS).flatten(1).norm(dim=1).clamp_min(1e-30).reshape(-1, 1, 1, 1)


def column(v):
    return v.reshape(-1, 1, 1, 1)
"""
OPTIMUM = (
    STEEPEST
    + """
def optimum(weight, bias, x, y):
    z = x.flatten(1) @ weight.T + bias
    leads = z.gather(1, y[:, None]) - z
    slopes = (weight[None] - weight[y][:, None]).reshape(len(x), -1, *x.shape[1:])
    sizes = (slopes / WEIGHTS).flatten(2).norm(dim=2)
    far = (leads.clamp_min(0) / sizes).scatter(1, y[:, None], torch.inf)
    k = far.argmin(dim=1)
    n = torch.arange(len(x))
    return x + column(far[n, k]) * steepest(slopes[n, k])
"""
)
DEEPFOOL = (
    STEEPEST
    + """
def attack(model, x, y, steps, overshoot):
    delta = torch.zeros_like(x)
    for _ in range(steps):
        point = (x + (1 + overshoot) * delta).clamp(0, 1).requires_grad_()
        z = model(point)
        each = [torch.autograd.grad(z[:, k].sum(), point, retain_graph=True)[0] for k in range(z.shape[1])]
        grads = torch.stack(each, dim=1)
        n = torch.arange(len(x))
        going = z.argmax(dim=1) == y
        if not going.any():
            break
        slopes = grads - grads[n, y][:, None]
        sizes = (slopes / WEIGHTS).flatten(2).norm(dim=2)
        leads = (z.gather(1, y[:, None]) - z).detach()
        far = (leads.abs() / sizes).scatter(1, y[:, None], torch.inf)
        far = torch.where(far.isnan(), torch.inf, far)
        k = far.argmin(dim=1)
        step = column(far[n, k] + 1e-9) * steepest(slopes[n, k])
        delta = torch.where(column(going), delta + step, delta)
    return (x + (1 + overshoot) * delta).clamp(0, 1)
"""
)
BISECT = """
def search(model, x, y, direction, far):
    def at(t):
        return x + t.reshape(-1, 1, 1, 1) * direction
    def wrong(t):
        return model(at(t)).argmax(dim=1) != y
    low, high = torch.zeros_like(x[:, 0, 0, 0]), torch.full_like(x[:, 0, 0, 0], far)
    crosses = wrong(high) & ~wrong(low)
    for _ in range(20):
        middle = (low + high) / 2
        out = wrong(middle)
        low, high = torch.where(out, low, middle), torch.where(out, middle, high)
    return torch.where(crosses.reshape(-1, 1, 1, 1), at(high), x)
"""
BATCH = "batch-dependent: samples share something that each should have alone"
GRADIENT = "the direction that is steepest in ℓ2, not in your length"
RUNNER_UP = "the class with the second largest logit, not that behind the nearest boundary"

# cause → what to replace by what
OPTIMUM_MUTANTS = {
    "no check of the samples that are wrong at the start": ("leads.clamp_min(0)", "leads.abs()"),
    "sign lost: the step leads away from the boundary": ("return x +", "return x -"),
    "nothing moved, or δ was returned in place of x + δ": ("return x +", "return x + 0 *"),
    GRADIENT: (
        "column(far[n, k]) * steepest(slopes[n, k])",
        "slopes[n, k] * column((leads.clamp_min(0)[n, k]) / slopes[n, k].flatten(1).norm(dim=1) ** 2)",
    ),
    RUNNER_UP: ("k = far.argmin", "k = leads.scatter(1, y[:, None], torch.inf).argmin"),
    "the step ends before the boundary": ("column(far[n, k])", "0.5 * column(far[n, k])"),
    "x was changed in place": ("return x +", "x += 0\n    x *= 1.01\n    return x +"),
    "wrong shape": ("return x + column(far[n, k]) * steepest(slopes[n, k])", "return far.amin(dim=1)"),
    BATCH: ("column(far[n, k])", "column(far[n, k].mean().expand(len(x)))"),
}
DEEPFOOL_MUTANTS = {
    "sign lost: the step leads away from the boundary": ("delta + step", "delta - step"),
    GRADIENT: (
        "column(far[n, k] + 1e-9) * steepest(slopes[n, k])",
        "slopes[n, k] * column(leads[n, k] / slopes[n, k].flatten(1).norm(dim=1) ** 2)",
    ),
    RUNNER_UP: ("k = far.argmin", "k = leads.scatter(1, y[:, None], torch.inf).argmin"),
    "model.train() instead of model.eval()": ("    delta = torch.zeros", "    model.train()\n    delta = torch.zeros"),
    "no clamp to [0, 1]": (".clamp(0, 1)", ""),
    "no overshoot": ("overshoot) * delta", "0 * overshoot) * delta"),
    "the model is linearized once only": ("range(steps)", "range(1)"),
    "the step goes beyond the boundary by more than the overshoot": ("1 + overshoot", "1.1 + overshoot"),
    BATCH: ("torch.where(column(going), delta + step, delta)", "delta + step"),
}
BISECT_MUTANTS = {
    "the safe side of the interval was returned": ("at(high), x", "at(low), x"),
    "no care for the samples without a crossing": (
        "return torch.where(crosses.reshape(-1, 1, 1, 1), at(high), x)",
        "return at(high)",
    ),
    "the interval is still long, or the wrong half is kept": ("range(20)", "range(4)"),
    BATCH: ("        out = wrong(middle)", "        out = wrong(middle).all().expand(len(x))"),
    "off the line": ("at(high), x", "at(high) + 0.01, x"),
}


def function(source: str, name: str, *replaced: tuple[str, str]) -> Callable[..., Any]:
    found: Callable[..., Any] = run(source, *replaced, WEIGHTS=WEIGHTS)[name]
    return found


def test_right_answers_pass() -> None:
    for seed in range(0, 40, 10):
        check.affine_optimum(function(OPTIMUM, "optimum"), MINE, seed=seed)
        check.deepfool(function(DEEPFOOL, "attack"), MINE, seed=seed)
        check.bisection(function(BISECT, "search"), seed=seed)


def test_the_librarys_deepfool_passes() -> None:
    for norm in ("l2", "linf"):

        def attack(model: Any, x: Tensor, y: Tensor, steps: int, overshoot: float, norm: Any = norm) -> Tensor:
            return of_the_library(model, x, y, norm=norm, steps=steps, overshoot=overshoot).x_adv

        check.deepfool(attack, norm)  # type: ignore[arg-type]


@every("name", OPTIMUM_MUTANTS)
def test_each_mutant_of_the_optimum_is_named(name: str) -> None:
    for seed in (0, 10):
        assert (
            cause_of(check.affine_optimum, function(OPTIMUM, "optimum", OPTIMUM_MUTANTS[name]), MINE, seed=seed) == name
        )


@pytest.mark.slow
@every("name", DEEPFOOL_MUTANTS)
def test_each_mutant_of_deepfool_is_named(name: str) -> None:
    for seed in (0, 10):
        assert cause_of(check.deepfool, function(DEEPFOOL, "attack", DEEPFOOL_MUTANTS[name]), MINE, seed=seed) == name


@every("name", BISECT_MUTANTS)
def test_each_mutant_of_the_bisection_is_named(name: str) -> None:
    for seed in (0, 10):
        assert cause_of(check.bisection, function(BISECT, "search", BISECT_MUTANTS[name]), seed=seed) == name


def test_no_point_of_many_directions_is_nearer_than_the_optimum() -> None:
    """Against a search: steps along random directions and along all differences of weights, as long as the optimum."""
    model, x, y = affine_case((3,), 4, seed=0)
    for ball in BALLS.values():
        best = optimum_distances(model, x, y, ball).amin(dim=1)
        v = torch.randn(4000, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        v = torch.cat([v, v.sign(), torch.eye(3, dtype=v.dtype)[:, None], -torch.eye(3, dtype=v.dtype)[:, None]])
        v = v / ball.length(v[:, 0]).reshape(-1, 1, 1)
        for share, most in ((0.999, 0.0), (1.05, None)):
            points = x + share * best.reshape(-1, 1) * v
            met = (margins(model, points.flatten(0, 1), y.repeat(len(v))) < 0).reshape(len(v), -1).any(dim=0)
            assert bool((met == (most is None) if most is None else ~met)[best > 0].all())


def test_the_bend_takes_one_class_more_than_one_step() -> None:
    model, x, y = bend_case((2, 4, 4), seed=0)
    steps = [of_the_library(model, x, y, steps=n, overshoot=0.02).success for n in (1, 3)]
    assert bool((steps[0] == (y == 1)).all()) and bool(steps[1].all())
