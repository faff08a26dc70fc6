"""Which numbers the checks of arguments take, NumPy's among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from robustlab import checks
from robustlab.attacker.victim import Victim
from robustlab.attacks import apgd, cw, pgd, square

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
REALS = [0.5, 2, np.float32(0.5), np.float64(0.5), np.float16(0.5), np.int64(2), np.uint8(2)]
INTEGERS = [2, np.int64(2), np.int32(2), np.uint8(2)]
NEITHER = [True, np.bool_(True), "2", None, 2j, np.complex64(2), [2], np.array([2.0])]


@pytest.mark.parametrize("value", REALS)
def test_real_numbers(value: Any) -> None:
    checks.positive("eps", value)
    checks.at_least("eps", value, 0.25)
    each = checks.per_sample("eps", value, X)
    assert each.dtype == X.dtype and each.tolist() == [float(value)] * 4


@pytest.mark.parametrize("value", INTEGERS)
def test_integers(value: Any) -> None:
    checks.at_least("steps", value, 1, integer=True)
    assert torch.equal(checks.labels("target", value, X), torch.full((4,), 2))
    assert torch.equal(checks.toward(value, X, None), torch.full((4,), 2))


@pytest.mark.parametrize("value", NEITHER)
def test_what_is_no_number(value: Any) -> None:
    for check in (
        lambda: checks.positive("eps", value),
        lambda: checks.at_least("eps", value, 0.0),
        lambda: checks.at_least("eps", value, 0, integer=True),
        lambda: checks.per_sample("eps", value, X),
        lambda: checks.labels("eps", value, X),
        lambda: checks.toward(value, X, None),
    ):
        with pytest.raises(TypeError, match=r"^(eps|toward): want"):
            check()


@pytest.mark.parametrize("value", [np.float32(2.0), 2.0])
def test_no_fractions_where_integers_are_wanted(value: Any) -> None:
    for check in (
        lambda: checks.at_least("steps", value, 1, integer=True),
        lambda: checks.labels("steps", value, X),
    ):
        with pytest.raises(TypeError, match=r"^steps: want an integer"):
            check()


@pytest.mark.parametrize("value", [np.float32(0.0), np.float32("nan"), np.float64("inf"), np.int64(-1)])
def test_numpy_numbers_have_the_same_bounds(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^eps: want finite and above 0"):
        checks.positive("eps", value)


def test_attacks_take_numpy_numbers() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    for attack, settings in (
        (pgd, {"eps": 0.25, "steps": 3, "seed": 5, "target": 1, "restarts": 2}),
        (pgd, {"eps": 0.25, "steps": 3, "norm": "l1", "step_size": 0.125}),
        (apgd, {"eps": 0.25, "steps": 5, "restarts": 2, "norm": "l2"}),
        (cw, {"steps": 4, "kappa": 0.5}),
    ):
        ours = {
            key: np.float32(v) if isinstance(v, float) else np.int64(v) if isinstance(v, int) else v
            for key, v in settings.items()
        }
        y = torch.tensor([0, 2, 3, 0])
        plain, numpys = attack(model, X, y, **settings), attack(model, X, y, **ours)
        assert torch.equal(plain.x_adv, numpys.x_adv) and plain.x_adv.dtype == numpys.x_adv.dtype
    image = torch.rand(2, 1, 4, 4)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    plain = square(Victim(net, budget=9), image, eps=0.125, queries=20, seed=3)
    numpys = square(
        Victim(net, budget=np.int64(9)), image, eps=np.float32(0.125), queries=np.int32(20), seed=np.int64(3)
    )
    assert torch.equal(plain.x_adv, numpys.x_adv)
