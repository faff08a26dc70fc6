"""What every verifier of semantic changes promises: (model, x, y, *, change, low, high) → Certificate."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.teaching.catalogue import Row, rows
from robustlab.verification.semantic.colors import BrightnessContrast, Hue
from robustlab.verification.semantic.motion import Occlusion, Rotation
from tests.pretend.twins import twins
from tests.suite.models import seeded
from tests.suite.test_no_side_effects import assert_unchanged, snapshot

VERIFIERS = [row for row in rows("verifier", done=True) if row.folder == "verification/semantic"]
CHANGES: dict[str, dict[str, Any]] = {
    "hue": {"change": Hue(), "low": -0.02, "high": 0.03, "splits": 2},
    "contrast": {"change": BrightnessContrast(), "low": (-0.02, -0.05), "high": (0.02, 0.05)},
    "rotation": {"change": Rotation(), "low": -1.0, "high": 2.0},
    "occlusion": {"change": Occlusion(2)},
}
each = pytest.mark.parametrize("row", VERIFIERS, ids=lambda row: row.key)
each_change = pytest.mark.parametrize("name", CHANGES)


def problem(n: int = 6, device: torch.device | str = "cpu") -> tuple[nn.Module, Tensor, Tensor]:
    """A small net in training mode with one frozen parameter, images, and labels of which some are wrong."""

    def build() -> nn.Module:
        convolution = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(27, 3))

    model = seeded(build, 0).double().to(device)
    x = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    y = model.eval()(x).argmax(dim=1)
    next(model.parameters()).requires_grad_(False)
    y[2::3] = (y[2::3] + 1) % 3
    return model.train(), x, y


def run(row: Row, model: nn.Module, x: Tensor, y: Tensor | None, **how: Any) -> Certificate:
    return getattr(import_module(str(row.module)), row.key)(model, x, y, **how)


@each
@each_change
def test_wrong_labels_are_their_own_counterexamples_and_rows_stand_alone(row: Row, name: str) -> None:
    model, x, y = problem()
    before = snapshot(model, x, y)
    found = run(row, model, x, y, **CHANGES[name])
    assert_unchanged(before, model, x, y)
    assert bool(found.falsified[2::3].all()) and found.counterexample is not None
    assert torch.equal(found.counterexample[2], x[2]) and bool((found.radius[2::3] == 0).all())
    assert bool(found.verified.any()), "a test of nothing cannot fail"
    for k in range(len(x)):
        alone = run(row, model, x[k : k + 1], y[k : k + 1], **CHANGES[name])
        assert bool(alone.verified[0] == found.verified[k]) and bool(alone.falsified[0] == found.falsified[k])
    assert len(run(row, model, x[:0], y[:0], **CHANGES[name])) == 0
    own = run(row, model, x, None, **CHANGES[name])
    assert bool((own.verified | own.falsified | own.unknown).all()) and not bool((own.falsified & found.verified).any())


@each
@each_change
def test_twin(row: Row, name: str) -> None:
    twins(lambda device: run(row, *problem(3, device), **CHANGES[name]), rtol=1e-9, atol=1e-9)


@each
def test_bad_input_is_named(row: Row) -> None:
    model, x, y = problem()
    holed = x.clone()
    holed[1, 0, 0, 0] = torch.nan
    for inputs, labels, message in ((holed, y, "x"), (x * 255, y, "x"), (x, y + 3, "y"), (x[0], y[:1], "x")):
        with pytest.raises(ValueError, match=message):
            run(row, model, inputs, labels, **CHANGES["hue"])
