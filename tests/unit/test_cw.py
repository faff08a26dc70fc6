"""C&W beyond the shared suite: its corners, κ, its searches, and what one norm's attack owes another's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustlab.attacks import cw, deepfool
from robustlab.attacks.whitebox.cw_descent import TanhBox
from tests.suite.cases import noise_box
from tests.suite.models import mlp
from tests.suite.oracles import affine_problem, free_optimum

FAST = {"steps": 100, "lr": 0.03, "c": 0.1}


def problem(n: int = 8, d: int = 6) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, x = mlp((d,), 3), noise_box(n, (d,), torch.float64) * 0.8 + 0.1
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_change_of_variables(bounds: tuple[float, float], dtype: torch.dtype) -> None:
    """Finite at the corners, back within 1e-6 of the box's width, inside the box for any w, slope by autograd."""
    low, high = bounds
    box = TanhBox(low, high)
    x = torch.linspace(low, high, 101, dtype=dtype)
    w = box.inverse(x)
    assert bool(w.isfinite().all())
    point, slope = box.point(w)
    torch.testing.assert_close(point, x, rtol=0, atol=2e-6 * (high - low))
    assert bool((slope > 0).all())
    far = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4], dtype=dtype)
    for made in (box.point(far)[0], box.alone(far)):
        assert bool(((made >= low) & (made <= high)).all())
    rounding = 4 * torch.finfo(dtype).eps * (high - low)
    torch.testing.assert_close(box.alone(w), point, rtol=0, atol=rounding)
    if dtype == torch.float64:
        v = torch.linspace(-3, 3, 50, dtype=dtype, requires_grad=True)
        (expected,) = torch.autograd.grad((low + (high - low) * (torch.tanh(v) + 1) / 2).sum(), v)
        torch.testing.assert_close(box.point(v.detach())[1], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "targeted"),
    [
        ("l2", True),
        ("linf", False),
        *(pytest.param(*case, marks=pytest.mark.full) for case in (("l2", False), ("linf", True))),
    ],
)
def test_kappa_is_the_winning_margin(norm: str, targeted: bool) -> None:
    model, x, y = problem()
    target = {"target": (y + 1) % 3} if targeted else {}
    results = [cw(model, x, y, norm=norm, kappa=kappa, search_steps=4, **FAST, **target) for kappa in (0.0, 0.3)]
    for kappa, result in zip((0.0, 0.3), results, strict=True):
        with torch.no_grad():
            top = model(result.x_adv).topk(2, dim=1).values
        won = result.success
        assert int(won.sum()) >= 3
        assert bool((top[:, 0] - top[:, 1] >= kappa)[won].all())
    both = results[0].success & results[1].success
    assert bool((results[1].distances[norm] > results[0].distances[norm])[both].all())


def test_kappa_out_of_reach_is_a_failure() -> None:
    model, x, y = problem()
    result = cw(model, x, y, kappa=1e3, steps=20, search_steps=2)
    assert not bool(result.success.any()) and torch.equal(result.x_adv, x)


@pytest.mark.slow
def test_binary_search_on_c_never_hurts() -> None:
    model, x, y = problem()
    best = torch.full_like(x[:, 0], torch.inf)
    for search_steps in (1, 3, 6):
        radius = cw(model, x, y, search_steps=search_steps, **FAST).radius("l2")
        assert bool((radius <= best).all())
        best = radius
    assert bool(best.isfinite().all())


@pytest.mark.slow
def test_small_and_large_first_c_end_at_the_same_distance() -> None:
    """The search on c, not its start, decides: from 1e-3 and from 1e3 within 2 %."""
    model, x, y = affine_problem(2, 8, 5, torch.device("cpu"), spread=0.3)
    x = x + 0.5
    y = model(x).argmax(1)
    best = free_optimum(model, x, y, "l2")
    near = best < 0.15
    assert int(near.sum()) >= 2
    for c in (1e-2, 1e2):
        ratio = cw(model, x[near], y[near], c=c, search_steps=10, steps=200).radius("l2") / best[near]
        assert float(ratio.median()) < 1.02


@pytest.mark.slow
def test_each_norm_is_best_in_its_own_measure() -> None:
    model, x, y = problem()
    quick = {"steps": 40, "lr": 0.1, "c": 100.0}
    results = {
        norm: cw(model, x, y, norm=norm, search_steps=5, **(quick if norm == "l0" else FAST))
        for norm in ("l0", "l2", "linf")
    }
    assert all(bool(r.success.all()) for r in results.values())
    for norm, result in results.items():
        for other in results.values():
            assert float(result.distances[norm].mean()) <= float(other.distances[norm].mean()) + 1e-9, norm


@pytest.mark.slow
def test_l2_is_no_farther_than_deepfool_in_the_mean() -> None:
    model, x, y = problem(n=20)
    ours, theirs = cw(model, x, y, search_steps=7, **FAST), deepfool(model, x, y)
    assert bool(ours.success.all() and theirs.success.all())
    assert float(ours.distances["l2"].mean()) < float(theirs.distances["l2"].mean())


def test_l0_changes_elements_or_leaves_them_exactly() -> None:
    """Frozen elements are bit for bit those of x."""
    model, x, y = problem(n=6, d=12)
    result = cw(model, x, y, norm="l0", steps=40, lr=0.1, c=100.0)
    assert bool(result.success.all())
    assert float(result.distances["l0"].mean()) < 0.6 * 12
    assert torch.equal(result.distances["l0"], (result.x_adv != x).sum(1).to(x.dtype))


@pytest.mark.slow
def test_aborting_early_saves_queries() -> None:
    model, x, y = problem()
    early = cw(model, x, y, search_steps=3, steps=200, c=0.1)
    late = cw(model, x, y, search_steps=3, steps=200, c=0.1, abort_early=False)
    assert int(early.queries.sum()) < int(late.queries.sum())
    assert bool((late.success | ~early.success).all())
