"""The evaluation of poisonings: fresh victims, counts a target, intervals, and controls that spend the same budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import (
    CleanLabelPoison,
    convex_polytope,
    evaluate_poisoning,
    feature_collision,
    poisoning_control,
)
from robustlab.geometry.keyed import derive_seed
from robustlab.intervals import wilson


class Says(nn.Module):
    """Gives every input the same label."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.full((len(x),), self.label), 3).float()


def data() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(60) % 3, torch.full((1, 4), 0.5)


def controls(count: int, kind: str = "none", **kwargs: object) -> list[CleanLabelPoison]:
    x, y, x_target = data()
    return [poisoning_control((x, y), x_target, 1, kind=kind, rate=0.1, seed=i, **kwargs) for i in range(count)]


def test_success_is_counted_per_target_over_fresh_victims() -> None:
    calls: list[tuple[Tensor, Tensor, int]] = []
    answers = [1, 1, 0, 1, 2, 0]  # t = 1

    def train(x: Tensor, y: Tensor, seed: int) -> nn.Module:
        calls.append((x, y, seed))
        return Says(answers[len(calls) - 1])

    x, y, _ = data()
    report = evaluate_poisoning(train, controls(3), victims=2, test=(x, y), seed=7)
    assert report.success.tolist() == [[True, True], [False, True], [False, False]]
    assert report.rate == 0.5
    low, high = wilson(torch.tensor(1.5), 3)  # three targets, not six victims
    assert report.interval == (float(low), float(high))
    torch.testing.assert_close(report.accuracy, torch.full((3, 2), 1 / 3, dtype=torch.float64))
    assert [seed for *_, seed in calls] == [derive_seed(7, i, s) for i in range(3) for s in range(2)]
    assert str(report).startswith("50 % [") and str(report).endswith("3 targets x 2 victims")


def test_the_interval_covers_although_victims_of_a_target_agree() -> None:
    """With victims that always agree, counting victims would claim twice the trials: too narrow an interval."""

    def train(x: Tensor, y: Tensor, seed: int) -> nn.Module:
        return Says(int(x[0, 0] < 0.5))

    first = data()[0]
    cases = []
    for i in range(8):
        case = poisoning_control((first.roll(i, 0), data()[1]), data()[2], 1, kind="none")
        cases.append(case)
    report = evaluate_poisoning(train, cases, victims=4)
    low, high = wilson(int(report.success[:, 0].sum()), 8)
    assert report.interval == (float(low), float(high))


def test_a_victim_that_is_not_fresh_is_refused() -> None:
    crafting_model = Says(1)
    with pytest.raises(ValueError, match="train: want a fresh model"):
        evaluate_poisoning(lambda x, y, seed: crafting_model, controls(1), victims=2)


def test_controls_spend_the_budget_of_the_attacks() -> None:
    x, y, x_target = data()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    attack = feature_collision((x, y), x_target, 1, model=net, rate=0.1, steps=2, seed=3)
    other = convex_polytope((x, y), x_target, 1, model=net, rate=0.1, steps=2, seed=3)
    noise = poisoning_control((x, y), x_target, 1, kind="noise", rate=0.1, eps=0.05, seed=3)
    flips = poisoning_control((x, y), x_target, 1, kind="flips", rate=0.1, source=0, seed=3)
    none = poisoning_control((x, y), x_target, 1, kind="none", rate=0.1, seed=3)
    assert torch.equal(attack.is_poison, noise.is_poison) and torch.equal(attack.is_poison, other.is_poison)
    inside = noise.is_poison[:, None] & (x > 0.05) & (x < 0.95)
    torch.testing.assert_close((noise.x - x).abs()[inside], torch.full_like(x[inside], 0.05))
    assert torch.equal(noise.x[~noise.is_poison], x[~noise.is_poison]) and torch.equal(noise.y, y)
    assert torch.equal(flips.x, x) and torch.equal(flips.is_poison, flips.y != y)
    assert int(flips.is_poison.sum()) == 6 and bool((y[flips.is_poison] == 0).all())
    assert bool((flips.y[flips.is_poison] == 1).all()) and flips.target == 1 and torch.equal(flips.original_y, y)
    assert not bool(none.is_poison.any()) and torch.equal(none.x, x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 3}, "train"),
        ({"train": lambda x, y, seed: 3}, "train"),
        ({"poisonings": []}, "poisonings"),
        ({"poisonings": [3]}, "poisonings"),
        ({"victims": 0}, "victims"),
    ],
)
def test_bad_arguments(wrong: dict, message: str) -> None:
    given = {"train": lambda x, y, seed: Says(1), "poisonings": controls(1), **wrong}
    with pytest.raises((ValueError, TypeError), match=message):
        evaluate_poisoning(given.pop("train"), given.pop("poisonings"), **given)


@pytest.mark.parametrize("wrong", [{"kind": "sound"}, {"kind": "flips"}, {"kind": "flips", "source": 1}, {"eps": 0.0}])
def test_bad_controls(wrong: dict) -> None:
    x, y, x_target = data()
    with pytest.raises(ValueError, match=r"kind|source|eps"):
        poisoning_control((x, y), x_target, 1, **{"kind": "noise", "rate": 0.1, **wrong})


def test_a_control_is_a_copy() -> None:
    x, y, x_target = data()
    none = poisoning_control((x, y), x_target, 1, kind="none", rate=0.1)
    assert torch.equal(none.x, x) and none.x.data_ptr() != x.data_ptr() and none.y.data_ptr() != y.data_ptr()
