"""The L-BFGS attack: its solver against SciPy's L-BFGS-B, its result against a grid in the plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from robustlab.attacker.live import Live, closest
from robustlab.attacker.losses import LossFunction
from robustlab.attacker.session import Answer, Session
from robustlab.attacker.victim import Victim
from robustlab.attacks import lbfgs
from robustlab.attacks.whitebox.lbfgs import _minimize, other_than
from tests.suite.cases import noise_box
from tests.suite.models import mlp


def problem(n: int = 6, d: int = 6, gain: float = 2.0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, x = mlp((d,), 3, gain=gain), noise_box(n, (d,), torch.float64)
    return model, x, model(x).argmax(1)


def watch(session: Session, c: float) -> torch.Tensor:
    """The smallest value of each sample's objective so far, (N,), brought up to date at each question."""
    lowest, gradient = session.x.new_full(session.x.shape[:1], torch.inf), session.gradient

    def watched(points: torch.Tensor, live: Live, loss: LossFunction) -> Answer:
        answer = gradient(points, live, loss)
        value = c * (points - live.x).square().sum(dim=1) + answer.loss
        lowest[live.rows] = torch.minimum(lowest[live.rows], value)
        return answer

    session.gradient = watched  # type: ignore[method-assign]
    return lowest


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_minimizer_matches_scipy(c: float, targeted: bool) -> None:
    """The same objective from the same start: no higher than SciPy's minimum by more than 0.1 %."""
    model, x, y = problem()
    target = (y + 1) % 3 if targeted else None
    with Victim(model).session(x, y, target=target) as session:
        lowest, n = watch(session, c), len(x)
        _minimize(session, closest(session), torch.full((len(session.active),), c, dtype=x.dtype), 200)

    def objective(flat: np.ndarray, i: int) -> tuple[float, np.ndarray]:
        point = torch.tensor(flat)[None].requires_grad_(True)
        one = slice(i, i + 1)
        loss = other_than(model(point), y[one], None if target is None else target[one], 0.0)
        value = (c * (point - x[one]).square().sum() + loss).sum()
        return float(value.detach()), torch.autograd.grad(value, point)[0][0].numpy()

    ratios = []
    for i in range(n):
        found = minimize(objective, x[i].numpy(), args=(i,), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 6)
        ratios.append(float(lowest[i]) / found.fun)
    assert float(np.median(ratios)) <= 1.001
    assert max(ratios) <= 1.05


def test_loss_of_any_other_class() -> None:
    """−log(1 − p_y) and CE(t), against softmax."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [30.0, 0.0, -30.0]], dtype=torch.float64)
    y, t = torch.tensor([0, 0]), torch.tensor([1, 2])
    p = logits.softmax(1)
    torch.testing.assert_close(other_than(logits, y, None, 0.0), -(p[:, 1] + p[:, 2]).log())
    torch.testing.assert_close(other_than(logits, y, t, 0.0), -p.gather(1, t[:, None]).squeeze(1).log())


def test_near_the_true_minimum_in_the_plane() -> None:
    """Two inputs: the nearest misclassified point of a fine grid."""
    model, x, y = problem(n=8, d=2, gain=4.0)
    result = lbfgs(model, x, y)
    line = torch.linspace(0, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        label = model(grid).argmax(1)
    for i in range(8):
        wrong = grid[label != y[i]]
        if len(wrong) == 0:
            assert not bool(result.success[i])
            continue
        nearest = float((wrong - x[i]).norm(dim=1).min())
        assert float(result.radius("l2")[i]) >= nearest - 1.5 / 400
    # A local search may end in a corner from where the slope points out of the box.
    reachable = torch.tensor([bool((label != y[i]).any()) for i in range(8)])
    best = torch.stack([
        (grid[label != y[i]] - x[i]).norm(dim=1).min() if reachable[i] else torch.tensor(torch.inf) for i in range(8)
    ])  # fmt: skip
    assert int(reachable.sum()) >= 4 and int((reachable & ~result.success).sum()) <= 1
    assert float((result.radius("l2")[reachable] / best[reachable]).median()) <= 1.05


def test_line_search_on_c_never_hurts() -> None:
    model, x, y = problem(n=8)
    best = torch.full_like(x[:, 0], torch.inf)
    for search_steps in (1, 4, 8, 12):
        radius = lbfgs(model, x, y, search_steps=search_steps).radius("l2")
        assert bool((radius <= best).all())
        best = radius
    assert bool(best.isfinite().all())


def test_first_c_hardly_matters() -> None:
    model, x, y = problem(n=8)
    small = lbfgs(model, x, y, c=1e-2, search_steps=16).radius("l2")
    large = lbfgs(model, x, y, c=1e2, search_steps=16).radius("l2")
    torch.testing.assert_close(small, large, rtol=0.05, atol=1e-3)
