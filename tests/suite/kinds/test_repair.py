"""Repairs: the model handed in stays as it is; its copy has the same architecture and mode, and still works."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustlab.attacker.results import Repair
from robustlab.attacker.victim import accuracy
from tests.suite.kinds.cases import check_manners, over
from tests.suite.training.cases import DETECTORS, Case, base, same, tensors

CASES = [case for case in DETECTORS if case.row.kind == "repair"]


def repaired(result: Any) -> nn.Module:
    """The repaired model of what a repair returns."""
    assert isinstance(result, Repair) and isinstance(result.model, nn.Module)
    return result.model


def modules_of(arguments: dict[str, Any]) -> list[nn.Module]:
    parts = [part for value in arguments.values() for part in (value if isinstance(value, list) else [value])]
    return [part for part in parts if isinstance(part, nn.Module)]


def check_repair_manners(case: Case, device: torch.device) -> None:
    arguments = case.arguments(device=device)
    modules = modules_of(arguments)
    given = tensors([value for value in arguments.values() if not isinstance(value, nn.Module)])
    check_manners(lambda: case.run(**arguments), modules, given, own=repaired)
    model = repaired(case.run(**arguments))
    assert not {id(p) for p in model.parameters()} & {id(p) for m in modules for p in m.parameters()}


def check_architecture_and_mode(case: Case, device: torch.device) -> None:
    """The same tensors by name, shape, dtype and device; the same flags; and something was repaired."""
    for training in (False, True):
        arguments = case.arguments(device=device)
        (model, *_) = modules_of(arguments)
        model.train(training)
        next(model.children()).eval()
        frozen = next(model.parameters()).requires_grad_(False)
        found = repaired(case.run(**arguments))
        before, after = model.state_dict(), found.state_dict()
        assert set(before) <= set(after), "the architecture has lost a part"
        for name, value in before.items():
            part = after[name]
            assert (part.shape, part.dtype, part.device) == (value.shape, value.dtype, value.device), name
        flags = dict(found.named_modules())
        for name, module in model.named_modules():
            assert type(flags[name]) is type(module) or name == "" or isinstance(flags[name], nn.Sequential), name
            assert flags[name].training == module.training, f"the mode of {name or 'the model'} is another"
        x = base(False)[0][:2].to(device)
        with torch.no_grad():
            assert found.eval()(x).shape == model.eval()(x).shape
        assert not same(found, model), "nothing was repaired"
        assert not frozen.requires_grad


def check_accuracy_is_kept(case: Case, device: torch.device) -> None:
    """On the clean data that the model fits."""
    arguments = case.arguments(device=device)
    (model, *_) = modules_of(arguments)
    x, y = (part.to(device) for part in base(False))
    found = repaired(case.run(**arguments))
    assert accuracy(found, x, y) >= accuracy(model, x, y) - 0.15


@over(CASES)
def test_repair_manners(case: Case, device: torch.device) -> None:
    check_repair_manners(case, device)


@over(CASES)
def test_architecture_and_mode(case: Case, device: torch.device) -> None:
    check_architecture_and_mode(case, device)


@over(CASES)
def test_accuracy_is_kept(case: Case, device: torch.device) -> None:
    check_accuracy_is_kept(case, device)
