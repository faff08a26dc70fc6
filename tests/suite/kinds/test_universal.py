"""Universal attacks: one δ within the budget, fooling counted against the clean prediction, and on images never seen.

A universal attack is a function (victim, x, y=None, *, norm, eps, target=None, seed, …) → UniversalResult.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.attacker.results import UniversalResult
from robustlab.geometry.norms import NORMS, get_norm
from robustlab.teaching.catalogue import Row
from tests.suite.cases import Case as AttackCase
from tests.suite.kinds.cases import check_manners, of_kind, refused
from tests.suite.kinds.specimens import common_gradient, random_directions
from tests.suite.models import Counting, seeded
from tests.suite.product import one_of

SHAPE, CLASSES = (2, 4, 4), 3
# Where one δ fools most images of ``problem``, and random ones of that length do not.
EPS = {"l1": 6.0, "l2": 1.2, "linf": 0.2}


@dataclass(frozen=True)
class Case:
    """One universal attack in one norm, untargeted or targeted."""

    row: Row
    attack: Any
    norm: str
    targeted: bool

    def __str__(self) -> str:
        return f"{self.row.key}-{self.norm}{'-targeted' if self.targeted else ''}"

    takes = AttackCase.takes

    def run(self, model: Any, x: Tensor, y: Tensor | None = None, **changes: Any) -> UniversalResult:
        args: dict[str, Any] = {key: value for key, value in self.row.quick.items() if key not in NORMS}
        args.update(self.row.quick.get(self.norm, {}))  # type: ignore[call-overload]
        if self.takes("norm"):
            args["norm"] = self.norm
        if self.targeted:
            args["target"] = 2
        return self.attack(model, x, y, **{"eps": EPS[self.norm], **args, **changes})


def _cases() -> list[Case]:
    found = []
    for case in of_kind("universal", common_gradient, random_directions):
        row, of_tests = case.row, case.row.cite == "none"
        norms = ("l1", "l2", "linf") if of_tests else row.norms or ("linf",)
        for targeted in (False, True) if row.targeted or (of_tests and case.takes("target")) else (False,):
            found += [Case(row, case.function, norm, targeted) for norm in norms]
    return found


CASES = _cases()


class Sided(nn.Module):
    """Mostly class 0, from which one direction leads to class 1, and another to class 2; with bends of its own."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        d = torch.Size(SHAPE).numel()
        self.bend = nn.Sequential(nn.Linear(d, 12), nn.Softplus(), nn.Linear(12, CLASSES))
        self.straight = nn.Linear(d, CLASSES)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            self.straight.weight.copy_(torch.randn(CLASSES, d, generator=generator))
            self.straight.weight[0] = 0
            self.straight.bias.copy_(torch.tensor([1.5, 0.0, 0.0]))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        flat = (x - 0.5).flatten(1)
        return self.straight(flat) + 0.3 * self.bend(flat)


def problem(
    device: torch.device, n: int = 10, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 + 0.25 * torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
    return seeded(lambda: Sided(dtype)).to(device), x.clamp(0, 1).to(device, dtype)


def fooled(case: Case, model: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """By the definition: x + δ, clipped to the box, is not what the clean image is; or is the target."""
    with torch.no_grad():
        now = model((x + delta).clamp(0, 1)).argmax(dim=1)
        return now == 2 if case.targeted else now != model(x).argmax(dim=1)


def check_delta_and_success(case: Case, device: torch.device, dtype: torch.dtype = torch.float64) -> None:
    """The form; the budget, kept by every image; success as the caller measures it, whatever the labels say."""
    model, x = problem(device, dtype=dtype)
    with torch.no_grad():
        led_to = model((x + case.run(model, x).delta).clamp(0, 1)).argmax(dim=1)
        y = led_to.clone()  # labels may be wrong: here what δ makes of the images, but for some
        y[::2] = model(x[::2]).argmax(dim=1)
        y = torch.where(y == 2, 1, y) if case.targeted else y
    eps = EPS[case.norm]
    for labels in (None, y):
        result = case.run(model, x, labels)
        assert isinstance(result, UniversalResult)
        assert result.delta.shape == x.shape[1:] and (result.delta.dtype, result.delta.device) == (x.dtype, x.device)
        assert bool(result.delta.isfinite().all()) and not result.delta.requires_grad
        norm = get_norm(case.norm)
        assert float(norm.length(result.delta[None])) <= eps * (1 + 1e-5), "δ is longer than ε"
        moved = (x + result.delta).clamp(0, 1) - x
        assert bool((norm.length(moved) <= eps * (1 + 1e-5)).all())
        for name, value in result.distances.items():
            assert abs(float(value) - float(get_norm(name).length(result.delta[None]))) < 1e-4
        assert result.success.dtype == torch.bool and result.success.device == x.device
        assert torch.equal(result.success, fooled(case, model, x, result.delta)), "success is not what the model says"
    assert bool(result.success.any()), "nobody is fooled where most could be"


def check_held_out(case: Case, device: torch.device) -> None:
    """On images that it never saw δ fools more than half, and many more than random ones of its length."""
    model, x = problem(device, n=20)
    result = case.run(model, x)
    _, unseen = problem(device, n=60, seed=9)
    rate = float(fooled(case, model, unseen, result.delta).double().mean())
    generator = torch.Generator().manual_seed(0)
    control = []
    for _ in range(5):
        noise = torch.randn(x.shape[1:], generator=generator, dtype=x.dtype).to(device)
        noise = noise.sign() if case.norm == "linf" else noise
        noise = noise * EPS[case.norm] / get_norm(case.norm).length(noise[None])
        control.append(float(fooled(case, model, unseen, noise).double().mean()))
    assert rate >= 0.5, f"fools {rate:.0%} of images that it never saw"
    assert rate >= max(control) + 0.2, f"{rate:.0%} of unseen images, random δ fool up to {max(control):.0%}"


def check_universal_counts(case: Case, device: torch.device) -> None:
    model, x = problem(device)
    seen = Counting(model)
    result = case.run(seen, x)
    assert result.queries.shape == result.gradients.shape == (len(x),)
    assert int(result.queries.sum()) == seen.forwards, "queries"
    assert int(result.gradients.sum()) == seen.backwards, "gradients"
    assert seen.low >= 0 and seen.high <= 1, "a query outside the box"


def check_edges(case: Case, device: torch.device) -> None:
    """ε = 0 changes nothing and fools nobody; an empty batch asks nothing."""
    model, x = problem(device)
    result = case.run(model, x, eps=0.0)
    assert bool((result.delta == 0).all())
    assert torch.equal(result.success, fooled(case, model, x, torch.zeros_like(x[0])))
    seen = Counting(model)
    result = case.run(seen, x[:0])
    assert result.success.shape == (0,) and bool((result.delta == 0).all()) and seen.calls == 0


def check_universal_manners(case: Case, device: torch.device) -> None:
    model, x = problem(device)
    x.requires_grad_(True)
    check_manners(lambda: case.run(model, x), [model], [x])


def check_universal_bad_input(case: Case, device: torch.device) -> None:
    model, x = problem(device, n=4)
    y = torch.zeros(4, dtype=torch.int64, device=device)
    hole = x.clone().index_fill_(0, torch.tensor([1], device=device), torch.nan)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("x", {"x": x * 255}), ("x", {"x": hole}), ("x", {"x": x.tolist()}), ("x", {"x": x.float()}),
        ("y", {"y": y[:-1]}), ("y", {"y": y + CLASSES}), ("eps", {"eps": -0.1}), ("eps", {"eps": float("nan")}),
    ]  # fmt: skip
    if case.takes("norm"):
        wrong.append(("norm", {"norm": "l3"}))
    if case.targeted:
        wrong.append(("target", {"target": CLASSES}))
    for name, changes in wrong:
        given = {"x": x, "y": y, **changes}
        with refused(name, changes[name] if name in ("eps", "norm") else "…"):
            case.run(model, given.pop("x"), given.pop("y"), **given)


@one_of(CASES, dtype=(torch.float64, torch.float32))
def test_delta_and_success(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    check_delta_and_success(case, device, dtype)


@one_of(CASES)
def test_held_out(case: Case, device: torch.device) -> None:
    check_held_out(case, device)


@one_of(CASES)
def test_universal_counts(case: Case, device: torch.device) -> None:
    check_universal_counts(case, device)


@one_of(CASES)
def test_edges(case: Case, device: torch.device) -> None:
    check_edges(case, device)


@one_of(CASES)
def test_universal_manners(case: Case, device: torch.device) -> None:
    check_universal_manners(case, device)


@one_of(CASES)
def test_universal_bad_input(case: Case, device: torch.device) -> None:
    check_universal_bad_input(case, device)
