"""Applications: what is reported is measured again, nothing of the caller's is changed, and runs repeat.

What an application reports is its own: so ``tests/unit/test_KEY.py`` has a function ``remeasured(result, **arguments)``
→ name → (reported, measured), which computes each number without the application.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tests.suite.kinds.cases import check_manners, of_kind, over, refused
from tests.suite.kinds.specimens import reprogram, smallest_part
from tests.suite.training.cases import Case, tensors

CASES = of_kind("application", reprogram, smallest_part)


def remeasured(case: Case) -> Callable[..., dict[str, tuple[float, float]]]:
    if case.row.cite == "none":
        return import_module("tests.suite.kinds.formulas").__dict__[case.row.key]
    module = import_module(f"tests.unit.test_{case.row.key}")
    wish = f"tests/unit/test_{case.row.key}.py: want a function `remeasured`, see {__name__}"
    assert hasattr(module, "remeasured"), wish
    return module.remeasured


def modules_of(arguments: dict[str, Any]) -> list[nn.Module]:
    parts = [part for value in arguments.values() for part in (value if isinstance(value, list) else [value])]
    return [part for part in parts if isinstance(part, nn.Module)]


def check_result_is_measured_again(case: Case, device: torch.device) -> None:
    for dtype in (torch.float32, torch.float64):
        arguments = case.arguments(dtype, device)
        result = case.run(**arguments)
        for tensor in tensors(result):
            assert tensor.device.type == device.type or tensor.dim() == 0
            assert not tensor.requires_grad
        for module in modules_of(arguments):
            module.eval()
        with torch.no_grad():
            found = remeasured(case)(result, **arguments)
        assert found, "nothing is measured again"
        for name, (reported, seen) in found.items():
            assert abs(reported - seen) <= 1e-6 * max(1.0, abs(seen)), f"{name}: reported {reported}, measured {seen}"


def check_application_manners(case: Case, device: torch.device) -> None:
    arguments = case.arguments(device=device)
    given = tensors([value for value in arguments.values() if not isinstance(value, nn.Module)])
    check_manners(lambda: case.run(**arguments), modules_of(arguments), given)


def check_application_bad_input(case: Case, device: torch.device) -> None:
    """NaN in the inputs; labels that are none; numbers out of their range."""
    arguments = case.arguments(device=device)
    for name in ("data", "base", "x"):
        if name not in arguments:
            continue
        value = arguments[name]
        x, y = value if isinstance(value, tuple) else (value, None)
        hole = x.clone().index_fill_(0, torch.tensor([1], device=x.device), torch.nan)
        wrong: list[Any] = [hole if y is None else (hole, y), x.tolist() if y is None else (x, y[:-1])]
        wrong.append(x.double() if y is None else (x, torch.full_like(y, -1)))
        for bad in wrong:
            with refused(f"({name}|x|y)", name):
                case.run(**{**arguments, name: bad})
    for name, bad in (("steps", 0), ("epochs", -1), ("lr", 0.0), ("eps", -1.0), ("sigma", -1.0)):
        if case.takes(name):
            with refused(name, bad):
                case.run(**case.arguments(device=device, **{name: bad}))


@over(CASES)
def test_result_is_measured_again(case: Case, device: torch.device) -> None:
    check_result_is_measured_again(case, device)


@over(CASES)
def test_application_manners(case: Case, device: torch.device) -> None:
    check_application_manners(case, device)


@over(CASES)
def test_application_bad_input(case: Case, device: torch.device) -> None:
    check_application_bad_input(case, device)
