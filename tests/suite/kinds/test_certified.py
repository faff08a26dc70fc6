"""Certified defenses: no radius beyond what an attack breaks, abstention at radius 0, and a stated confidence.

Against deployment-phase attacks: a function (model, x, y=None, *, …) → Certificate. Against training-phase attacks: a
function (data, …) or (x, y, …); what it certifies there is its own test's, and its manners are held here.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import linear_distance
from tests.suite.kinds.cases import affine_net, check_manners, of_kind, over, refused
from tests.suite.kinds.specimens import lipschitz_radius, smoothed_majority
from tests.suite.training.cases import CLASSES, Case, same, tensors
from tests.suite.verification.test_verifiers import verified

D, N = 4, 24
CASES = of_kind("certified_defense", smoothed_majority, lipschitz_radius)
DEPLOYED = [case for case in CASES if case.takes("model") and case.takes("x")]
TRAINED = [case for case in CASES if case not in DEPLOYED]
# How often a guarantee of confidence 1 − α may fail here before it is a lie.
FALSE_ALARM = 1e-6


def problem(device: torch.device, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """An affine model of two classes, whose smoothed versions decide as it does: model, x, labels, w and margins."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(D, generator=generator, dtype=torch.float64)
    x = 0.5 + 0.2 * torch.randn(N, D, generator=generator, dtype=torch.float64).clamp(-1, 1)
    weight, bias = torch.stack([w, -w]), torch.tensor([-float(w.sum()) / 2, float(w.sum()) / 2], dtype=torch.float64)
    model = affine_net(weight, bias).to(device)
    x = x.to(device)
    with torch.no_grad():
        margin = model(x).diff(dim=1)[:, 0].abs()
        y = model(x).argmax(dim=1)
    return model, x, y, 2 * w.to(device), margin


def check_no_radius_is_broken(case: Case, device: torch.device) -> None:
    """The distance to the plane where the classes tie is what the strongest attack needs: no radius is above it.

    Where the confidence is 1 − α, so many may be wrong by chance as a binomial test at 1e-6 allows.
    """
    certified = 0
    for seed in range(2):
        model, x, y, w, margin = problem(device, seed)
        found = run(case, model, x, y, seed)
        exact = linear_distance(margin, w.expand(N, D), found.norm)
        sure = verified(found).to(device)
        wrong = int((sure & (found.radius > exact * (1 + 1e-6))).sum())
        certified += int(sure.sum())
        allowed = 0 if found.confidence == 1 else int(binom.isf(FALSE_ALARM, N, 1 - found.confidence))
        assert wrong <= allowed, f"{wrong} of {int(sure.sum())} radii are beyond what an attack needs"
    assert certified > 0, "nothing was certified"


def run(case: Case, model: Any, x: Any, y: Any, seed: int = 0, **changes: Any) -> Certificate:
    given = {"model": model, "x": x, "y": y, "seed": seed, **changes}
    return case.run(
        **case.arguments(device=getattr(x, "device", "cpu"), **{k: v for k, v in given.items() if case.takes(k)})
    )


def check_form(case: Case, device: torch.device) -> None:
    """Radius 0 where abstaining, misclassified or unknown; never negative or infinite; the confidence is stated."""
    model, x, y, _, _ = problem(device)
    tie = torch.full_like(x[:1], 0.5)  # on the plane
    labels = torch.cat([y[:10], 1 - y[10:], y[:1]])
    found = run(case, model, torch.cat([x, tie]), labels)
    assert isinstance(found, Certificate)
    assert found.radius.shape == (N + 1,) and found.radius.dtype == x.dtype and found.radius.device == x.device
    assert bool(found.radius.isfinite().all() & (found.radius >= 0).all())
    sure = verified(found).to(device)
    assert torch.equal(sure, sure & (found.radius > 0)), "verified at radius 0"
    assert bool((found.radius[~sure] == 0).all()), "a radius where nothing is certified"
    assert not bool(sure[10:].any()), "certified where the label is wrong, or where the classes tie"
    draws = case.takes("alpha") or case.takes("n")
    assert 0 < found.confidence < 1 if draws else found.confidence == 1.0, "the confidence is not stated"
    if case.takes("alpha"):
        alpha = case.arguments().get("alpha", case.parameters["alpha"].default)
        assert math.isclose(found.confidence, 1 - alpha)
    assert found.norm in ("l1", "l2", "linf") and found.method == case.row.key


def check_samples_stand_alone(case: Case, device: torch.device) -> None:
    model, x, y, _, _ = problem(device)
    ids = torch.arange(6) + 3
    with_ids = {"ids": ids} if case.takes("ids") else {}
    whole = run(case, model, x[:6], y[:6], **with_ids)
    for i in (0, 4):
        one = {"ids": ids[i : i + 1]} if case.takes("ids") else {}
        alone = run(case, model, x[i : i + 1], y[i : i + 1], **one)
        torch.testing.assert_close(alone.radius, whole.radius[i : i + 1], rtol=1e-9, atol=1e-12)
    assert run(case, model, x[:0], y[:0]).radius.shape == (0,)


def check_certified_manners(case: Case, device: torch.device) -> None:
    if case in DEPLOYED:
        model, x, y, _, _ = problem(device)
        check_manners(lambda: run(case, model, x, y), [model], [x, y])
        return
    arguments = case.arguments(device=device)
    modules = [value for value in arguments.values() if isinstance(value, nn.Module)]
    given = tensors([value for value in arguments.values() if not isinstance(value, nn.Module)])
    check_manners(lambda: case.run(**arguments), modules, given)
    assert same(case.run(**arguments), case.run(**arguments))


def check_one_label_is_certified(case: Case, device: torch.device) -> None:
    """Of all labels of a sample at most one is certified, the one that is taken where none is given."""
    arguments = case.arguments(torch.float64, device)
    x = arguments["x"]
    free = case.run(**{**arguments, "y": None})
    told = [case.run(**{**arguments, "y": torch.full((len(x),), k, device=device)}) for k in range(CLASSES)]
    sure = torch.stack([verified(found) for found in told])
    assert bool(sure.any()), "nothing was certified"
    assert torch.equal(sure.sum(dim=0), verified(free).long()), "certified for a label that is not the answer"
    for found in (free, *told):
        assert bool((found.radius[~verified(found).to(device)] == 0).all()), "a radius where nothing is certified"
        assert found.method == case.row.key


def check_certified_bad_input(case: Case, device: torch.device) -> None:
    model, x, y, _, _ = problem(device)
    hole = x.clone().index_fill_(0, torch.tensor([1], device=device), torch.nan)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("x", {"x": hole}), ("x", {"x": x.tolist()}), ("x", {"x": x.float()}), ("y", {"y": y[:-1]}),
        ("y", {"y": y + 2}),
    ]  # fmt: skip
    for name, values in {"sigma": (0.0, -1.0), "alpha": (0.0, 1.0), "n": (0,), "eps": (-1.0,)}.items():
        if case.takes(name):
            wrong += [(name, {name: value}) for value in values]
    for name, changes in wrong:
        with refused(name, name):
            run(case, model, **{"x": x, "y": y, **changes})


@over(DEPLOYED)
def test_no_radius_is_broken(case: Case, device: torch.device) -> None:
    check_no_radius_is_broken(case, device)


@over(DEPLOYED)
def test_form(case: Case, device: torch.device) -> None:
    check_form(case, device)


@over(DEPLOYED)
def test_samples_stand_alone(case: Case, device: torch.device) -> None:
    check_samples_stand_alone(case, device)


@over(CASES)
def test_certified_manners(case: Case, device: torch.device) -> None:
    check_certified_manners(case, device)


@pytest.mark.slow
@over([case for case in TRAINED if case.takes("y")])
def test_one_label_is_certified(case: Case, device: torch.device) -> None:
    check_one_label_is_certified(case, device)


@over(DEPLOYED)
def test_certified_bad_input(case: Case, device: torch.device) -> None:
    check_certified_bad_input(case, device)
