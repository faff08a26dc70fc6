"""Objectives for fit(): the loss is the formula, its gradient is right, and training is a function of its arguments.

A trainer is a function of keyword arguments alone that returns an objective (model, x, y, *, ids, seed) → loss. Its
formula stands in its own test: ``tests/unit/test_KEY.py`` has a function ``formula(model, x, y, *, ids, seed,
**arguments)`` that computes the loss without the library's objective, on a model in evaluation mode. A row of the
dimension "graph" is given a net on one graph, and nodes in place of images.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.models import OnGraph, build
from robustlab.training.fit import fit
from robustlab.training.resuming import name_of
from tests.suite.kinds.cases import normed_net, of_kind, over, refused
from tests.suite.kinds.specimens import gaussian_noise
from tests.suite.models import seeded
from tests.suite.other_inputs import graphs
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.training.cases import Case, same

DATA = {"x", "data", "base"}  # trainers that are given the data themselves are in the suite beside this one
CASES = [case for case in of_kind("trainer", gaussian_noise) if not DATA & set(case.parameters)]


def objective(case: Case, **changes: Any) -> Callable[..., Tensor]:
    """A fresh objective: one that keeps a state starts anew."""
    return case.function(**{**dict(case.row.quick), **needed(case), **changes})


def needed(case: Case) -> dict[str, Any]:
    """What a trainer cannot do without."""
    plain = {"eps": 0.1, "surrogates": [Waves(), Waves(0.4)]}
    return {name: value for name, value in plain.items() if case.takes(name) and name not in case.row.quick}


class Waves(nn.Module):
    """A surrogate of any dtype on any device, without parameters: scores of three classes, waves over the input."""

    def __init__(self, phase: float = 0.0) -> None:
        super().__init__()
        self.phase = phase

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1) - 0.5
        place = torch.arange(flat.shape[1], device=x.device, dtype=x.dtype) + 1
        pace = 0.7 + 0.9 * torch.arange(3, device=x.device, dtype=x.dtype)
        return flat @ torch.cos(place[:, None] * pace + self.phase)


def formula(case: Case) -> Callable[..., Tensor]:
    """The independent computation of the loss."""
    if case.row.cite == "none":
        return import_module("tests.suite.kinds.formulas").__dict__[case.row.key]
    module = import_module(f"tests.unit.test_{case.row.key}")
    assert hasattr(module, "formula"), f"tests/unit/test_{case.row.key}.py: want a function `formula`, see {__name__}"
    return module.formula


def problem(case: Case, device: torch.device, n: int = 6) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(n) % 3).to(device)
    ids = torch.arange(n, device=device) + 2
    if case.row.dims == ("graph",):
        return on_graph(n).to(device), ids - 2, y, ids
    x = torch.rand(n, 1, 4, 4, generator=generator, dtype=torch.float64).to(device)
    return normed_net().to(device), x, y, ids


def on_graph(n: int) -> nn.Module:
    """A net with dropout on a graph of n nodes."""
    features, adjacency = graphs(1, nodes=n)
    net = seeded(lambda: build("graph_net", features=features.shape[2], classes=3, hidden=8, dropout=0.1))
    return OnGraph(net.double(), features[0], adjacency[0]).eval()


def single(x: Tensor) -> Tensor:
    """In float32, where x is of floats."""
    return x.float() if x.is_floating_point() else x


def check_loss_is_the_formula(case: Case, device: torch.device) -> None:
    for seed in (0, 3):
        model, x, y, ids = problem(case, device)
        loss = objective(case)(model, x, y, ids=ids, seed=seed)
        assert loss.shape == () and loss.requires_grad
        want = formula(case)(model, x, y, ids=ids, seed=seed, **{**dict(case.row.quick), **needed(case)})
        torch.testing.assert_close(loss.detach(), want.detach(), rtol=1e-6, atol=1e-9)


def check_gradient(case: Case, device: torch.device, step: float = 1e-6) -> None:
    """Along random directions of the weights, by differences of the loss itself.

    What is crafted is held constant by the gradient, as Danskin's theorem has it; in ℓ∞ a small step moves it not at
    all but where a sign flips.
    """
    model, x, y, ids = problem(case, device)
    parameters = list(model.parameters())
    loss = objective(case)(model, x, y, ids=ids, seed=1)
    slopes = torch.autograd.grad(loss, parameters)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(device) for p in parameters]
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for p, way in zip(moved.parameters(), ways, strict=True):
                    p.add_(way, alpha=sign * step)
            values.append(float(objective(case)(moved, x, y, ids=ids, seed=1).detach()))
        rise = (values[0] - values[1]) / (2 * step)
        slope = sum(float((g * way).sum()) for g, way in zip(slopes, ways, strict=True))
        assert abs(rise - slope) <= 1e-4 * max(1.0, abs(slope)), f"slope {slope:.6g}, by differences {rise:.6g}"


def check_objective_manners(case: Case, device: torch.device) -> None:
    """In evaluation mode a loss changes nothing; and it reads no global random state."""
    model, x, y, ids = problem(case, device)
    next(model.parameters()).requires_grad_(False)
    x.requires_grad_(x.is_floating_point())
    ours, losses = objective(case), []
    for start in (1, 2):
        torch.manual_seed(start)
        before = snapshot(model, x, y, ids)
        losses.append(objective(case)(model, x, y, ids=ids, seed=5).detach())
        assert_unchanged(before, model, x, y, ids)
    assert torch.equal(*losses), "the global random state decides"
    model.train()
    flags = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    ours(model, x, y, ids=ids, seed=5)
    assert flags == ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()])
    assert x.grad is None and all(p.grad is None for p in model.parameters())


def trained(case: Case, device: torch.device, seed: int, start: int = 0) -> nn.Module:
    model, x, y, _ = problem(case, device, n=12)
    model, x = model.float(), single(x)
    torch.manual_seed(start)
    before = torch.get_rng_state(), x.clone(), y.clone()
    fit(model, (x, y), objective=objective(case), epochs=2, batch_size=5, seed=seed)
    assert torch.equal(torch.get_rng_state(), before[0]), "training moved the global random state"
    assert torch.equal(x, before[1]) and torch.equal(y, before[2]), "training changed the data"
    return model


def check_same_seed_same_weights(case: Case, device: torch.device) -> None:
    first, again, other = trained(case, device, 0), trained(case, device, 0, start=9), trained(case, device, 1)
    assert same(first, again), "the same seed gave other weights"
    assert not same(first, other), "the seed does not matter"
    assert all(bool(p.isfinite().all()) for p in first.parameters())


def check_training_bad_data(case: Case, device: torch.device) -> None:
    model, x, y, _ = problem(case, device)
    wrong = {"float32": (x.float(), y), "too few labels": (x, y[:-1]), "labels": (x, y + 3)}
    if x.is_floating_point():
        wrong["NaN"] = (x.clone().index_fill_(0, torch.tensor([1], device=device), torch.nan), y)
    else:
        wrong["no such node"] = (x + 1, y)
    for what, data in wrong.items():
        before = snapshot(model)
        with refused("(x|y|data)", what):
            fit(model, data, objective=objective(case), epochs=1)
        assert_unchanged(before, model)


def check_arguments_are_told(case: Case, device: torch.device) -> None:
    """By them a training is told from another when it is to be resumed."""
    first, again = objective(case), objective(case)
    assert list(first.arguments) == list(case.parameters) and name_of(first) == name_of(again)
    numbers = {name: value for name, value in first.arguments.items() if isinstance(value, float) and value}
    for name, value in numbers.items():
        with contextlib.suppress(ValueError):  # a number that others bind
            assert name_of(objective(case, **{name: 0.9 * value})) != name_of(first), name


def check_mixed_precision(case: Case, device: torch.device) -> None:
    """Convolutions and products in bfloat16: near the loss in full precision, which stays the precision of losses."""
    model, x, y, ids = problem(case, device)
    model, x = model.float(), single(x)
    full = objective(case)(model, x, y, ids=ids, seed=0)
    with torch.autocast(device.type, torch.bfloat16):
        mixed = objective(case)(model, x, y, ids=ids, seed=0)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.detach(), full.detach(), rtol=0.05, atol=0)
    slopes = torch.autograd.grad(mixed, list(model.parameters()))
    assert all(slope.dtype == torch.float32 and bool(slope.isfinite().all()) for slope in slopes)


@over(CASES)
def test_loss_is_the_formula(case: Case, device: torch.device) -> None:
    check_loss_is_the_formula(case, device)


@over(CASES)
def test_arguments_are_told(case: Case, device: torch.device) -> None:
    check_arguments_are_told(case, device)


@over(CASES)
def test_mixed_precision(case: Case, device: torch.device) -> None:
    check_mixed_precision(case, device)


@over(CASES)
def test_gradient(case: Case, device: torch.device) -> None:
    check_gradient(case, device)


@over(CASES)
def test_objective_manners(case: Case, device: torch.device) -> None:
    check_objective_manners(case, device)


@pytest.mark.slow
@over(CASES)
def test_same_seed_same_weights(case: Case, device: torch.device) -> None:
    check_same_seed_same_weights(case, device)


@over(CASES)
def test_training_bad_data(case: Case, device: torch.device) -> None:
    check_training_bad_data(case, device)
