"""StrAttack beyond the shared suite: group prox and optimum against a convex solver, windows against enumeration."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import cw, strattack
from robustlab.attacks.whitebox.strattack import Groups, _largest
from tests.suite.cases import noise_box
from tests.suite.models import Affine, convnet

FAST: dict[str, Any] = {"steps": 40, "search_steps": 3, "refine_steps": 20, "c": 5.0}
WINDOWS = [(2, 2), (2, 1), (3, 2), (3, 1), (1, 1), (9, 4)]


def windows(height: int, width: int, size: int, stride: int) -> list[np.ndarray]:
    """Masks (H, W) of all positions, until the image is covered; cut at its border."""

    def starts(length: int) -> list[int]:
        found = [0]
        while found[-1] + size < length:
            found.append(found[-1] + stride)
        return found

    masks = []
    for i in starts(height):
        for j in starts(width):
            mask = np.zeros((height, width), dtype=bool)
            mask[i : i + size, j : j + size] = True
            masks.append(mask)
    return masks


@pytest.mark.parametrize(("size", "stride"), WINDOWS)
def test_groups_are_the_windows(size: int, stride: int) -> None:
    """The same lengths as by enumeration; each pixel in some window; in one set no pixel is in two."""
    x = noise_box(2, (2, 7, 5), torch.float64)
    groups, masks = Groups(x, size, stride), windows(7, 5, size, stride)
    expected = torch.stack([(x.square().sum(1) * torch.tensor(m)).sum((1, 2)).sqrt() for m in masks], dim=1)
    torch.testing.assert_close(groups.lengths(x).sort(1).values, expected.sort(1).values)
    assert bool(np.any(masks, axis=0).all())
    for rows, columns in groups.sets:
        assert float(rows.sum(1).max()) <= 1 and float(columns.sum(1).max()) <= 1
    assert groups.count <= (-(-size // stride)) ** 2


@pytest.mark.parametrize(("size", "stride"), WINDOWS)
def test_prox_against_a_solver(size: int, stride: int) -> None:
    """argmin Σ_p ½‖y_p − a_p‖² + t·Σ_{D in set p} ‖y_{p, D}‖: one copy a set, zero groups included."""
    groups = Groups(torch.zeros(1, 2, 5, 4, dtype=torch.float64), size, stride)
    generator = torch.Generator().manual_seed(size)
    copies = torch.randn(1, groups.count, 2, 5, 4, generator=generator, dtype=torch.float64)
    threshold = 1.9 * float(groups.lengths(copies[:, 0]).median()) / 2
    ours = groups.prox(copies, threshold)[0]
    zeros = 0
    for p, (rows, columns) in enumerate(groups.sets):
        y = [cp.Variable((5, 4)) for _ in range(2)]
        parts = []
        for i in range(rows.shape[1]):
            for j in range(columns.shape[1]):
                where = np.argwhere(np.outer(rows[:, i], columns[:, j]) > 0)
                parts.append(cp.norm(cp.hstack([y[c][a, b] for c in range(2) for a, b in where])))
        fit = sum(cp.sum_squares(y[c] - copies[0, p, c].numpy()) for c in range(2)) / 2
        cp.Problem(cp.Minimize(fit + threshold * sum(parts))).solve(solver=cp.CLARABEL)
        solved = torch.tensor(np.stack([v.value for v in y]))
        torch.testing.assert_close(ours[p], solved, rtol=0, atol=1e-4)
        zeros += int((ours[p] == 0).sum())
    assert size > 4 or zeros > 0, "some group must have been emptied"


def test_fold_empties_what_any_group_empties() -> None:
    copies = torch.tensor([[[[[1.0, 0.0, 3.0]]], [[[3.0, 2.0, 5.0]]]]], dtype=torch.float64)
    groups = Groups(torch.zeros(1, 1, 1, 3, dtype=torch.float64), 2, 1)
    assert groups.count == 2 and groups.fold(copies).tolist() == [[[[2.0, 0.0, 4.0]]]]


@pytest.mark.parametrize("percentile", [0.0, 3.0, 40.0])
def test_mask_of_the_percentile(percentile: float) -> None:
    """As NumPy's percentile of the non-zero elements has it, for each sample alone."""
    delta = torch.rand(6, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    delta = delta * (delta.abs() > torch.linspace(0, 0.4, 6, dtype=torch.float64)[:, None, None, None])
    mask = _largest(delta, percentile)
    for i in range(6):
        size = delta[i].abs().numpy()
        expected = size > np.percentile(size[size > 0], percentile)
        assert expected.sum() < (size > 0).sum() and np.array_equal(mask[i].numpy() > 0, expected)
    single = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    single[0, 0, 1, 0] = -0.3
    assert torch.equal(_largest(single, 3.0) > 0, single != 0), "a last element stays"


def penalty(groups: Groups, delta: Tensor, gamma: float, tau: float) -> Tensor:
    return gamma * delta.flatten(1).square().sum(1) + tau * groups.lengths(delta).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stride", "cap"),
    [(2, 0.2), *(pytest.param(stride, 1.0, marks=pytest.mark.full) for stride in (1, 2))],
)
def test_reaches_the_optimum_of_a_linear_hinge(stride: int, cap: float) -> None:
    """The least penalty at which the other class wins, in the box and the cap, by a solver: never below it."""
    generator = torch.Generator().manual_seed(0)
    model = Affine(torch.randn(2, 32, generator=generator, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    x = noise_box(6, (2, 4, 4), torch.float64) * 0.6 + 0.2
    with torch.no_grad():
        y = model(x).argmax(1)
    gamma, tau = 1.0, 0.5
    best = []
    for point, label in zip(x, y.tolist(), strict=True):
        delta = [cp.Variable((4, 4)) for _ in range(2)]
        slope = (model.weight[1 - label] - model.weight[label]).detach().reshape(2, 4, 4).numpy()
        gap = sum(cp.sum(cp.multiply(slope[c], point[c].numpy() + delta[c])) for c in range(2))
        limits = [gap >= 0]
        for c in range(2):
            limits += [delta[c] + point[c].numpy() >= 0, delta[c] + point[c].numpy() <= 1, cp.abs(delta[c]) <= cap]
        groups = [
            cp.norm(cp.hstack([delta[c][a, b] for c in range(2) for a, b in np.argwhere(m)]))
            for m in windows(4, 4, 2, stride)
        ]
        cost = gamma * sum(cp.sum_squares(d) for d in delta) + tau * sum(groups)
        best.append(float(cp.Problem(cp.Minimize(cost), limits).solve(solver=cp.CLARABEL)))
    result = strattack(
        model, x, y, stride=stride, cap=cap, gamma=gamma, tau=tau, rho=3.0, alpha=1.0, steps=150, search_steps=8,
        refine_steps=50, c=1.0,
    )  # fmt: skip
    optimum = torch.tensor(best, dtype=torch.float64)
    assert torch.equal(result.success, optimum.isfinite())
    won = result.success
    ours = penalty(Groups(x, 2, stride), result.x_adv - x, gamma, tau)
    ratio = ours[won] / optimum[won]
    assert int(won.sum()) >= 4 and float(ratio.min()) >= 1 - 1e-6
    assert float(ratio.median()) <= 1.05, ratio


def problem(n: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = convnet(3, 2), noise_box(n, (2, 4, 4), torch.float64) * 0.8 + 0.1
    return model, x, model(x).argmax(1).detach()


@pytest.mark.slow
def test_cap_holds_for_what_is_returned() -> None:
    model, x, y = problem()
    for cap in (0.15, 0.5):
        result = strattack(model, x, y, cap=cap, **FAST)
        assert bool(result.success.any())
        assert float(result.distances["linf"].max()) <= cap + 1e-12


@pytest.mark.slow
def test_refinement_never_hurts_and_keeps_the_support() -> None:
    model, x, y = problem()
    same = {**FAST, "cap": 1.0}
    rough, fine = (strattack(model, x, y, **{**same, "refine_steps": steps}) for steps in (1, 100))
    assert torch.equal(rough.success, fine.success) and bool(rough.success.any())
    groups = Groups(x, 2, 2)
    before, after = (penalty(groups, r.x_adv - x, 2.0, 3.0)[rough.success] for r in (rough, fine))
    assert bool((after <= before + 1e-12).all()) and float(after.sum()) < float(before.sum())


@pytest.mark.slow
@pytest.mark.full
def test_fewer_groups_than_cw_and_fewer_with_a_larger_tau() -> None:
    model, x, y = problem(n=16)
    groups = Groups(x, 2, 2)

    def occupied(result: Any) -> float:
        assert bool(result.success.all())
        return float((groups.lengths(result.x_adv - x) > 0).double().sum(1).mean())

    theirs = occupied(cw(model, x, y, steps=100, search_steps=5, lr=0.03, c=0.1))
    loose, tight = (occupied(strattack(model, x, y, cap=1.0, tau=tau, **FAST)) for tau in (0.5, 5.0))
    assert tight < loose < theirs


def test_units_of_the_box_do_not_matter() -> None:
    model, x, y = problem(n=4)

    class Bytes(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return points / 255

    small = strattack(model, x, y, **FAST)
    large = strattack(Victim(nn.Sequential(Bytes(), model), bounds=(0.0, 255.0)), 255 * x, y, **FAST)
    torch.testing.assert_close(large.x_adv / 255, small.x_adv, rtol=0, atol=1e-9)


def test_bad_arguments() -> None:
    model, x, y = problem(n=2)
    for changes, word in (
        ({"window": 2, "stride": 3}, "stride"), ({"percentile": 100.0}, "percentile"), ({"tau": -1.0}, "tau"),
        ({"cap": 0.0}, "cap"), ({"rho": 0.0}, "rho"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{word}: want"):
            strattack(model, x, y, **changes)
    with pytest.raises(ValueError, match=r"^x: want images"):
        strattack(nn.Linear(6, 3).double(), x.flatten(1)[:, :6])
