"""Every module that is handed to a method is held in evaluation mode with frozen parameters, and put back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import (
    Trigger,
    add_delete,
    biggio_evasion,
    bypass_detectors,
    evaluate_backdoor,
    exposure,
    feature_modification,
    gradient_matching,
    label_flipping,
    on_manifold,
    square,
    statistical_poisoning,
    zo_minmax,
)
from robustlab.attacks.poisoning.exposure import Canary
from robustlab.defenses import spectral_signatures
from robustlab.evaluation import Claim, checklist, unrestricted
from robustlab.models import character_gru
from robustlab.models.linear import fit_linear
from tests.suite.training.cases import images, net, table


class Watched(nn.Module):
    """A module that notes in which mode it was asked, and whether its parameter was free."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.weight, self.seen = inner, nn.Parameter(torch.ones(1)), list[bool]()

    def forward(self, *args: Any, **kw: Any) -> Any:
        free = isinstance(self.weight, nn.Parameter) and self.weight.requires_grad  # functional calls put others there
        self.seen.append(self.training or free)
        return self.inner(*args, **kw)

    def asked(self, *args: Any) -> Any:
        return self(*args)


class Stamp(Trigger):
    """A trigger that notes the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), list[bool]()

    def stamp(self, x: Tensor) -> Tensor:
        self.seen.append(self.training or self.weight.requires_grad)
        return x

    def cross(self, x: Tensor, *, seed: int = 0) -> Tensor:
        return self.stamp(x)


def shifted(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    return x


DATA, TABLE = images(20), table()
CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "surrogate of flips": (lambda: Watched(net()), lambda m: label_flipping(DATA, rate=0.2, model=m)),
    "surrogate of additions": (lambda: Watched(net()), lambda m: add_delete(DATA, rate=0.2, model=m)),
    "surrogate of features": (
        lambda: Watched(net()),
        lambda m: feature_modification(DATA, rate=0.2, eps=0.1, how="adversarial", steps=1, model=m),
    ),
    "surrogate of matching": (
        lambda: Watched(net()),
        lambda m: gradient_matching(DATA, DATA[0][1:2], 0, rate=0.1, steps=1, restarts=1, augment=None, model=m),
    ),
    "augmentation": (
        lambda: Watched(shifted),
        lambda m: gradient_matching(DATA, DATA[0][1:2], 0, rate=0.1, steps=1, restarts=1, augment=m, model=net()),
    ),
    "victim of regression": (
        lambda: Watched(fit_linear(*TABLE)),
        lambda m: statistical_poisoning(TABLE, model=m, rate=0.1),
    ),
    "learner": (lambda: Watched(net()), lambda m: zo_minmax(DATA, model=m, rate=0.2, eps=0.1, steps=1)),
    "language model": (
        lambda: Watched(character_gru(hidden=8)),
        lambda m: exposure(m, Canary("pin ??", "42"), method="sampled", samples=10),
    ),
    "trigger": (Stamp, lambda m: evaluate_backdoor(net(), DATA, m, 0)),
    "model of a detector": (lambda: Watched(net()), lambda m: spectral_signatures(m, DATA, rate=0.1)),
    "manifold of parts": (
        lambda: Watched(lambda z, y: z),
        lambda m: on_manifold(
            net(), *DATA, manifold=SimpleNamespace(encode=lambda x, y: x, decode=m), eps=0.1, steps=1
        ),
    ),
    "method as a density": (
        lambda: Watched(lambda x: x.flatten(1).sum(1)),
        lambda m: biggio_evasion(net(), *DATA, eps=0.1, density=m.asked, steps=1),
    ),
    "partial detector": (
        lambda: Watched(lambda x, at: x.flatten(1).sum(1) - at),
        lambda m: bypass_detectors(net(), *DATA, eps=0.1, detector=partial(m, at=1e6), steps=1),
    ),
    "method as a judge": (
        lambda: Watched(lambda x, y: torch.ones(len(y), dtype=torch.bool)),
        lambda m: unrestricted(net(), *DATA, attacks={"none": keeps}, judge=m.asked),
    ),
    "method as a black box": (lambda: Watched(net()), lambda m: square(Victim(m.asked, access="soft"), *DATA, eps=0.1)),
    "judge": (
        lambda: Watched(lambda x, y: torch.ones(len(y), dtype=torch.bool)),
        lambda m: unrestricted(net(), *DATA, attacks={"none": keeps}, judge=m),
    ),
    "detector of a claim": (
        lambda: Watched(lambda x: -torch.ones(len(x)) + 0 * x.flatten(1).sum(1)),
        lambda m: checklist(net(), *DATA, claim=Claim(eps=0.05, detector=m), steps=4, queries=2),
    ),
    "surrogate of the checklist": (
        lambda: Watched(net()),
        lambda m: checklist(net(), *DATA, claim=Claim(eps=0.05), surrogate=m, steps=4, queries=2),
    ),
}


def keeps(victim: Any, x: Tensor, y: Tensor, *, ids: Tensor) -> Any:
    from robustlab.attacks import pgd

    return pgd(victim, x, y, eps=1e-6, steps=1, ids=ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_is_held_and_put_back(name: str) -> None:
    make, run = CASES[name]
    module = make().train()
    run(module)
    assert module.seen and not any(module.seen), "asked in training mode, or with free parameters"
    assert module.training and module.weight.requires_grad


def test_statistics_of_parts_stand_still() -> None:
    """Batch norm in a manifold's decoder and in a density, both in training mode, moves nothing."""
    decoder = nn.Sequential(nn.BatchNorm2d(DATA[0].shape[1]), nn.Sigmoid()).train()
    density = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(DATA[0][0].numel())).train()
    before = copy.deepcopy([decoder.state_dict(), density.state_dict()])
    manifold = SimpleNamespace(encode=lambda x, y: x, decode=lambda z, y: decoder(z), parts=decoder)
    on_manifold(net(), *DATA, manifold=manifold, eps=0.1, steps=2)
    biggio_evasion(net(), *DATA, eps=0.1, density=partial(dense, density), steps=2)
    for was, module in zip(before, (decoder, density), strict=True):
        assert module.training
        torch.testing.assert_close(module.state_dict(), was, rtol=0, atol=0)


def dense(model: nn.Module, points: Tensor) -> Tensor:
    return model(points).sum(dim=1)
