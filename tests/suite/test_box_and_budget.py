"""Whatever the attack does, its points stay in the box and the budget, and its result is of the right form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustlab.attacker.victim import Victim
from robustlab.geometry.norms import NORMS
from tests.suite.cases import ATTACKS, CASES, EPS, Case, noise_box
from tests.suite.models import Counting, mlp

FLOAT = {torch.float32: 1.2e-7, torch.float64: 2.3e-16}


@dataclass(frozen=True)
class Problem:
    """What Hypothesis varies."""

    shape: tuple[int, ...]
    n: int
    classes: int
    dtype: torch.dtype
    pixels: str
    bounds: tuple[float, float]
    scale: float
    seed: int
    own_labels: bool

    def points(self) -> Tensor:
        low, high = self.bounds
        unit = noise_box(self.n, self.shape, torch.float64, self.seed)
        unit = {"mixed": unit, "corners": unit.round(), "black": unit * 0, "white": unit * 0 + 1}[self.pixels]
        return (low + (high - low) * unit).clamp(low, high).to(self.dtype)


def problems(case: Case) -> st.SearchStrategy[Problem]:
    side = st.integers(1, 3)
    kinds = {"flat": st.tuples(st.integers(1, 6)), "image": st.tuples(st.integers(1, 2), side, side)}
    kinds["color"] = st.tuples(st.just(3), side, side)
    return st.builds(
        Problem,
        shape=st.one_of([kinds[d] for d in case.row.dims]),
        n=st.integers(0, 3),
        classes=st.integers(case.row.min_classes, case.row.min_classes + 2),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        pixels=st.sampled_from(["mixed", "corners", "black", "white"]),
        bounds=st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)]),
        scale=st.sampled_from([0.3, 1.0, 20.0]),
        seed=st.integers(0, 30),
        own_labels=st.booleans(),
    )


def check_box_and_budget(case: Case, problem: Problem, device: torch.device) -> None:
    low, high = problem.bounds
    x = problem.points().to(device)
    model = torch.nn.Sequential(
        Stretch(low, high - low), mlp(problem.shape, problem.classes, problem.dtype, problem.seed)
    )
    counting = Counting(model.to(device))
    with torch.no_grad():
        y = model(x).argmax(dim=1) if problem.own_labels else torch.arange(problem.n, device=device) % problem.classes
    changes = {}
    eps = EPS[case.norm or "linf"] * problem.scale
    if case.has_budget:
        eps = max(1.0, float(round(eps))) if case.norm == "l0" else eps * (high - low)
        changes["eps"] = eps
    if case.targeted:
        changes["target"] = (y + 1) % problem.classes
    result = case.run(Victim(counting, bounds=problem.bounds), x, y, **changes)

    assert result.x_adv.shape == x.shape and result.x_adv.dtype == x.dtype and result.x_adv.device == x.device
    for field in (result.success, result.queries, result.gradients, result.first_success, *result.distances.values()):
        assert field.shape == (problem.n,) and field.device == x.device
    assert result.success.dtype == torch.bool and result.queries.dtype == torch.int64
    assert not result.x_adv.requires_grad and not result.x_adv.is_inference()
    if problem.n == 0:
        assert counting.calls == 0
        return
    assert bool(((result.x_adv >= low) & (result.x_adv <= high)).all())
    assert low <= counting.low and counting.high <= high, "a query outside the box"
    delta = (result.x_adv - x).double()
    for name, distance in result.distances.items():
        torch.testing.assert_close(distance.double(), NORMS[name].length(delta), rtol=1e-5, atol=1e-6 * (high - low))
    if case.has_budget and case.norm:
        assert bool((NORMS[case.norm].length(delta) <= eps + slack(case, problem, eps)).all()), "outside the budget"
    if case.row.min_norm:
        assert torch.equal(result.x_adv[~result.success], x[~result.success])
    assert bool(result.distances["linf"].isfinite().all())
    with torch.no_grad():
        logits = model(result.x_adv)
    met = logits.argmax(1) == changes["target"] if case.targeted else logits.argmax(1) != y
    clear = logits.topk(2, dim=1).values.diff(dim=1).abs().squeeze(1) > 1e-5 * logits.abs().amax(1).clamp_min(1)
    assert torch.equal(result.success[clear], met[clear]), "success is not what the model says"
    if case.row.min_norm:
        assert bool(met[result.success].all()), "a success that rounding undoes"


def slack(case: Case, problem: Problem, eps: float) -> float:
    """Rounding: of ε itself, and of each element of x + δ."""
    if case.norm == "l0":
        return 0.0
    d, unit = math.prod(problem.shape), FLOAT[problem.dtype]
    spread = {"l1": d, "l2": math.sqrt(d), "linf": 1}[case.norm or "linf"]
    return 4 * unit * eps + spread * unit * max(map(abs, problem.bounds))


class Stretch(torch.nn.Module):
    """Maps the box onto [0, 1]."""

    def __init__(self, low: float, width: float) -> None:
        super().__init__()
        self.low, self.width = low, width

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) / self.width


def check_box_and_budget_of(cases: list[Case], device: torch.device, examples: int) -> None:
    """Problems that Hypothesis draws, spread over all the cases."""

    @settings(max_examples=examples)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        case = data.draw(st.sampled_from(cases))
        check_box_and_budget(case, data.draw(problems(case)), device)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("key", [row.key for row in ATTACKS])
def test_box_and_budget(key: str, device: torch.device) -> None:
    check_box_and_budget_of([case for case in CASES if case.row.key == key], device, examples=12)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=str)
def test_box_and_budget_of_each_case(case: Case, device: torch.device) -> None:
    check_box_and_budget_of([case], device, examples=30)
