"""What the suites of the smaller kinds run: each finished method of a kind, and specimens that keep all promises.

A method falls under its kind's suite by its catalogue row alone. The specimens are small honest methods of
``specimens.py``: with them a suite is more than a promise where the catalogue has no finished method of its kind yet.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.teaching.catalogue import KINDS, Row, rows
from tests.suite.models import seeded
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.training.cases import Case, same, tensors

CPU = torch.device("cpu")


def of_kind(kind: str, *specimens: Callable[..., Any], **quick: dict[str, Any]) -> list[Case]:
    """A case for each finished method of a kind, and for each specimen; ``quick`` holds the specimens' arguments."""
    assert kind in KINDS
    found = [Case(row, getattr(import_module(str(row.module)), row.key)) for row in rows(kind, done=True)]
    return found + [specimen(kind, function, **quick.get(function.__name__, {})) for function in specimens]


def specimen(kind: str, function: Callable[..., Any], **quick: Any) -> Case:
    """A case for a function of the tests."""
    row = Row(key=function.__name__, title=function.__name__, cite="none", kind=kind, chapter="01", quick=quick)
    return Case(row, function)


def over(cases: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test over these cases."""
    return pytest.mark.parametrize("case", list(cases), ids=str)


def check_manners(
    run: Callable[[], Any], modules: Sequence[nn.Module], given: Sequence[Tensor], own: Callable[[Any], Any] = tensors
) -> None:
    """Nothing of the caller's is changed, the global random state neither read nor moved, and no memory shared.

    What is ``own`` of a result, by default all of it, is overwritten in the end.

    Modules are in training mode but for one part, and one of their parameters is frozen.
    """
    for module in modules:
        module.train()
        next(module.children(), module).eval()
        for p in list(module.parameters())[:1]:
            p.requires_grad_(False)
    together = nn.ModuleList(modules)
    torch.manual_seed(1)
    before = snapshot(together, *given)
    first = run()
    assert_unchanged(before, together, *given)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002
    random.seed(4)
    before = snapshot(together, *given)
    assert same(first, run()), "the same arguments gave another result"
    with torch.no_grad():
        for tensor in tensors(own(first)):
            if not tensor.is_inference():
                tensor.zero_()
    assert_unchanged(before, together, *given)


@contextmanager
def refused(name: str, what: object) -> Iterator[None]:
    """One clear error that begins with the argument's name."""
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: ") as caught:
        yield
    assert type(caught.value) in (TypeError, ValueError), f"{name} = {what}"


def affine_net(weight: Tensor, bias: Tensor) -> nn.Module:
    """Flatten, W·x + b."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer).eval()


def normed_net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A net with batch norm and dropout for 1×4×4 images of three classes, smooth in its weights."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.Softplus(), nn.Dropout(0.1),
            nn.Flatten(), nn.Linear(12, 3),
        )  # fmt: skip

    return seeded(build, seed).to(dtype)
