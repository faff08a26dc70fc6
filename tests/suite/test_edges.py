"""Edges that every attack meets: ε = 0, the label that is farthest away, the caller's own batches, two threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from tests.suite.cases import CASES, EPS, TARGETED, Case, batch, over
from tests.suite.models import convnet, mlp
from tests.suite.test_batch import assert_same
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.test_pathological import check_honest


def check_zero_budget(case: Case, device: torch.device) -> None:
    """A ball of radius 0 is x alone: it is returned bit for bit, and a success is a clean error."""
    model, x, y = batch(case, device, n=6)
    y[2] = (y[2] + (2 if case.targeted else 1)) % case.classes
    result = case.run(model, x, y, eps=0.0)
    with torch.no_grad():
        clean = case.goal(model(x), y)
    assert bool(clean.any()) and not bool(clean.all())
    assert torch.equal(result.x_adv, x), "x was changed within a ball of radius 0"
    assert torch.equal(result.success, clean), "success at ε = 0 is not the clean error"
    assert bool((torch.stack(list(result.distances.values())) == 0).all())
    some = torch.where(torch.arange(6, device=device) % 2 == 0, 0.0, EPS[case.norm or "linf"]).to(x)
    result = case.run(model, x, y, eps=some)
    assert torch.equal(result.x_adv[::2], x[::2]), "x was changed where its own ε is 0"
    assert bool(result.x_adv.isfinite().all())


def check_huge_budget(case: Case, device: torch.device) -> None:
    """A ball that holds the whole box, however large its radius: an honest result, and some success."""
    model, x, y = batch(case, device, n=4, dtype=torch.float32)
    for eps in (1e3, 1e38, 3e38):
        result = check_honest(case, model, x, y, eps=eps)
        assert bool(result.success.any()), f"nothing is found at ε = {eps}, in the whole box"


def check_callers_batches(case: Case, device: torch.device, size: int = 3) -> None:
    """What is reported is what the caller measures on ``x_adv``, in float32 and in batches of another size."""
    image = len(case.shape) == 3
    model = convnet(case.classes, case.shape[0], torch.float32) if image else mlp(case.shape, case.classes).float()
    model = model.to(device)
    _, x, _ = batch(case, device, n=10, dtype=torch.float32)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
        y[4] = (y[4] + (2 if case.targeted else 1)) % case.classes
        result = case.run(model, x, y)
        pairs = zip(result.x_adv.split(size), y.split(size), strict=True)
        seen = torch.cat([case.goal(model(part), label) for part, label in pairs])
    reported, measured = (float(1 - won.double().mean()) for won in (result.success, seen))
    assert torch.equal(result.success, seen), f"accuracy {reported} reported, {measured} in batches of {size}"


def check_least_likely_target(case: Case, device: torch.device) -> None:
    """The target that the model finds least likely: reached by some, and nothing else is called a success."""
    model: nn.Module = mlp(case.shape, 5).to(device)
    _, x, _ = batch(case, device, n=8)
    with torch.no_grad():
        y, target = model(x).argmax(dim=1), model(x).argmin(dim=1)
    wide = {"eps": 3 * EPS[case.norm or "linf"]} if case.has_budget else {}
    result = case.run(model, x, y, target=target, **wide)
    with torch.no_grad():
        assert torch.equal(model(result.x_adv).argmax(dim=1) == target, result.success), "success is not the target"
    if case.row.access == "white" and case.norm:
        assert bool(result.success.any()), "the least likely label is never reached"


def check_two_threads(case: Case, device: torch.device) -> None:
    """Two threads attack one model at the same time: each gets what it gets alone, and the model is as it was."""
    model, x, y = batch(case, device, n=6)
    model.train()
    halves = (x[:3], y[:3]), (x[3:], y[3:])
    alone = [
        case.run(model, *half, seed=k) if case.takes("seed") else case.run(model, *half)
        for k, half in enumerate(halves)
    ]
    before = snapshot(model, x, y)
    together = Barrier(2)

    def attack(k: int) -> list:
        together.wait()
        seed = {"seed": k} if case.takes("seed") else {}
        return [case.run(model, *halves[k], **seed) for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(attack, range(2)))
    for one, results in zip(alone, found, strict=True):
        for result in results:
            assert_same(result, one, atol=0)
    assert_unchanged(before, model, x, y)


@over(*[case for case in CASES if case.has_budget])
def test_zero_budget(case: Case, device: torch.device) -> None:
    check_zero_budget(case, device)


@pytest.mark.filterwarnings("ignore:eps")  # the warning that the ball holds the whole box
@over(*[case for case in CASES if case.has_budget and case.norm])
def test_huge_budget(case: Case, device: torch.device) -> None:
    check_huge_budget(case, device)


@pytest.mark.slow
@over(size=(1, 3))
def test_callers_batches(case: Case, device: torch.device, size: int) -> None:
    check_callers_batches(case, device, size)


@pytest.mark.slow
@over(*TARGETED)
def test_least_likely_target(case: Case, device: torch.device) -> None:
    check_least_likely_target(case, device)


@pytest.mark.slow
@pytest.mark.threads
@over()
def test_two_threads(case: Case, device: torch.device) -> None:
    check_two_threads(case, device)
