"""Affine models, where the smallest perturbation is known: every attack against it, and none below it.

Free of the box the optimum is min_k margin_k / ‖w_k − w_y‖_q; with the box active a convex solver finds it, and sorting
does for ℓ0. Gates are those of the literature that the methods claim, on the median over samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.attacker.victim import Victim
from tests.suite.cases import CASES, PLAIN, Case, over
from tests.suite.models import Affine
from tests.suite.oracles import affine_problem, free_optimum, l0_optimum, solver_optimum

WIDE, TIGHT = (-3.0, 3.0), (-1.0, 1.0)

# Arguments for a run at full strength where the defaults are not meant: shorter where that suffices here.
FULL: dict[str, dict[str, Any]] = {
    "deepfool": {"overshoot": 1e-3},
    "cw": {"steps": 300, "c": 0.1},
    "cw-linf": {"steps": 500, "c": 0.1 / 6, "search_steps": 12},  # 0.1 in units of x
    "cw-l0": {"steps": 60, "c": 10.0, "lr": 0.1},
    "pgd-l1": {"steps": 100},
    "bim": {"steps": 40},
    "ead": {"rule": "l1", "beta": 0.02, "steps": 300, "c": 0.1},
    "biggio_evasion": {"steps": 200},
    "bypass_detectors": {"detector": PLAIN["detector"], "loss": "margin"},
    "bypass_detectors-l1": {"detector": PLAIN["detector"], "loss": "margin", "steps": 100},
}
# PGD's tangential error shrinks by exp(−Σα/ε): the default step, 2.5·ε/K, leaves 8 % of the random start.
# In ℓ1 with the box active the iterate circles the optimum at the distance of half a step: steps of ε/40.
STEP: dict[str, Callable[[Tensor], Tensor]] = {
    "pgd-l1": lambda eps: eps / 40,
    "pgd-l2": lambda eps: eps / 4,
    "bim-l2": lambda eps: eps / 4,
    "biggio_evasion": lambda eps: eps,
    "bypass_detectors-l1": lambda eps: eps / 40,
    "bypass_detectors-l2": lambda eps: eps / 4,
}

# Median ratio to the optimum that a minimum-norm attack must reach. With two classes there is one hyperplane; with
# several, DeepFool and C&W are still held to it; L-BFGS and DDN are not (the cross-entropy weighs all classes).
TWO_CLASSES = {"fab": 1.006, "fab-l1": 1.09, "ead": 1.10, "cw-l0": 1.25, "fmn-l0": 1.0, "sigma_zero": 1.0}
MANY_CLASSES = {
    "deepfool": 1.002,
    "cw-l2": 1.002,
    "cw-linf": 1.002,
    "ead": 1.10,
    "fmn": 1.002,
    "fab": 1.006,
    "cw-l0": 1.5,
    "fmn-l0": 1.0,
    "sigma_zero": 1.0,
}


def entry(table: dict[str, Any], case: Case, default: Any = None) -> Any:
    """The entry for the attack in this norm, or for the attack."""
    return table.get(f"{case.row.key}-{case.norm}", table.get(case.row.key, default))


@cache
def problem(
    device: torch.device, classes: int, norm: str, box: tuple[float, float]
) -> tuple[Affine, Tensor, Tensor, Tensor]:
    """Model, points, labels and the untargeted optimum of each point."""
    model, x, y = affine_problem(classes, 12 if box == WIDE else 8, 8, device, spread=1.0)
    if norm == "l0":
        best = l0_optimum(model, x, y, box)
    elif box == WIDE:
        best = free_optimum(model, x, y, norm)
        if norm != "l1":  # the ℓ1 optimum changes one element alone, and may leave the box
            assert float(best.max()) < 2, "the box is in the way"
    else:
        best = solver_optimum(model, x, y, norm, box)
    reachable = best.isfinite() & (best < (9 if norm == "l0" else 1.9 if box == WIDE else torch.inf))
    return model, x[reachable], y[reachable], best[reachable]


def attack(case: Case, model: Affine, x: Tensor, y: Tensor, box: tuple[float, float], **changes: Any) -> Any:
    arguments = {**entry(FULL, case, {}), **changes}
    if "eps" in arguments and (step := entry(STEP, case)):
        arguments["step_size"] = step(arguments["eps"])
    if case.norm is not None:
        arguments["norm"] = case.norm
    return case.attack(Victim(model, bounds=box), x, y, **arguments)


def check_budget_attack_two_classes(case: Case, device: torch.device, box: tuple[float, float]) -> None:
    """Wins everywhere at 1.001 × the optimum, nowhere at 0.999 ×."""
    model, x, y, best = problem(device, 2, str(case.norm), box)
    target = {"target": 1 - y} if case.targeted else {}
    above = attack(case, model, x, y, box, eps=1.001 * best, **target)
    assert bool(above.success.all()), f"fails at 1.001 × the optimum in {int((~above.success).sum())} of {len(y)}"
    below = attack(case, model, x, y, box, eps=0.999 * best, **target)
    assert not bool(below.success.any()), "succeeds where nothing can"


def check_budget_attack_many_classes(case: Case, device: torch.device, classes: int = 5) -> None:
    """The union of targeted margin runs wins at 1.001 × the optimum; no run wins at 0.999 ×."""
    model, x, y, best = problem(device, classes, str(case.norm), WIDE)
    won = torch.zeros_like(y, dtype=torch.bool)
    for k in range(classes):
        rows = y != k
        margin = {"loss": "margin"} if case.takes("loss") else {}
        above = attack(case, model, x[rows], y[rows], WIDE, eps=1.001 * best[rows], target=k, **margin)
        won[rows] |= above.success
        below = attack(case, model, x[rows], y[rows], WIDE, eps=0.999 * best[rows], target=k, **margin)
        assert not bool(below.success.any()), "succeeds where nothing can"
    assert bool(won.all()), f"fails at 1.001 × the optimum in {int((~won).sum())} of {len(y)}"


def check_minimum_norm_attack(
    case: Case, device: torch.device, classes: int, box: tuple[float, float], gate: float | None
) -> None:
    """Never below the optimum, and within the gate of it in the median."""
    model, x, y, best = problem(device, classes, str(case.norm), box)
    target = {}
    if case.targeted:
        target["target"] = (y + 1) % classes
        if classes > 2:
            x, y, target["target"] = x[:5], y[:5], target["target"][:5]
            best = solver_optimum(model, x, y, str(case.norm), box, target["target"]) if case.norm != "l0" else best[:5]
    result = attack(case, model, x, y, box, **target)
    ratio = result.radius(str(case.norm)) / best
    assert bool((ratio >= 1 - 1e-6).all()), f"below the optimum: {float(ratio.min())}"
    if gate is not None:
        assert bool(result.success.all()), "fails where an answer exists"
        assert float(ratio.median()) <= gate, f"median ratio to the optimum {float(ratio.median()):.5f}, gate {gate}"


BUDGET = [c for c in CASES if c.has_budget and c.norm in ("l1", "l2", "linf") and c.row.access == "white"]
MINIMUM = [c for c in CASES if c.row.min_norm and c.norm and c.row.access == "white"]


@pytest.mark.slow
@over(*BUDGET, box=(WIDE, TIGHT))
def test_budget_attack_two_classes(case: Case, device: torch.device, box: tuple[float, float]) -> None:
    check_budget_attack_two_classes(case, device, box)


@over(*[c for c in BUDGET if c.targeted], slow=True)
def test_budget_attack_many_classes(case: Case, device: torch.device) -> None:
    check_budget_attack_many_classes(case, device)


@over(*[c for c in MINIMUM if not c.targeted], slow=True, box=(WIDE, TIGHT))
def test_minimum_norm_attack_two_classes(case: Case, device: torch.device, box: tuple[float, float]) -> None:
    """In an active box DeepFool, which knows the box only as an afterthought, is held to the bound alone."""
    gate = None if case.row.key == "deepfool" and box == TIGHT else entry(TWO_CLASSES, case, 1.002)
    if case.norm == "linf" and gate is not None and box == TIGHT:
        gate = 1.01  # elements at the bounds of the box are reached in the limit only
    check_minimum_norm_attack(case, device, 2, box, gate)


@over(*MINIMUM, slow=True)
def test_minimum_norm_attack_many_classes(case: Case, device: torch.device) -> None:
    gate = entry(MANY_CLASSES, case)
    if case.targeted and (case.row.key == "deepfool" or case.norm == "l0"):
        gate = None  # the method is no more than a heuristic there
    check_minimum_norm_attack(case, device, 5, WIDE, gate)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_formula_and_solver_agree(norm: str) -> None:
    """The two oracles against each other."""
    model, x, y = affine_problem(4, 6, 5, torch.device("cpu"), spread=1.0, seed=3)
    wide = (-100.0, 100.0)
    torch.testing.assert_close(
        solver_optimum(model, x, y, norm, wide), free_optimum(model, x, y, norm), rtol=1e-5, atol=1e-7
    )
    ones = solver_optimum(model, x, y, norm, wide, target=(y + 1) % 4)
    assert bool((ones >= free_optimum(model, x, y, norm) * (1 - 1e-6)).all())


def test_l0_oracle_matches_brute_force() -> None:
    model, x, y = affine_problem(3, 8, 5, torch.device("cpu"), spread=1.0, seed=1)
    best = l0_optimum(model, x, y, TIGHT)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)] * 5)  # 0: left as it is
    for i in range(len(x)):
        points = torch.where(corners != 0, corners, x[i])
        with torch.no_grad():
            z = model(points)
        fooled = (z - z[:, [int(y[i])]]).index_fill(1, y[i : i + 1], -torch.inf).amax(1) >= 0
        counts = (corners != 0).sum(1)[fooled]
        assert float(best[i]) == (float(counts.min()) if len(counts) else torch.inf)
