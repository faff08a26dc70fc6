"""The check of the projection onto a budget: right makes pass, each slip gets its cause, a solver agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import optimize

from robustlab.attacks.discrete.edges import onto_budget
from robustlab.teaching import check
from robustlab.teaching.check.onto_budget import _slips, budget_cases, lacking, solved
from tests.every import every
from tests.planted import cause_of, run

PROJECT = """
def project(a, b):
    if a.clamp(0, 1).sum() <= b:
        return a.clamp(0, 1)
    low, high = 0.0, float(a.max())
    for _ in range(60):
        mu = (low + high) / 2
        if (a - mu).clamp(0, 1).sum() > b:
            low = mu
        else:
            high = mu
    return (a - high).clamp(0, 1)
"""
FIRST, NO_TEST = "    if a.clamp(0, 1).sum() <= b:\n        return a.clamp(0, 1)\n", ""
PLANTED = [
    ("no projection onto the budget", "    low, high", "    return a.clamp(0, 1)\n    low, high"),
    ("the sum is always b", FIRST + "    low, high = 0.0,", "    low, high = -float(a.abs().max()) - 1,"),
    ("scaled, not shifted", "    low, high", "    return a.clamp(0, 1) * b / a.clamp(0, 1).sum()\n    low, high"),
    ("clipped before the shift", "    low, high", "    a = a.clamp(0, 1)\n    low, high"),
    ("no entry is held at 1", PROJECT, PROJECT.replace("clamp(0, 1)", "clamp_min(0)")),
    ("entries are held at 1 only after the search for μ", "(a - mu).clamp(0, 1)", "(a - mu).clamp_min(0)"),
    ("rounded to the largest entries", "    low, high",
     "    return a.clamp(0, 1).index_fill(0, a.argsort()[: len(a) - int(b)], 0)\n    low, high"),
    ("what is too much is taken off once", "    low, high",
     "    s = a.clamp(0, 1)\n    return (s - (s.sum() - b) / len(a)).clamp(0, 1)\n    low, high"),
    ("the box is forgotten in the search for μ", PROJECT,
     "def project(a, b):\n    return (a - max(0, a.sum() - b) / len(a)).clamp(0, 1)\n"),
    ("the sum exceeds the budget", PROJECT, PROJECT.replace("range(60)", "range(6)").replace("a - high", "a - low")),
    ("the sum exceeds the budget", "float(a.max())", "1.0"),
    ("a point of the set, not the nearest", "range(60)", "range(6)"),
    ("a point of the set, not the nearest", "low, high = 0.0,", "low, high = 0.4,"),
    ("the result leaves [0, 1]", "return (a - high).clamp(0, 1)", "return (a - high).clamp(max=1)"),
    ("wrong shape", "return (a - high).clamp(0, 1)", "return (a - high).clamp(0, 1)[None]"),
    ("a was changed in place", "    low, high", "    a -= 0.1\n    low, high"),
    ("dtype changed", "return (a - high).clamp(0, 1)", "return (a - high).clamp(0, 1).double()"),
    ("a division by zero", "    low, high", "    a = a * (a.new_tensor(b) / b)\n    low, high"),
]  # fmt: skip


def project(*replaced: tuple[str, str]) -> Any:
    return run(PROJECT, *replaced)["project"]


@every("seed", [0, 1, 2, 30])
def test_a_right_projection_passes(seed: int) -> None:
    check.onto_budget(project(), seed=seed)
    check.onto_budget(project(("range(60)", "range(30)")), seed=seed)
    check.onto_budget(lambda a, b: onto_budget(a[None], torch.tensor([b]))[0], seed=seed)
    check.onto_budget(lambda a, b: solved(a, b), seed=seed)


@every("cause, old, new", PLANTED)
def test_each_slip_of_a_projection_is_named(cause: str, old: str, new: str) -> None:
    wrong = project((old, new))
    assert cause_of(check.onto_budget, wrong) == cause
    assert cause_of(check.onto_budget, wrong, seed=5) == cause


def test_all_named_slips_are_planted() -> None:
    assert {cause for _, cause, *_ in _slips()} <= {cause for cause, *_ in PLANTED}


def test_a_solver_finds_the_same_points_and_nothing_lacks_of_them() -> None:
    for a, b in budget_cases(3):
        if b == 0 or a.dtype == torch.float32:
            continue
        point, start = a.numpy(), np.zeros(len(a))
        best = optimize.minimize(
            lambda s, p=point: ((s - p) ** 2).sum() / 2,
            start,
            jac=lambda s, p=point: s - p,
            bounds=[(0, 1)] * len(a),
            constraints={"type": "ineq", "fun": lambda s, b=b: b - s.sum(), "jac": lambda s: -np.ones(len(s))},
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-14},
        )
        mine = solved(a, b)
        assert float((mine - torch.from_numpy(best.x)).abs().max()) < 1e-4
        assert abs(lacking(a, mine, b)) < 1e-9
        away = (mine + 0.01 * torch.rand(len(a), generator=torch.Generator().manual_seed(1))).clamp(0, 1)
        away = away * min(1, b / float(away.sum()))
        assert lacking(a, away, b) >= float((away - mine).square().sum()) - 1e-9
