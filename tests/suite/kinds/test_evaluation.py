"""Evaluations: (model, x, y), a pair and a loader alike; numbers that the caller measures again; counts; manners."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlab.attacker.victim import Victim
from robustlab.attacks import pgd, spatial
from robustlab.defenses.robustness_claim import Claim
from robustlab.evaluation import evaluate
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.kinds.cases import check_manners, of_kind, over, refused, specimen
from tests.suite.models import Counting, mlp
from tests.suite.training.cases import Case

SHAPE, N, EPS = (1, 4, 4), 9, 0.1
# What an evaluation may ask for beside model and data.
KNOWN = {"eps": EPS, "norm": "linf", "claim": Claim(eps=EPS), "attack": pgd}
# The protocol in small: a method's own length is not what is looked at here.
SHORT: dict[str, dict[str, Any]] = {
    "autoattack": {"attacks": ["apgd-ce"]},
    "unrestricted": {"attacks": {"random": partial(spatial, search="random", k=3)}},
    "checklist": {"steps": 4, "queries": 5},
    "evaluate": {"eps": [0.0, EPS], "steps": 4},
}

evaluate_row = specimen("evaluation", evaluate)  # a public function without a row of its own
CASES = [*of_kind("evaluation"), evaluate_row]


def problem(device: torch.device, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A small net, and labels of which two are wrong."""
    model = mlp(SHAPE, 4, seed=seed).to(device)
    x = noise_box(N, SHAPE, torch.float64, seed).to(device)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[[1, 6]] = (y[[1, 6]] + 1) % 4
    return model, x, y


def run(case: Case, model: Any, *data: Any, **changes: Any) -> Any:
    short = dict(case.row.quick) | SHORT.get(case.row.key, {})
    needed = {name: value for name, value in KNOWN.items() if case.takes(name)}
    return case.function(model, *data, **(needed | short | changes))


def measured(report: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float = EPS) -> dict[str, tuple[float, float]]:
    """Name → what the report says, and what the caller sees in batches of four."""
    with torch.no_grad():
        right = torch.cat([model(part).argmax(dim=1) for part in x.split(4)]) == y
    found: dict[str, tuple[float, float]] = {}
    if hasattr(report, "clean_accuracy"):
        found["clean accuracy"] = (report.clean_accuracy, float(right.double().mean()))
    if hasattr(report, "eps") and hasattr(report, "accuracy"):  # a curve from ε = 0
        found["accuracy at 0"] = (float(report.accuracy[0]), float(right.double().mean()))
        found["least ε"] = (float(report.eps[0]), 0.0)
    if getattr(report, "x_adv", None) is not None:
        with torch.no_grad():
            stands = torch.cat([model(part).argmax(dim=1) for part in report.x_adv.split(4)]) == y
        found["robust accuracy"] = (report.robust_accuracy, float(stands.double().mean()))
        found["rows that differ"] = (float((report.robust.to(stands.device) != stands).sum()), 0.0)
        beyond = get_norm(report.norm).length(report.x_adv - x).amax() - eps
        found["beyond ε"] = (float(beyond.clamp_min(1e-9)), 1e-9)
    if hasattr(report, "clean"):
        found["clean mistakes"] = (float((~report.clean.correct).sum()), float((~right).sum()))
    for check in getattr(report, "checks", ()):
        if check.name == "clean accuracy is reported, and right":
            found["clean accuracy"] = (check.evidence["here"], float(right.double().mean()))
    return found


def check_numbers(case: Case, device: torch.device) -> None:
    model, x, y = problem(device)
    found = measured(run(case, model, x, y), model, x, y)
    assert found, "nothing in the report can be measured again"
    for name, (reported, seen) in found.items():
        assert reported == seen, f"{name}: reported {reported}, measured {seen}"


def check_forms_of_data(case: Case, device: torch.device) -> None:
    """(model, x, y), a pair, and a loader give the same numbers; so does another batch size."""
    model, x, y = problem(device)
    plain = numbers(run(case, model, x, y))
    forms: dict[str, tuple[Any, ...]] = {
        "a pair": ((x, y),),
        "a loader": (DataLoader(TensorDataset(x, y), batch_size=4),),
        "a Victim": (x, y),
    }
    for what, data in forms.items():
        if what == "a Victim" and case.row.key == "checklist":
            continue  # it looks at the model itself
        ours = numbers(run(case, Victim(model) if what == "a Victim" else model, *data))
        shared = set(plain) & set(ours)
        assert shared and all(alike(plain[name], ours[name]) for name in shared), f"{what} gives other numbers"
    if case.takes("batch_size"):
        ours = numbers(run(case, model, x, y, batch_size=4))
        assert all(alike(value, ours[name]) for name, value in plain.items()), "the batch size moves the numbers"


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal, but for rounding."""
    return a.shape == b.shape and bool(torch.isclose(a.double(), b.double(), rtol=1e-9, atol=1e-12).all())


def numbers(report: Any) -> dict[str, Tensor]:
    """The tensors and numbers of a report, but neither seconds nor counts, which first looks at each portion raise."""
    found: dict[str, Tensor] = {}
    for name in ("broken_by", "radius", "accuracy", "robust", "threshold"):
        if hasattr(report, name):
            found[name] = torch.as_tensor(getattr(report, name)).cpu()
    for i, check in enumerate(getattr(report, "checks", ())):
        found[f"check {i}"] = torch.tensor([float(value) for value in check.evidence.values()])
    for name, part in {"clean": getattr(report, "clean", None), **_parts(report)}.items():
        if part is not None:
            found |= {f"{name} {key}": value.cpu() for key, value in vars(part).items()}
    assert found
    return found


def _parts(report: Any) -> dict[str, Any]:
    attacks = getattr(report, "attacks", None)
    return attacks if isinstance(attacks, dict) else {}


def check_counts(case: Case, device: torch.device) -> None:
    """Where queries are reported, they are those that an independent module counts."""
    model, x, y = problem(device)
    seen = Counting(model)
    report = run(case, seen, x, y)
    if hasattr(report, "queries"):
        assert int(report.queries.sum()) == seen.forwards, "queries"
        assert int(report.gradients.sum()) == seen.backwards, "gradients"
    assert seen.low >= 0 and seen.high <= 1, "a query outside the box"


def check_zero_budget(case: Case, device: torch.device) -> None:
    """At ε = 0 the robust accuracy is the clean one."""
    model, x, y = problem(device)
    if not case.takes("eps"):
        return
    report = run(case, model, x, y, eps=0.0)
    clean = float((model(x).argmax(dim=1) == y).double().mean())
    robust = report.robust_accuracy if hasattr(report, "robust_accuracy") else float(report.accuracy[-1])
    assert robust == clean


def check_few_classes(case: Case, device: torch.device) -> None:
    """Fewer classes than targets: the number is honest, down to two."""
    for classes in (2, 3):
        model = mlp(SHAPE, classes).to(device)
        _, x, _ = problem(device)
        with torch.no_grad():
            y = model(x).argmax(dim=1)
        whole = {"attacks": ["apgd-t", "fab-t"]} if case.row.key == "autoattack" else {}
        for name, (reported, seen) in measured(run(case, model, x, y, **whole), model, x, y).items():
            assert reported == seen, f"{classes} classes, {name}: reported {reported}, measured {seen}"


def check_evaluation_manners(case: Case, device: torch.device) -> None:
    model, x, y = problem(device)
    check_manners(lambda: numbers(run(case, model, x, y)), [model], [x, y])


def check_bad_data(case: Case, device: torch.device) -> None:
    model, x, y = problem(device)
    hole = x.clone()
    hole[2, 0, 0, 0] = torch.nan
    wrong: dict[str, tuple[Tensor, Tensor]] = {
        "x": (x[:0], y[:0]), "NaN": (hole, y), "a box of 255": (x * 255, y), "y": (x, y[:-1]),
        "floats": (x, y.double()), "K": (x, y + 4),
    }  # fmt: skip
    if case.row.key == "checklist":
        del wrong["a box of 255"]  # its first question is about units
    for what, data in wrong.items():
        with refused("(x|y|data)", what):
            run(case, model, *data)


@over(CASES)
def test_numbers(case: Case, device: torch.device) -> None:
    check_numbers(case, device)


@pytest.mark.slow
@over(CASES)
def test_forms_of_data(case: Case, device: torch.device) -> None:
    check_forms_of_data(case, device)


@over(CASES)
def test_counts(case: Case, device: torch.device) -> None:
    check_counts(case, device)


@over(CASES)
def test_zero_budget(case: Case, device: torch.device) -> None:
    check_zero_budget(case, device)


@pytest.mark.slow
@over(CASES)
def test_few_classes(case: Case, device: torch.device) -> None:
    check_few_classes(case, device)


@over(CASES)
def test_evaluation_manners(case: Case, device: torch.device) -> None:
    check_evaluation_manners(case, device)


@over(CASES)
def test_bad_data(case: Case, device: torch.device) -> None:
    check_bad_data(case, device)
