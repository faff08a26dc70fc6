"""PGD beyond the shared suite: its start, its steps, its memory, and the trainers' maximizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustlab.attacks import pgd
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import convnet, mlp
from tests.suite.test_success import Recording


def problem(n: int = 6, d: int = 6, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    model, x = mlp((d,), 3, seed=seed), noise_box(n, (d,), torch.float64, seed)
    return model, x, model(x).argmax(1)


def by_hand(model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, start: Tensor) -> Tensor:
    """ℓ∞ PGD in six lines, last iterate."""
    delta = torch.minimum(torch.maximum(start.clamp(-eps, eps), -x), 1 - x)
    for _ in range(steps):
        points = (x + delta).requires_grad_(True)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(points), y, reduction="sum"), points)
        delta = ((x + (delta + step * grad.sign()).clamp(-eps, eps)).clamp(0, 1) - x).detach()
    return x + delta


def test_linf_matches_a_transcription_of_the_formula() -> None:
    model, x, y = problem()
    start = torch.full_like(x, 0.02)
    expected = by_hand(model, x, y, 1e-2, 3e-3, 5, start)
    result = pgd(model, x, y, eps=1e-2, step_size=3e-3, steps=5, init=start)
    failed = ~result.success
    assert int(failed.sum()) >= 3
    with torch.no_grad():
        best = nn.functional.cross_entropy(model(result.x_adv), y, reduction="none")
        last = nn.functional.cross_entropy(model(expected), y, reduction="none")
    assert bool((best[failed] >= last[failed] - 1e-12).all())
    smooth = best[failed] <= last[failed] + 1e-12
    torch.testing.assert_close(result.x_adv[failed][smooth], expected[failed][smooth], rtol=0, atol=1e-12)
    assert bool(smooth.any())


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_starts_uniformly_in_the_ball(norm: str) -> None:
    """Not on its surface, not in a cube: the first query is at radius r with distribution function (r/ε)^d."""
    d, eps, n = 3, 0.1, 600
    seen = Recording(mlp((d,), 3, gain=1.0))
    x = torch.full((n, d), 0.5, dtype=torch.float64)
    pgd(seen, x, None, norm=norm, eps=eps, steps=1)
    start = seen.points[1] - x
    radius = (get_norm(norm).length(start) / eps).numpy()
    assert stats.kstest(radius, lambda r: np.clip(r, 0, 1) ** d).pvalue > 1e-3


def test_restarts_start_elsewhere_and_only_for_those_in_need() -> None:
    model, x, y = problem(n=8)
    seen = Recording(model)
    pgd(seen, x, y, norm="l2", eps=1e-4, steps=3, restarts=2)
    assert [len(p) for p in seen.points] == [8] * (1 + 2 * 4)  # no success, so nothing to check again
    assert bool((seen.points[1] != seen.points[5]).any(1).all())
    result = pgd(model, x, y, norm="l2", eps=0.25, steps=3, restarts=3, step_size=1e-3)
    assert 0 < int(result.success.sum()) < 8
    assert result.queries[~result.success].tolist() == [1 + 3 * 4] * int((~result.success).sum())
    once = pgd(model, x, y, norm="l2", eps=0.25, steps=3, step_size=1e-3)
    assert bool((result.success | ~once.success).all())
    assert torch.equal(result.x_adv[once.success], once.x_adv[once.success])


def test_init_is_projected_and_used_once() -> None:
    model, x, y = problem(n=4)
    seen = Recording(model)
    pgd(seen, x, y, norm="l2", eps=0.1, steps=1, restarts=2, init=torch.ones_like(x))
    first = seen.points[1] - x
    torch.testing.assert_close(
        first, get_norm("l2").project_box(torch.ones_like(x), 0.1, -x, 1 - x), rtol=1e-9, atol=1e-12
    )


def test_default_step_size() -> None:
    model, x, y = problem()
    default = pgd(model, x, y, eps=0.05, steps=8)
    assert torch.equal(default.x_adv, pgd(model, x, y, eps=0.05, steps=8, step_size=2.5 * 0.05 / 8).x_adv)
    each = torch.full((6,), 2.5 * 0.05 / 8, dtype=torch.float64)
    assert torch.equal(default.x_adv, pgd(model, x, y, eps=0.05, steps=8, step_size=each).x_adv)


def test_l1_steps_are_sparse() -> None:
    seen = Recording(mlp((200,), 3, gain=0.5))
    x = torch.full((3, 200), 0.5, dtype=torch.float64)
    pgd(seen, x, None, norm="l1", eps=0.5, steps=8, init=torch.zeros_like(x), step_size=0.05)
    moves = [(b - a != 0).sum(1) for a, b in zip(seen.points[1:4], seen.points[2:5], strict=True)]
    assert all(int(m.max()) <= 4 for m in moves), "at most 1 % of the elements, and those that shrink"


def test_trace_holds_every_loss() -> None:
    model, x, y = problem()
    result = pgd(model, x, y, eps=1e-3, steps=4, restarts=2, trace=True)
    assert result.trace is not None
    loss = result.trace["loss"]
    kept = ~result.success
    assert loss.shape[1] == 6 and not bool(loss[:, kept].isnan().any())
    with torch.no_grad():
        final = -nn.functional.cross_entropy(model(result.x_adv), y, reduction="none")
    torch.testing.assert_close(loss.amin(dim=0)[kept], final[kept])
    assert pgd(model, x, y, eps=1e-3, steps=4).trace is None


@pytest.mark.parametrize("loss", ["ce", "margin", "logprob", "prob", "dlr"])
def test_all_losses_work(loss: str) -> None:
    model, x, y = problem(n=12)
    assert int(pgd(model, x, y, eps=0.3, loss=loss).success.sum()) >= 8
    own = pgd(model, x, y, eps=0.3, loss=lambda z, y, target=None, kappa=0.0: -nn.functional.cross_entropy(
        z, y, reduction="none"))  # fmt: skip
    if loss == "ce":
        assert torch.equal(own.x_adv, pgd(model, x, y, eps=0.3).x_adv)


# The inner maximizer of trainers -------------------------------------------------------------------------------------


def test_maximizer_is_pgd_without_early_exit() -> None:
    model, x, y = problem()
    x_adv = pgd_maximize(model, x, y, eps=0.05, steps=5, seed=3)
    noise_start = pgd_maximize(model, x, y, eps=0.05, steps=0 + 1, step_size=1e-30, seed=3) - x
    expected = by_hand(model, x, y, 0.05, 2.5 * 0.05 / 5, 5, noise_start)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-10)
    assert not x_adv.requires_grad


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_maximizer_stays_in_ball_and_box(norm: str) -> None:
    model, x, y = problem()
    x_adv = pgd_maximize(model, x, y, norm=norm, eps=0.3, steps=4)
    assert bool(((x_adv >= 0) & (x_adv <= 1)).all())
    assert bool((get_norm(norm).length(x_adv - x) <= 0.3 * (1 + 1e-12)).all())


def test_maximizer_leaves_mode_and_gradients_alone() -> None:
    model = convnet().train()
    x, y = torch.rand(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        pgd_maximize(model, x, y, eps=0.1, steps=2)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_maximizer_is_keyed_by_ids() -> None:
    model, x, y = problem()
    whole = pgd_maximize(model, x, y, eps=0.1, steps=2, seed=1)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(
        pgd_maximize(model, x[rows], y[rows], eps=0.1, steps=2, seed=1, ids=rows), whole[rows], rtol=0, atol=1e-12
    )
    assert not torch.equal(whole, pgd_maximize(model, x, y, eps=0.1, steps=2, seed=2))
