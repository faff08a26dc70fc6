"""Universal perturbations on linear models, where what one δ can fool is known; the box, budgets, interruptions."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import UniversalResult, so_far
from robustlab.attacker.victim import Victim
from robustlab.attacks import uap
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm
from tests.suite.models import Affine
from tests.suite.oracles import affine_problem

CPU = torch.device("cpu")
WIDE = (-50.0, 50.0)


def two_sides(n: int = 14, d: int = 5, seed: int = 0) -> tuple[Affine, Tensor, Tensor, Tensor]:
    """A linear model of two classes, points, their labels, and the normal w that leads from class 0 to class 1."""
    model, x, y = affine_problem(2, n, d, CPU, spread=1.0, seed=seed)
    return model, x, y, (model.weight[1] - model.weight[0]).detach()


def order(n: int, pass_: int = 0, seed: int = 0) -> list[int]:
    return Noise(seed, torch.zeros(1, dtype=torch.int64)).permutation(pass_, n)[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_of_one_side_it_fools_whoever_is_within_reach(norm: Any) -> None:
    """A δ of length ε moves the margin by at most ε·‖w‖_q: who is nearer falls to the best δ, who is not to none."""
    model, x, y, w = two_sides(40)
    x = x[y == 0]
    with torch.no_grad():
        distance = (model(x)[:, 0] - model(x)[:, 1]) / get_norm(norm).dual.length(w[None])
    eps = float(distance.median()) * 1.01
    result = uap(Victim(model, bounds=WIDE), x, norm=norm, eps=eps, rate=1.0, passes=30)
    assert torch.equal(result.success, distance < eps)
    torch.testing.assert_close(result.delta, eps * get_norm(norm).steepest(w[None])[0], rtol=0, atol=0.02 * eps)


def test_no_delta_fools_both_sides() -> None:
    """⟨w, δ⟩ has one sign, so that of two classes only one can fall: the share of the larger is what can be had."""
    model, x, y, w = two_sides(30)
    result = uap(Victim(model, bounds=WIDE), x, norm="l2", eps=20.0, rate=1.0, passes=4)
    fallen = y[result.success].unique()
    assert len(fallen) == 1 and torch.equal(result.success, y == fallen)
    assert bool((result.delta @ w > 0) == (fallen == 0))


def test_delta_is_that_of_the_algorithm() -> None:
    """On one side of a plane the paper's loop is one number: the reach t, which an image beyond it extends."""
    model, x, y, w = two_sides(60, seed=2)
    x = x[y == 0]
    with torch.no_grad():
        distance = ((model(x)[:, 0] - model(x)[:, 1]) / w.norm()).tolist()
    reach, added = 0.0, torch.zeros(len(x), dtype=torch.bool)
    for i in order(len(x)):
        if distance[i] > reach:
            reach += 1.2 * (distance[i] - reach)
            added[i] = True
    result = uap(Victim(model, bounds=WIDE), x, norm="l2", eps=100.0, rate=1.0, overshoot=0.2)
    torch.testing.assert_close(result.delta, reach * w / w.norm(), rtol=2e-3, atol=0)
    assert torch.equal(result.gradients > 0, added), "an image that was fooled already added a step"
    assert int(added.sum()) > 2


def test_singular_vector() -> None:
    """Where boundaries are alike, δ is along the first singular vector of their normals, in one of its two senses."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(12, generator=generator, dtype=torch.float64)
    weight = common + 0.4 * torch.randn(6, 12, generator=generator, dtype=torch.float64)
    model = Affine(torch.cat([torch.zeros_like(common)[None], weight]), torch.tensor([1.5] + 6 * [0.0]).double())
    x = 0.4 * torch.randn(40, 12, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        x = x[model(x).argmax(dim=1) == 0]
        margins = (model(x)[:, :1] - model(x)[:, 1:]) / weight.norm(dim=1)
    normals = (weight / weight.norm(dim=1, keepdim=True))[margins.argmin(dim=1)]
    first = torch.linalg.svd(normals).Vh[0]
    result = uap(Victim(model, bounds=WIDE), x, norm="l2", eps=0.5, rate=1.0)
    cosine = float(torch.cosine_similarity(result.delta, first, dim=0))
    assert abs(cosine) > 0.95
    with torch.no_grad():
        right, wrong = (model(x + s * 0.5 * cosine / abs(cosine) * first).argmax(dim=1) != 0 for s in (1, -1))
    assert int(wrong.sum()) == 0 < int(right.sum()) <= int(result.success.sum()) + 1


def test_the_image_visited_last_is_fooled() -> None:
    """In the box, too, where δ reaches beyond what an image can follow: the change makes up for what clipping took."""
    for seed in range(12):
        model, x, _ = affine_problem(4, 8, 6, CPU, spread=1.0, seed=seed)
        x = (x * 0.6 + 0.5).clamp(0, 1)  # many elements at an end
        model = Affine(model.weight.detach(), -model.weight.detach().sum(dim=1) / 2)  # all classes meet in the middle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a ball that holds the whole box is wanted here
            result = uap(model, x, norm="linf", eps=9.0, rate=1.0, passes=1, seed=seed)
        assert bool(result.success[order(8, seed=seed)[-1]]), seed


@pytest.mark.parametrize("rate", [0.3, 0.6])
def test_it_stops_at_the_rate(rate: float) -> None:
    model, x, y, _ = two_sides(40)
    x = x[y == 0]
    result = uap(Victim(model, bounds=WIDE), x, norm="l2", eps=0.3, rate=rate, overshoot=0.0, trace=True)
    assert result.trace is not None
    *before, last = result.trace["rate"].tolist()
    assert last >= rate > max(before, default=0.0)
    assert float(result.success.double().mean()) == pytest.approx(last)


def test_the_best_pass_is_returned() -> None:
    """Two sides pull δ to and fro."""
    model, x, _, _ = two_sides(21, seed=1)
    result = uap(Victim(model, bounds=WIDE), x, norm="l2", eps=1.0, rate=1.0, passes=6, trace=True)
    assert result.trace is not None
    rates = result.trace["rate"]
    assert float(result.success.double().mean()) == pytest.approx(float(rates.max()))
    assert float(rates[-1]) < float(rates.max())


@pytest.mark.parametrize("budget", [2, 3, 4, 5, 6, 30])
def test_budget(budget: int) -> None:
    model, x, _, _ = two_sides(9)
    result = uap(Victim(model, bounds=WIDE, budget=budget), x, norm="l2", eps=1.0, rate=1.0)
    assert int(result.queries.max()) <= budget
    assert bool((result.delta == 0).all()) == (budget < 6)  # x, a visit, a step and its end, the rate, the final check


class Ends(nn.Module):
    """Asked so often, it is interrupted."""

    def __init__(self, model: nn.Module, after: int) -> None:
        super().__init__()
        self.model, self.left = model, after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.model(x)


def test_an_interruption_leaves_the_best_delta() -> None:
    model, x, _, _ = two_sides(21, seed=1)
    arguments: dict[str, Any] = {"norm": "l2", "eps": 1.0, "rate": 1.0}
    one = uap(Victim(model, bounds=WIDE), x, passes=1, **arguments)
    with pytest.raises(KeyboardInterrupt) as caught:
        uap(Victim(Ends(model, 1 + 22 + 2 * int((one.gradients > 0).sum()) + 5), bounds=WIDE), x, **arguments)
    result = so_far(caught.value)
    assert isinstance(result, UniversalResult) and "so_far(error)" in caught.value.__notes__[0]
    assert torch.equal(result.delta, one.delta) and torch.equal(result.success, one.success)


def test_what_the_model_cannot_say_is_no_success() -> None:
    class Hole(Affine):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill((x[:, :1] > 0.99), torch.nan)

    model, x, _, _ = two_sides(20)
    hole = Hole(model.weight.detach(), model.bias.detach())
    x = x.clamp(-0.9, 0.9)
    x[3, 0] = 1.0
    with pytest.warns(UserWarning, match=r"rows \[3\]"):
        result = uap(Victim(hole, bounds=WIDE), x, norm="l2", eps=5.0)
    rest = torch.arange(20) != 3
    assert not bool(result.success[3]) and int(result.queries[3]) == 1
    assert torch.equal(result.delta, uap(Victim(hole, bounds=WIDE), x[rest], norm="l2", eps=5.0).delta)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", 0.0), ("rate", 1.5), ("passes", 0), ("steps", 0), ("overshoot", -0.1), ("candidates", 1), ("norm", "l1")],
)
def test_bad_arguments(name: str, value: Any) -> None:
    model, x, _, _ = two_sides(4)
    with pytest.raises(ValueError, match=rf"^{name}: "):
        uap(Victim(model, bounds=WIDE), x, **{"norm": "l2", "eps": 1.0, name: value})
