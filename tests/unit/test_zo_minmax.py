"""ZO-Min-Max against its first-order twin, and its first turn against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import zo_minmax


def logistic_data(n: int = 300, d: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, (x.sum(dim=1) > 0).long()


def linear(d: int = 20) -> nn.Module:
    model = nn.Linear(d, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    return model


SETTING = {"rate": 0.15, "eps": 2.0, "bounds": None, "steps": 100, "attack_rate": 0.5, "model_rate": 0.5, "mu": 1e-3}


@pytest.mark.slow
def test_near_its_first_order_twin() -> None:
    x, y = logistic_data()
    first = zo_minmax((x, y), model=linear(), attacker="first", **SETTING)
    zeroth = zo_minmax((x, y), model=linear(), queries=20, **SETTING)
    both = zo_minmax((x, y), model=linear(), queries=20, learner="zeroth", **SETTING)
    calm = zo_minmax((x, y), model=linear(), **{**SETTING, "eps": 1e-9})
    ends = [poisoned.details["objective"][-1] for poisoned in (calm, first, zeroth, both)]
    assert ends[1] > ends[0] + 0.05, "the attack raises what the learner can reach"
    assert ends[2] == pytest.approx(ends[1], rel=0.1) and ends[3] == pytest.approx(ends[1], rel=0.1)
    a, b = first.details["delta"], zeroth.details["delta"]
    assert float(torch.cosine_similarity(a, b, dim=0)) > 0.8
    assert first.details["queries"] == 0 and zeroth.details["queries"] == 100 * 21


@pytest.mark.parametrize("attacker", ["zeroth", "first"])
def test_the_first_step_is_the_formula(attacker: str) -> None:
    """One turn from θ = 0, by hand: gradient descent on logistic regression, then ascent on the common shift."""
    x, y = logistic_data(40, 5)
    poisoned = zo_minmax((x, y), model=linear(5), rate=0.25, eps=9.0, steps=1, attacker=attacker, queries=4000,
                         bounds=None, attack_rate=1.0, model_rate=0.3, lam=0.1)  # fmt: skip
    residual = torch.full((40, 2), 0.5).double() - torch.nn.functional.one_hot(y, 2)
    weight, bias = -0.3 * residual.T @ x / 40, -0.3 * residual.mean(dim=0)
    torch.testing.assert_close(poisoned.details["model_state"]["weight"], weight)
    torch.testing.assert_close(poisoned.details["model_state"]["bias"], bias)
    bad = poisoned.is_poison
    p = (x[bad] @ weight.T + bias).softmax(dim=1) - torch.nn.functional.one_hot(y[bad], 2)
    slope = (p @ weight).sum(dim=0) / 40
    tolerance = 1e-12 if attacker == "first" else 0.15 * float(slope.abs().max())
    torch.testing.assert_close(poisoned.details["delta"], slope, atol=tolerance, rtol=0)
    torch.testing.assert_close(poisoned.x[bad] - x[bad], poisoned.details["delta"].expand(10, 5))
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + 0.1 * (
        weight.square().sum() + bias.square().sum()
    )
    assert poisoned.details["objective"][0] == pytest.approx(float(loss))


def test_one_shift_inside_the_ball_and_the_box() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 1, 4, 4, generator=generator)
    y = torch.arange(30) % 3
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    poisoned = zo_minmax((x, y), model=model, rate=0.2, eps=0.1, steps=5, attack_rate=1e4)
    delta = poisoned.details["delta"]
    assert delta.shape == (1, 4, 4)
    assert float(delta.max()) == pytest.approx(0.1) and float(delta.min()) == pytest.approx(-0.1)  # both ends reached
    assert int(poisoned.is_poison.sum()) == 6
    torch.testing.assert_close(poisoned.x[poisoned.is_poison], (x[poisoned.is_poison] + delta).clamp(0, 1))
    assert torch.equal(poisoned.x[~poisoned.is_poison], x[~poisoned.is_poison])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_bad_input() -> None:
    x, y = logistic_data(20, 3)
    for kwargs, match in (
        ({"rate": 0.0}, "rate"), ({"eps": -1.0}, "eps"), ({"steps": 0}, "steps"), ({"queries": 0}, "queries"),
        ({"mu": 0.0}, "mu"), ({"attacker": "second"}, "attacker"), ({"lam": -1.0}, "lam"),
        ({"bounds": (0.0, 1.0)}, "x: want"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            zo_minmax((x, y), model=linear(3), **{"rate": 0.2, "eps": 1.0, "bounds": None, **kwargs})
