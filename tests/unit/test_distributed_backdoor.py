"""DBA: the parts' union is the trigger exactly, the geometry the paper's; the rate falls; γ; success with the whole."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.attacks import FourBars, distributed_backdoor, evaluate_backdoor, watch_backdoor
from robustlab.attacks.federated.distributed_backdoor import falling_rate
from robustlab.training.clients import Client, LocalTraining, Turn
from robustlab.training.federated import simulate
from robustlab.training.updates import Delta, aggregate, apply_delta, difference
from tests.suite.training.cases import TARGET, images, trained

LONG: Any = {"target": TARGET, "size": 2, "gap": (1, 2), "epochs": 10, "batch_size": 30, "per_batch": 10}
attack = partial(distributed_backdoor, target=TARGET, weight=0.1, size=2, epochs=1, batch_size=20, per_batch=6)


def pixels(trigger: Any, side: int) -> set[tuple[int, int]]:
    """What a trigger touches, on a black and on a gray image."""
    found = set()
    for shade in (0.0, 0.5):
        x = torch.full((1, 1, side, side), shade)
        found |= {(int(i), int(j)) for i, j in (trigger(x) != x)[0, 0].nonzero()}
    return found


@pytest.mark.parametrize("gap", [0, 1, 2, 3, (1, 2), (0, 4)])
@pytest.mark.parametrize("size", [1, 2, 4, 6])
@pytest.mark.parametrize("location", [(0, 0), (2, 5)])
def test_the_union_of_the_parts_is_the_trigger(size: int, gap: Any, location: tuple[int, int]) -> None:
    whole = FourBars(size, gap=gap, location=location, color=0.9)
    parts = [whole.part(number) for number in range(4)]
    x = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    composed = x
    for part in parts:
        composed = part(composed)
    assert torch.equal(composed, whole(x))
    touched = [pixels(part, 28) for part in parts]
    assert set.union(*touched) == pixels(whole, 28)
    assert sum(map(len, touched)) == len(set.union(*touched)) == 4 * size, "two parts share a pixel"


def test_the_geometry_is_the_papers() -> None:
    """The pixels that its authors list for MNIST and CIFAR-10."""
    digits, colors = FourBars(4, gap=2), FourBars(6, gap=3)
    rows = [(0, range(4)), (0, range(6, 10)), (3, range(4)), (3, range(6, 10))]
    assert [pixels(digits.part(i), 28) for i in range(4)] == [{(r, c) for c in across} for r, across in rows]
    rows = [(0, range(6)), (0, range(9, 15)), (4, range(6)), (4, range(9, 15))]
    assert [pixels(colors.part(i), 32) for i in range(4)] == [{(r, c) for c in across} for r, across in rows]


@pytest.mark.parametrize("epochs", [1, 4, 6, 10])
def test_the_rate_falls_for_any_number_of_epochs(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: Any, *args: Any, **kw: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kw)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    attack(trained(), images(60), part=0, epochs=epochs, batch_size=6, per_batch=2, lr=0.1)
    assert sorted({round(rate, 6) for rate in rates}, reverse=True) == [0.1, 0.01, 0.001]
    assert rates.count(0.1) == pytest.approx(0.2 * len(rates)) and rates == sorted(rates, reverse=True)
    assert [falling_rate(done) for done in (0.0, 0.19, 0.2, 0.79, 0.8)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_a_client_trains_on_its_part_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustlab.attacks.federated import distributed_backdoor as module

    seen: list[Tensor] = []
    own = module.MixedBatches

    def spy(backdoor: Tensor, *args: Any, **kw: Any) -> Any:
        seen.append(backdoor)
        return own(backdoor, *args, **kw)

    monkeypatch.setattr(module, "MixedBatches", spy)
    x, y = images(30)
    whole = FourBars(2)
    for part in (0, 1, 2, 3, None):
        update = attack(trained(), (x, y), part=part)
        trigger = whole if part is None else whole.part(part)
        assert torch.equal(seen[-1], trigger(x[y != TARGET])), "another part, or images of the target class"
        assert torch.equal(update.trigger(x), whole(x)) and update.trigger is not None


def test_single_shot_is_scaled_by_the_servers_factor_multi_shot_is_not() -> None:
    model = trained()
    once, often = (attack(model, images(), part=2, single_shot=value) for value in (True, False))
    assert (once.gamma, often.gamma) == (10.0, 1.0)
    torch.testing.assert_close(once.delta.vector(True), 10 * often.delta.vector(True))
    new = copy.deepcopy(model)
    apply_delta(new, aggregate([once.delta, *[difference(model, model)] * 9], [0.1] * 10))
    pairs = zip(new.state_dict().values(), once.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if a.is_floating_point())


@pytest.mark.slow
def test_four_clients_with_a_part_each_wake_the_whole_trigger() -> None:
    """Multi-shot over a few rounds, measured with the trigger that no client trained on, and in each round."""

    def bad(part: int) -> Any:
        def client(model: Any, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
            told: Any = {"weight": turn.weight, "seed": turn.seed, "single_shot": False}
            return distributed_backdoor(model, data, part=part, **told, **LONG).delta

        return client

    team = [Client(images(60, seed=i), bad(i) if i < 4 else None) for i in range(6)]
    whole, test = FourBars(2, gap=(1, 2)), images(60, seed=9)
    watch = watch_backdoor(test, whole, TARGET)
    run: Any = partial(simulate, trained(), team, rounds=4, honest=LocalTraining(1, 20, 0.005))
    result = run(on_round=watch)
    report = evaluate_backdoor(result.model, test, whole, TARGET)
    assert report.attack_success.n == int((test[1] != TARGET).sum()), "images of the target class are counted"
    assert result.monitor[-1] == {"main": float(report.clean_accuracy), "backdoor": float(report.attack_success)}
    assert float(evaluate_backdoor(trained(), test, whole, TARGET).attack_success) < 0.2
    assert result.monitor[-1]["backdoor"] > 0.8 and result.monitor[-1]["main"] > 0.9


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"part": 4}, "part"),
        ({"part": -1}, "part"),
        ({"part": 0.5}, "part"),
        ({"weight": -1.0}, "weight"),
        ({"gap": -1}, "gap"),
        ({"size": 0}, "size"),
        ({"size": 7}, "x: want images that hold"),
        ({"per_batch": 0}, "per_batch"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{named}"):
        attack(trained(), images(), **({"part": 0} | wrong))
