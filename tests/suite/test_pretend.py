"""Attacks and their evaluation on the pretend device: where the inputs are, as on the CPU, and nothing left behind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from robustlab.attacks import ddn, pgd, spatial
from robustlab.defenses.robustness_claim import Claim
from robustlab.evaluation import (
    AutoAttackReport,
    RandomViews,
    autoattack,
    bpda,
    checklist,
    eot,
    eot_attack,
    evaluate,
    unrestricted,
)
from robustlab.teaching.catalogue import rows
from tests.pretend import pretend_cuda
from tests.pretend.tags import CPU
from tests.pretend.twins import twins
from tests.suite.cases import CASES, Case, noise_box
from tests.suite.models import IMAGE, convnet
from tests.suite.test_batch import problem
from tests.suite.test_no_side_effects import check_no_side_effects

FIRST = [case for i, case in enumerate(CASES) if case.row.key not in {c.row.key for c in CASES[:i]}]
REST = [pytest.param(case, marks=pytest.mark.full) for case in CASES if case not in FIRST]


def check_twin(case: Case) -> None:
    """Three samples, one of them misclassified, each with a budget and a target of its own."""

    def run(device: torch.device) -> AttackResult:
        model, x, y, own = problem(case, device)
        return case.run(model, x[1:4], y[1:4], seed=3, **{name: value[1:4] for name, value in own.items()})

    twins(run, rtol=1e-9, atol=1e-9)


def check_nothing_left_behind(case: Case) -> None:
    """Batch norm and dropout in training mode; the GPU's random state is among what is watched."""
    with pretend_cuda() as gpu:
        check_no_side_effects(case, gpu.device, "asis")


@pytest.mark.slow
@pytest.mark.parametrize("case", [*FIRST, *REST], ids=str)
def test_twin(case: Case) -> None:
    check_twin(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", FIRST, ids=str)
def test_nothing_left_behind(case: Case) -> None:
    check_nothing_left_behind(case)


# Evaluation ----------------------------------------------------------------------------------------------------------


def images(device: torch.device, n: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network with batch norm and dropout, points of its box, and its predictions there."""
    model = convnet().to(device)
    x = noise_box(n, IMAGE, torch.float64).to(device)
    with torch.no_grad():
        return model, x, model(x).argmax(dim=1)


def coarse(x: Tensor) -> Tensor:
    return (8 * x).round() / 8


def jittered(x: Tensor) -> Tensor:
    """Draws from the generator of the device, as augmentations do."""
    return x + 0.02 * torch.randn_like(x)


EVALUATIONS: dict[str, Callable[[torch.device], Any]] = {
    "evaluate": lambda d: [
        evaluate(*images(d), attack=pgd, eps=[0.02, 0.1], steps=4),
        evaluate(*images(d), attack=ddn, eps=[0.02, 0.1], norm="l2", steps=4),
    ],
    "autoattack": lambda d: [
        points_stay(d, autoattack(*images(d), eps=0.15, attacks=[name])) for name in ("apgd-t", "fab-t", "square")
    ],
    "unrestricted": lambda d: unrestricted(
        *images(d), attacks={"spatial": partial(spatial, grid=(3, 3, 3))}, judge=lambda _, y: y % 2 == 0
    ),
    "checklist": lambda d: checklist(
        *images(d, 8), claim=Claim(robust_accuracy=0.9, eps=0.05), surrogate=convnet(seed=1).to(d), steps=4, queries=20
    ),
    "bpda": lambda d: through(d, lambda model: nn.Sequential(bpda(coarse), model)),
    "eot": lambda d: through(d, lambda model: eot(model, jittered, samples=3)),
    "eot_attack": lambda d: eot_attack(
        *images(d), transforms=RandomViews(sigma=0.02), eps=0.1, steps=2, draws=3, held_out=3, penalty=0.1
    ),
}
REPORTS = ("evaluate", "autoattack", "unrestricted", "checklist")  # these are the host's


def through(device: torch.device, defense: Callable[[nn.Module], nn.Module]) -> AttackResult:
    model, x, y = images(device)
    return pgd(defense(model), x, y, eps=0.1, steps=4)


def points_stay(device: torch.device, report: AutoAttackReport) -> AutoAttackReport:
    """The report is the host's, but for the adversarial points."""
    assert report.x_adv is not None and report.x_adv.device == device
    return replace(report, x_adv=report.x_adv.cpu())


def test_every_evaluation_is_here() -> None:
    assert {row.key for kind in ("evaluation", "solver") for row in rows(kind, done=True)} <= set(EVALUATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluation(name: str) -> None:
    twins(EVALUATIONS[name], home=CPU if name in REPORTS else None, rtol=1e-9, atol=1e-9)


# The checks, seen to fail --------------------------------------------------------------------------------------------


def planted(change: Callable[..., AttackResult]) -> Case:
    """PGD with a bug that shows on a GPU alone."""
    good = next(case for case in CASES if str(case) == "pgd-linf")

    @functools.wraps(good.attack)
    def broken(victim: Any, x: Tensor, y: Tensor, **arguments: Any) -> AttackResult:
        return change(lambda: good.attack(victim, x, y, **arguments), x)

    return replace(good, attack=broken)


def off_the_gpu(run: Callable[[], AttackResult], x: Tensor) -> AttackResult:
    result = run()
    return replace(result, queries=result.queries.cpu())


def made_on_the_cpu(run: Callable[[], AttackResult], x: Tensor) -> AttackResult:
    result = run()
    return replace(result, x_adv=result.x_adv.add(torch.zeros(len(x), 1, 1, 1)))


def other_on_the_gpu(run: Callable[[], AttackResult], x: Tensor) -> AttackResult:
    result = run()
    return replace(result, x_adv=result.x_adv - (1e-3 if x.is_cuda else 0))


def moves_the_random_state(run: Callable[[], AttackResult], x: Tensor) -> AttackResult:
    with torch.random.fork_rng(devices=[]):
        torch.rand(1, device=x.device)
    return run()


@pytest.mark.parametrize("bug", [off_the_gpu, made_on_the_cpu, other_on_the_gpu])
def test_twins_differ(bug: Callable[..., AttackResult]) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=r"is on cpu|same device|x_adv"):
        check_twin(planted(bug))


def test_something_is_left_behind() -> None:
    with pytest.raises(AssertionError, match=r"random states|global state"):
        check_nothing_left_behind(planted(moves_the_random_state))
