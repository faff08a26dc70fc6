"""What methods return: arithmetic of AttackResult, and Detection's scores against a brute-force ROC curve."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustlab.attacker.results import AttackResult, Certificate, Detection, PhysicalResult, UniversalResult
from robustlab.defenses.detection.by_score import Scored
from robustlab.defenses.detection.neural_cleanse import Patches
from robustlab.defenses.purification.fine_pruning import Pruning
from robustlab.geometry.norms import measure

PATCHES = Patches(torch.rand(9, 1, 8, 8), torch.rand(9, 1, 8, 8), *torch.rand(3, 9), torch.rand(9) > 0.5)


def result(n: int = 3, won: tuple[bool, ...] = (True, False, True), steps: int = 2) -> AttackResult:
    delta = torch.arange(1.0, n + 1)[:, None] * torch.tensor([0.3, 0.4])
    return AttackResult(
        x_adv=delta,
        success=torch.tensor(won[:n]),
        distances=measure(delta),
        queries=torch.arange(n) + 2,
        gradients=torch.arange(n),
        first_success=torch.arange(n),
        trace={"loss": torch.ones(steps, n)},
    )


def test_radius_is_infinite_where_the_attack_failed() -> None:
    assert result().radius("l2").tolist() == pytest.approx([0.5, math.inf, 1.5])
    assert result().radius("linf").tolist() == pytest.approx([0.4, math.inf, 1.2])
    with pytest.raises(ValueError, match="norm: want"):
        result().radius("l3")


def test_summary() -> None:
    text = result().summary()
    assert text.startswith("2 of 3 succeeded (66.7 %), median distance l0 2, l1 0.7, l2 0.5")
    assert text.endswith("mean queries 3.0, mean gradients 1.0")
    assert result(0).summary() == "0 samples"
    assert result(2, (False, False)).summary().startswith("0 of 2 succeeded (0.0 %); mean")


def test_cat_joins_in_order_and_pads_traces() -> None:
    joined = AttackResult.cat([result(2, steps=3), result(0), result(3, steps=1)])
    assert len(joined) == 5
    assert joined.queries.tolist() == [2, 3, 2, 3, 4]
    assert joined.distances["l2"].tolist() == pytest.approx([0.5, 1.0, 0.5, 1.0, 1.5])
    assert joined.trace is not None and joined.trace["loss"].shape == (3, 5)
    assert joined.trace["loss"][:, 2:].isnan().sum() == 6
    assert AttackResult.cat([dataclasses.replace(result(1), trace=None), result(1)]).trace is None
    with pytest.raises(ValueError, match="parts: want at least one"):
        AttackResult.cat([])


def test_frozen_and_movable(device: torch.device) -> None:
    there = result().to(device)
    assert there.x_adv.device.type == device.type and there.distances["l1"].device.type == device.type
    assert there.trace["loss"].device.type == device.type
    with pytest.raises(dataclasses.FrozenInstanceError):
        there.success = there.success  # type: ignore[misc]
    universal = UniversalResult(torch.ones(2), torch.ones(3) > 0, {}, torch.ones(3), torch.ones(3)).to(device)
    assert universal.delta.device.type == device.type
    assert "3 of 3 succeeded (100.0 %); mean queries 1.0" in universal.summary()


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12))
def test_auroc_is_the_area_under_the_roc_curve(data: list[tuple[int, bool]]) -> None:
    """The area by the trapezoidal rule over all thresholds."""
    scores = torch.tensor([float(s) for s, _ in data])
    truth = torch.tensor([t for _, t in data])
    found = Detection(scores, scores > 2, 2.0).score(truth)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        assert math.isnan(found["auroc"])
        return
    points = [(0.0, 0.0)]
    for threshold in sorted({s for s, _ in data}, reverse=True):
        hit = sum(t for s, t in data if s >= threshold) / positives
        alarm = sum(not t for s, t in data if s >= threshold) / negatives
        points.append((alarm, hit))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    assert found["auroc"] == pytest.approx(area)
    assert found["true_positive_rate"] == pytest.approx(sum(t for s, t in data if s > 2) / positives)
    assert found["false_positive_rate"] == pytest.approx(sum(not t for s, t in data if s > 2) / negatives)
    flagged = [t for s, t in data if s > 2]
    assert (
        math.isnan(found["precision"])
        if not flagged
        else found["precision"] == pytest.approx(sum(flagged) / len(flagged))
    )


def test_detection_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"is_poison: want shape \(3,\), got \(2,\)"):
        Detection(torch.ones(3), torch.ones(3) > 0, 0.5).score(torch.tensor([True, False]))


def certificate(verified: list[bool], falsified: list[bool]) -> Certificate:
    return Certificate(torch.tensor(verified), torch.tensor(falsified), torch.ones(len(verified)), "linf", "crown")


def test_a_certificate_says_one_thing_of_each_sample() -> None:
    found = certificate([True, False, False], [False, True, False])
    assert found.unknown.tolist() == [False, False, True] and len(found) == 3
    assert found.status == ["verified", "falsified", "unknown"]
    assert found.summary() == "crown in linf, 3 samples: 1 verified, 1 falsified, 1 unknown"
    with pytest.raises(ValueError, match=r"^verified, falsified: want at most one per sample, got both in rows \[1\]"):
        certificate([True, True], [False, True])
    with pytest.raises(TypeError, match=r"^falsified: want torch.bool, got torch.int64"):
        Certificate(torch.ones(2).bool(), torch.zeros(2).long(), torch.ones(2), "linf", "crown")
    with pytest.raises(ValueError, match=r"^verified: want shape \(2,\), got \(3,\)"):
        Certificate(torch.ones(3).bool(), torch.zeros(2).bool(), torch.ones(2), "linf", "crown")


@pytest.mark.parametrize(
    "found",
    [
        result(100, (True,) * 100),
        certificate([True] * 1000, [False] * 1000),
        Detection(torch.rand(1000), torch.rand(1000) > 0.5, 0.5, {"tau": torch.rand(1000)}),
        Detection(torch.rand(9), torch.rand(9) > 0.5, 0.5, PATCHES),
        PATCHES,
        Pruning("pool", torch.rand(900), torch.rand(900) > 0.5, torch.arange(900), torch.rand(900)),
        Scored(nn.Flatten(), torch.rand(900)),
        UniversalResult(torch.rand(3, 32, 32), torch.ones(9) > 0, {}, torch.ones(9), torch.ones(9)),
        PhysicalResult(
            torch.rand(3, 32, 32), torch.ones(1, 32, 32) > 0, torch.ones(9, 4) > 0, torch.ones(9), torch.ones(9)
        ),
    ],
    ids=lambda found: type(found).__name__,
)
def test_repr_is_a_few_lines_without_arrays(found: object) -> None:
    text = repr(found)
    assert text.startswith(type(found).__name__) and len(text.splitlines()) <= 10 and len(text) < 600
    assert "tensor(" not in text and "(" in text
    assert max(len(line) for line in text.splitlines()) <= 120
