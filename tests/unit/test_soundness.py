"""No verifier certifies what is known to be wrong: planted counterexamples that attacks miss, and random pairs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from robustlab.attacker.losses import goal_margin
from robustlab.attacks import pgd
from robustlab.geometry.norms import get_norm
from robustlab.graph.hinge import Hinge, Lines
from robustlab.graph.interval import Bounds
from robustlab.verification.propagation.certify import METHODS
from tests.soundness.hidden import EPS, FOLDER, RECIPES, Hidden, load
from tests.suite.verification.cases import CASES, ONE_HIDDEN, PIECEWISE_LINEAR, Case

COMPLETE = {"reluplex", "milp", "branch_and_bound"}
LIMIT = 1.0  # seconds for each instance


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_planted_points_are_counterexamples(name: str, dtype: torch.dtype) -> None:
    """By a margin far beyond rounding, inside the ball and the box; and the files are small."""
    hidden = load(name)
    model, x, planted = hidden.model.to(dtype), hidden.x.to(dtype), hidden.counterexample.to(dtype)
    assert len(x) >= 2
    assert bool((goal_margin(model(x), hidden.y) < -0.05).all()) and bool(
        (goal_margin(model(planted), hidden.y) > 0.05).all()
    )
    assert float((planted - x).abs().max()) < EPS and float(planted.min()) >= 0 and float(planted.max()) <= 1
    assert (FOLDER / f"{name}.safetensors").stat().st_size <= 80_000


def found(hidden: Hidden, *, restarts: int, steps: int) -> Tensor:
    """Which instances some attack finds, of several losses and step sizes."""
    fell = torch.zeros(len(hidden.x), dtype=torch.bool)
    for loss in ("ce", "margin"):
        for step_size in (None, 0.1 * EPS, 0.5 * EPS):
            result = pgd(
                hidden.model, hidden.x, hidden.y, norm="linf", eps=EPS, steps=steps, step_size=step_size,
                restarts=restarts, loss=loss, seed=5,
            )  # fmt: skip
            fell |= result.success
    return fell


@pytest.mark.slow
@pytest.mark.full("hidden")
@pytest.mark.parametrize("name", RECIPES)
def test_attacks_do_not_find_them(name: str) -> None:
    hidden = load(name)
    assert float(found(hidden, restarts=10, steps=100).float().mean()) <= 0.25


def test_an_attack_that_is_told_where_to_look_finds_them() -> None:
    """So that the attacks above fail because of what they are, not because nothing is there."""
    hidden = load("mlp")
    near = hidden.x + 0.97 * (hidden.counterexample - hidden.x)
    assert bool(pgd(hidden.model, near, hidden.y, norm="linf", eps=0.05 * EPS, steps=20).success.all())


def certified(case: Case, hidden: Hidden, some: slice) -> int:
    """How many of the instances a verifier certifies, in a ball that holds the counterexample."""
    x, y, planted = (part[some] for part in (hidden.x, hidden.y, hidden.counterexample))
    eps = get_norm(case.norm).length(planted - x) * (1 + 1e-5)
    limit = {"timeout": LIMIT} if case.row.key in COMPLETE else {}
    return int(case.run(hidden.model, x, y, eps, **limit).verified.sum())


def takes(case: Case, name: str) -> bool:
    """Whether a verifier knows the net's kind."""
    if case.row.key in ONE_HIDDEN:
        return name == "one_hidden"
    return not (name == "tanh" and case.row.key in PIECEWISE_LINEAR)


FIRST = ("mlp", "cnn")
PAIRS = [(case, name) for case in CASES for name in RECIPES if takes(case, name)]
FEW = [(case, name) for case, name in PAIRS if name in FIRST or case.row.key in ONE_HIDDEN]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), FEW, ids=str)
def test_no_verifier_certifies_one(case: Case, name: str) -> None:
    assert certified(case, load(name), slice(0, 1 if case.row.key in COMPLETE else None)) == 0


@pytest.mark.slow
@pytest.mark.full("hidden", "crown", "ibp", "branch_and_bound", "milp", "reluplex")
@pytest.mark.parametrize(("case", "name"), PAIRS, ids=str)
def test_no_verifier_certifies_any(case: Case, name: str) -> None:
    assert certified(case, load(name), slice(None)) == 0


def test_what_is_certified_where_nothing_is_planted() -> None:
    """The same verifiers say yes in smaller balls: what is refused above is not refused for another reason."""
    hidden = load("mlp")
    for case in CASES:
        if case.row.key in ONE_HIDDEN | COMPLETE:
            continue
        small = {"l1": 0.05, "l2": 0.01, "linf": 0.001}[case.norm]
        assert bool(case.run(hidden.model, hidden.x, hidden.y, small).verified.all()), case


# Random nets and boxes ---------------------------------------------------------------------------------------------


def benchmark() -> ModuleType:
    """The module that draws, bounds and attacks."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    try:
        import pairs
    finally:
        sys.path.pop(0)
    return pairs


@pytest.mark.slow
def test_ten_thousand_certified_pairs() -> None:
    """None is broken, in float32 or float64; each method certifies some, and its bounds are reached somewhere."""
    tallies = benchmark().tried(10_000, count=80)
    assert tallies.total("certified") >= 10_000 and tallies.nets >= 10
    assert tallies.total("broken") == 0
    for name, tally in tallies.of.items():
        assert tally.certified > 100 and tally.closest < 1e-6, name


UNSOUND = ("chord too low", "radius without absolute values", "line below too steep")


@pytest.mark.slow
@pytest.mark.parametrize("bug", UNSOUND)
def test_an_unsound_bound_is_broken(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upper slope 5 % too low, an interval whose radius is W·r, a line below with a slope above its function's."""
    from robustlab.graph.affine import Linear

    if bug == "radius without absolute values":
        monkeypatch.setattr(Linear, "magnitude", lambda self, radius: radius @ self.weight.T)
    else:
        relax = Hinge.relax

        def wrong(self: Hinge, rule: object, *inputs: Bounds) -> Lines:
            lines = relax(self, rule, *inputs)  # type: ignore[arg-type]
            lower, upper, shift = lines.lower_slope, lines.upper_slope, lines.upper_bias
            if bug == "chord too low":
                return Lines(lower, 0.95 * upper, 0.95 * shift)
            return Lines(1.05 * lower, upper, shift)

        monkeypatch.setattr(Hinge, "relax", wrong)
    methods = ("ibp",) if bug == "radius without absolute values" else ("crown", "alpha_crown", "fast_lin")
    tallies = benchmark().tried(1_500, count=80, methods=methods)
    assert all(tally.broken > 0 for tally in tallies.of.values())
    assert set(methods) <= set(METHODS)
