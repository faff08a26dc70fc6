"""The heterogeneity index against the paper's formula; poison at its time and in equal number; what a sweep returns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from robustlab.attacks import heterogeneity, heterogeneity_index
from robustlab.attacks.federated import heterogeneity as module
from robustlab.training.clients import LocalTraining, Turn
from robustlab.training.splits import dirichlet_split, even_split, label_split
from tests.suite.training.cases import TARGET, images, trained

Y = torch.arange(600) % 10


@pytest.mark.parametrize("classes", [1, 2, 5, 10])
def test_the_index_is_the_papers(classes: int) -> None:
    """Where a client's classes are equally frequent, as they are for these numbers."""
    rows = label_split(Y, 10, classes=classes, seed=3)
    assert heterogeneity_index(Y, rows) == pytest.approx(1 - (classes - 1) / 9, abs=1e-3)


def test_the_index_of_dirichlet_falls_with_alpha() -> None:
    values = [heterogeneity_index(Y, dirichlet_split(Y, 6, alpha=a, seed=1)) for a in (0.1, 0.5, 2.0, 1e5)]
    assert values == sorted(values, reverse=True) and values[0] > 0.6 and values[-1] < 0.01
    assert heterogeneity_index(Y, even_split(Y, 2)) < 0.05
    one = [torch.tensor([0, 10, 1])]  # two of class 0, one of class 1
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert heterogeneity_index(Y, one) == pytest.approx(1 - (math.exp(entropy) - 1) / 9)
    with pytest.raises(ValueError, match="y: want at least 2 classes"):
        heterogeneity_index(torch.zeros(4, dtype=torch.int64), one)


@pytest.mark.parametrize(("timing", "when"), [("first", [0, 1]), ("last", [2, 3]), ("spread", [0, 1, 2, 3])])
def test_poison_comes_at_its_time_and_in_equal_number(
    timing: Any, when: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four epochs of one batch of 20: twelve poisoned samples in half of them, or six in each."""
    seen: list[int] = []
    own = module.local_update

    def spy(model: Any, data: Any, *, objective: Any, **kw: Any) -> Any:
        class Watch:
            def set_progress(self, fraction: float) -> None:
                objective.set_progress(fraction)

            def __call__(self, model: Any, x: Any, y: Any, *, ids: Any, seed: int) -> Any:
                def asked(mixed: torch.Tensor) -> torch.Tensor:
                    seen.append(int((mixed != x).flatten(1).any(dim=1).sum()))
                    return model(mixed)

                return objective(asked, x, y, ids=ids, seed=seed)

        return own(model, data, objective=Watch(), **kw)

    monkeypatch.setattr(module, "local_update", spy)
    told: Any = {"trigger": module.PatchTrigger(), "target": TARGET, "timing": timing, "part": 0.5, "share": 0.3}
    turn = Turn(0, 0, 1, 0.1, 1)
    module._poisoned(trained(), images(20), turn, local=LocalTraining(4, 20, 0.01), **told)
    assert [number for number, count in enumerate(seen) if count] == when and sum(seen) == pytest.approx(24, abs=2)


def test_gathered_data_are_even_and_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The malicious keep their number of samples, of each class as many up to one; the honest and the index stay."""
    seen: list[Any] = []
    own = module.simulate

    def spy(model: Any, team: Any, **kw: Any) -> Any:
        seen.append(team)
        return own(model, team, **kw)

    monkeypatch.setattr(module, "simulate", spy)
    run: Any = {"model": trained(), "test": images(20), "values": (0.2,), "clients": 4, "rounds": 1, "malicious": 2}
    run["local"] = LocalTraining(1, 20, 0.005)
    found = [heterogeneity(images(240), poison_on=whose, **run) for whose in ("own", "even")]
    for i, (before, after) in enumerate(zip(*seen, strict=True)):
        counts = after.data[1].bincount(minlength=3)
        assert len(before.data[1]) == len(after.data[1]) and (before.attack is None) == (after.attack is None)
        assert torch.equal(before.data[0], after.data[0]) == (i >= 2)
        if i < 2:
            assert int(counts.max() - counts.min()) <= 1, counts
    few, many = sorted((seen[1][i].data[0].flatten(1) for i in range(2)), key=len)
    among = (few[:, None] == many[None]).all(dim=2).any(dim=1)
    assert not bool(among.all()), "both malicious clients drew in the same order"
    assert torch.equal(found[0].index, found[1].index)


def test_a_sweep_has_a_row_per_value() -> None:
    local = LocalTraining(2, 20, 0.005)
    run: Any = {"model": trained(), "test": images(60, seed=9), "clients": 4, "rounds": 3, "local": local}
    found = heterogeneity(images(240), values=(100.0, 0.2), malicious=2, **run)
    assert found.main.shape == found.backdoor.shape == (2, 3) and found.index[0] < found.index[1]
    clean = heterogeneity(images(240), values=(100.0,), malicious=0, **run)
    assert float(clean.backdoor[0, -1]) < 0.2 and float(clean.main[0, -1]) > 0.9
    assert float(found.backdoor[0, -1]) > float(clean.backdoor[0, -1]) + 0.2 and len(found.model) == 2
    by_class = heterogeneity(images(240), values=(3, 1), knob="classes", malicious=1, **{**run, "rounds": 1})
    assert by_class.index.tolist() == pytest.approx([0.0, 1.0], abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"knob": "beta"}, "knob"),
        ({"timing": "later"}, "timing"),
        ({"poison_on": "all"}, "poison_on"),
        ({"part": 0.0}, "part"),
        ({"share": 0.9, "timing": "last"}, "share"),
        ({"malicious": 4}, "clients: .*all malicious"),
        ({"values": (0.0,)}, "alpha"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{named}"):
        heterogeneity(images(60), model=trained(), test=images(20), clients=4, rounds=1, **wrong)
