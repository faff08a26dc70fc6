"""EAD beyond the shared suite: its operator and its optimum against a convex solver, its two rules, its threshold."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import cw, ead
from robustlab.attacks.whitebox.ead import shrink
from tests.suite.cases import noise_box
from tests.suite.models import Affine, mlp
from tests.suite.oracles import affine_problem, free_optimum

FAST: dict[str, Any] = {"steps": 100, "search_steps": 4, "lr": 0.03, "c": 1.0}
WIDE = (-3.0, 3.0)


def problem(n: int = 8, d: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = mlp((d,), 3), noise_box(n, (d,), torch.float64) * 0.8 + 0.1
    return model, x, model(x).argmax(1)


def elastic(delta: Tensor, beta: float) -> Tensor:
    return delta.flatten(1).square().sum(1) + beta * delta.flatten(1).abs().sum(1)


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.4])
def test_shrinkage_is_the_proximal_step(beta: float) -> None:
    """argmin ½‖u − z‖² + β‖u − x‖₁ in the box, by a solver; unchanged elements are those of x."""
    clean, z = noise_box(1, (40,), torch.float64)[0], noise_box(1, (40,), torch.float64, seed=1)[0] * 2 - 0.5
    ours = shrink(z, clean, beta, 0.0, 1.0)
    u = cp.Variable(40)
    cost = cp.sum_squares(u - z.numpy()) / 2 + beta * cp.norm1(u - clean.numpy())
    cp.Problem(cp.Minimize(cost), [u >= 0, u <= 1]).solve(solver=cp.CLARABEL)
    torch.testing.assert_close(ours, torch.tensor(np.asarray(u.value)), rtol=0, atol=2e-5)
    still = (z - clean).abs() <= beta
    assert torch.equal(ours[still], clean[still])


def elastic_optimum(model: Affine, x: Tensor, y: Tensor, beta: float, box: tuple[float, float]) -> Tensor:
    """min ‖δ‖₂² + β‖δ‖₁ (lengths in widths of the box) subject to the other class winning, by a solver."""
    best, width = [], box[1] - box[0]
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    for point, label in zip(x.numpy(), y.tolist(), strict=True):
        delta = cp.Variable(len(point))
        a, b = weight[1 - label] - weight[label], bias[1 - label] - bias[label]
        limits = [a @ (point + delta) + b >= 0, point + delta >= box[0], point + delta <= box[1]]
        cost = cp.sum_squares(delta / width) + beta * cp.norm1(delta / width)
        best.append(float(cp.Problem(cp.Minimize(cost), limits).solve(solver=cp.CLARABEL)))
    return torch.tensor(best, dtype=x.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("box", [WIDE, (-1.0, 1.0)], ids=["free", "boxed"])
def test_scaled_threshold_reaches_the_optimum_of_a_linear_hinge(box: tuple[float, float]) -> None:
    model, x, y = affine_problem(2, 12, 8, torch.device("cpu"), spread=1.0)
    beta = 0.5
    best = elastic_optimum(model, x, y, beta, box)
    result = ead(Victim(model, bounds=box), x, y, beta=beta, scaled=True, steps=400, c=0.1)
    assert bool(result.success.all())
    ratio = elastic((result.x_adv - x) / (box[1] - box[0]), beta) / best
    assert float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) <= 1.01, ratio


def test_published_threshold_weighs_l1_by_beta_over_the_step_size() -> None:
    """One step of size α with threshold β is one of the scaled kind with β/α; α·β would be much less."""
    model, x, y = problem()
    same = {"steps": 1, "search_steps": 6, "lr": 0.1, "c": 1.0, "rule": "l1"}
    published, scaled = ead(model, x, y, beta=0.02, **same), ead(model, x, y, beta=0.2, scaled=True, **same)
    assert int(published.success.sum()) >= 3
    torch.testing.assert_close(published.x_adv, scaled.x_adv)
    assert not torch.allclose(published.x_adv, ead(model, x, y, beta=0.02, scaled=True, **same).x_adv)


def test_the_default_is_near_the_l1_optimum() -> None:
    """It is called an ℓ1 attack: by default the ℓ1 distance is within a tenth of the least."""
    model, x, y = affine_problem(2, 8, 12, torch.device("cpu"), spread=1.0)
    result = ead(Victim(model, bounds=WIDE), x, y, steps=250)
    ratio = result.radius("l1") / free_optimum(model, x, y, "l1")
    assert float(ratio.min()) >= 1 - 1e-9 and float(ratio.median()) <= 1.1, ratio


@pytest.mark.slow
def test_without_beta_it_minimizes_cw_s_objective() -> None:
    model, x, y = affine_problem(2, 12, 8, torch.device("cpu"), spread=1.0)
    best = free_optimum(model, x, y, "l2")
    result = ead(Victim(model, bounds=WIDE), x, y, beta=0.0, steps=400, c=0.1)
    assert float((result.radius("l2") / best).median()) < 1.01


def test_each_rule_is_best_in_its_own_measure() -> None:
    """Runs are the same, only the choice differs."""
    model, x, y = problem()
    en, l1 = (ead(model, x, y, rule=rule, beta=0.02, **FAST) for rule in ("en", "l1"))
    assert torch.equal(en.queries, l1.queries) and bool(en.success.all())
    assert bool((elastic(en.x_adv - x, 0.02) <= elastic(l1.x_adv - x, 0.02) + 1e-12).all())
    assert bool((l1.distances["l1"] <= en.distances["l1"] + 1e-12).all())
    assert not torch.equal(en.x_adv, l1.x_adv)


@pytest.mark.slow
def test_l1_is_below_cw_s_and_l0_far_below() -> None:
    model, x, y = problem(n=20)
    ours = ead(model, x, y, rule="l1", beta=0.02, **FAST)
    theirs = cw(model, x, y, steps=100, search_steps=5, lr=0.03, c=0.1)
    assert bool(ours.success.all() and theirs.success.all())
    assert float(ours.distances["l1"].mean()) < 0.9 * float(theirs.distances["l1"].mean())
    assert float(ours.distances["l0"].mean()) < 0.7 * float(theirs.distances["l0"].mean())


def test_unchanged_elements_are_those_of_x() -> None:
    model, x, y = problem()
    result = ead(model, x, y, rule="l1", beta=0.05, **FAST)
    assert torch.equal(result.distances["l0"], (result.x_adv != x).sum(1).to(x.dtype))
    assert float(result.distances["l0"].mean()) < 12


def test_units_of_the_box_do_not_matter() -> None:
    model, x, y = problem()
    bytes_ = nn.Sequential(_Divide(255.0), model)
    small = ead(model, x, y, beta=0.01, **FAST)
    large = ead(Victim(bytes_, bounds=(0.0, 255.0)), 255 * x, y, beta=0.01, **FAST)
    torch.testing.assert_close(large.x_adv / 255, small.x_adv, rtol=0, atol=1e-9)


def test_search_on_c_never_hurts() -> None:
    model, x, y = problem()
    best = torch.full_like(x[:, 0], torch.inf)
    for search_steps in (1, 3, 6):
        radius = ead(model, x, y, rule="l1", **{**FAST, "search_steps": search_steps}).radius("l1")
        assert bool((radius <= best).all())
        best = radius
    assert bool(best.isfinite().all())


def test_kappa_is_the_winning_margin() -> None:
    model, x, y = problem()
    result = ead(model, x, y, kappa=0.3, **FAST)
    with torch.no_grad():
        top = model(result.x_adv).topk(2, dim=1).values
    assert int(result.success.sum()) >= 3
    assert bool((top[:, 0] - top[:, 1] >= 0.3)[result.success].all())


def test_other_rules_are_refused() -> None:
    model, x, y = problem(n=2)
    for changes, name in (({"rule": "l2"}, "rule"), ({"beta": -1.0}, "beta"), ({"beta": float("nan")}, "beta")):
        with pytest.raises(ValueError, match=f"^{name}: want"):
            ead(model, x, y, **changes)


class _Divide(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by
