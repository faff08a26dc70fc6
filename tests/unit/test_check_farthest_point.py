"""The check of the farthest point of sphere and slab: right ones pass, each slip is named, the bound is a solver's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import optimize

from robustlab.defenses.certified.feasible import Feasible
from robustlab.teaching import check
from robustlab.teaching.check.farthest_point import DIMENSIONS, Walk, largest, walks
from tests.every import every
from tests.planted import cause_of, run

FARTHEST = """
def farthest(v, mu, e, R, S):
    along = v @ e
    across = v - along * e
    first = (R * along / v.norm()).clamp(-S, S)
    rest = (R ** 2 - first ** 2).clamp_min(0).sqrt()
    length = across.norm()
    if length <= 1e-12 * v.norm():
        return mu + first * e
    return mu + first * e + rest * across / length
"""
END = "return mu + first * e + rest * across / length"
PARALLEL = "    if length <= 1e-12 * v.norm():\n        return mu + first * e\n"
RANDOM = """    if length <= 1e-12 * v.norm():
        across = torch.randn_like(v)
        across = across - (across @ e) * e
        length = across.norm()
"""
ALWAYS = """        across = torch.eye(len(v)).double()[e.abs().argmin()]
        across = across - (across @ e) * e
        length = across.norm()
"""
SLIPS = [
    ("the step alone, without the mean", END, "return first * e + rest * across / length"),
    ("the nearest point, not the farthest", "along = v @ e", "v = -v\n    along = v @ e"),
    ("the slab is forgotten", ".clamp(-S, S)", ""),
    ("what the wall saves is not spent across", "rest * across / length", "R * across / v.norm()"),
    ("R is spent twice", "rest * across", "R * across"),
    ("lengths are added, not their squares", "(R ** 2 - first ** 2).clamp_min(0).sqrt()", "R - first.abs()"),
    ("nothing is walked across", " + rest * across / length", ""),
    ("the direction across has not length 1", "rest * across / length", "rest * across"),
    ("v still has its part along e", "rest * across / length", "rest * v / v.norm()"),
    ("one always walks to a wall", "(R * along / v.norm()).clamp(-S, S)", "along.sign() * S.minimum(R)"),
    ("v has not length 1", "R * along / v.norm()", "R * along"),
    ("the walk along e is not R times the cosine", "R * along / v.norm()", "along"),
    ("one wall of the slab is forgotten", ".clamp(-S, S)", ".clamp(max=S)"),
    ("one wall of the slab is forgotten", ".clamp(-S, S)", ".clamp(min=-S)"),
    ("0/0 where v is parallel to e", PARALLEL, ""),
    ("rounding is taken for a direction where v is parallel to e", "1e-12 * v.norm()", "0"),
    ("the root of a number that rounding made negative", ".clamp_min(0)", ""),
    ("the direction across is random where v is parallel to e", PARALLEL, RANDOM),
    ("v was changed in place", "across = v - along * e", "v -= along * e\n    across = v"),
    ("wrong shape", END, END + ", along"),
    ("wrong shape", END, "return " + END[7:].replace("mu", "mu[None]")),
    ("the walk across is too long", "rest * across", "(rest + 0.1) * across"),
    ("the walk along e is too long", ".clamp(-S, S)", ".clamp(-S - 0.1, S + 0.1)"),
    ("not the farthest point", "rest * across", "0.9 * rest * across"),
]  # fmt: skip
HONEST = [
    (),
    (("rest * across / length", "across * (rest / length)"),),
    (("along = v @ e", "v = v / v.norm()\n    along = v @ e"),),
    (("        return mu + first * e\n", ALWAYS),),  # another of the many where v is parallel to e, always the same
    # By the multiplier of the slab: the farthest point along v − te, where t is 0 or puts it on a wall.
    ((FARTHEST, """
def farthest(v, mu, e, R, S):
    along = v @ e
    side = (v - along * e).norm()
    t = along * 0
    if R > S and (R * along).abs() > S * v.norm():
        t = along - along.sign() * S * side / (R ** 2 - S ** 2).sqrt()
    w = v - t * e
    if w.norm() <= 1e-12 * v.norm():
        return mu + S.minimum(R) * along.sign() * e
    return mu + R * w / w.norm()
"""),),
]  # fmt: skip


def farthest(*replaced: tuple[str, str]) -> Any:
    return run(FARTHEST, *replaced)["farthest"]


@every("seed", [0, 1, 7, 30])
def test_a_right_farthest_point_passes(seed: int) -> None:
    check.farthest_point(farthest(), seed=seed)


@every("replaced", HONEST)
def test_other_ways_to_the_same_point_pass(replaced: tuple[tuple[str, str], ...]) -> None:
    check.farthest_point(farthest(*replaced))


def test_the_library_passes() -> None:
    def library(v: torch.Tensor, mu: torch.Tensor, e: torch.Tensor, R: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
        both = Feasible(torch.stack([mu, mu]), e, R.expand(2), S.expand(2))
        return both.farthest(torch.stack([v, -v]))[0][0]

    check.farthest_point(library)


@every("slip", SLIPS, label=lambda slip: slip[0])
def test_each_slip_of_a_farthest_point_is_named(slip: tuple[str, str, str]) -> None:
    cause, old, new = slip
    for seed in (0, 5, 11):
        assert cause_of(check.farthest_point, farthest((old, new)), seed=seed) == cause


def by_solver(walk: Walk) -> float:
    """max ⟨v, z⟩ over sphere and slab, by sequential quadratic programs from several starts."""
    v, _, e, R, S = (part.numpy() for part in walk)
    limits = [
        {"type": "ineq", "fun": lambda z: R**2 - z @ z, "jac": lambda z: -2 * z},
        {"type": "ineq", "fun": lambda z: S - z @ e, "jac": lambda z: -e},
        {"type": "ineq", "fun": lambda z: S + z @ e, "jac": lambda z: e},
    ]
    start = 0.1 * v / (v @ v) ** 0.5
    found = optimize.minimize(lambda z: -v @ z, start, jac=lambda z: -v, constraints=limits, method="SLSQP",
                              options={"ftol": 1e-12, "maxiter": 500})  # fmt: skip
    return -float(found.fun)


def test_the_bound_is_what_a_solver_finds_and_no_point_passes_it() -> None:
    generator = torch.Generator().manual_seed(0)
    for d in DIMENSIONS:
        for walk in walks(d, 3):
            most = largest(walk)
            assert by_solver(walk) == pytest.approx(most, rel=1e-6)
            z = torch.randn(5000, d, generator=generator, dtype=torch.float64)
            z = walk.R * z / z.norm(dim=1, keepdim=True)
            inside = z[(z @ walk.e).abs() <= walk.S]
            assert float((inside @ walk.v).max()) <= most
