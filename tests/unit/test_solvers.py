"""Steps from a gradient, each against torch's own, a dense solve, a convex solver or the formula of its paper."""

from __future__ import annotations

from types import SimpleNamespace

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from robustlab.attacker.estimators import Directions, central
from robustlab.attacker.live import Best
from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.victim import Victim
from robustlab.attacks.softlabel.solvers import (
    adam,
    descent,
    exponentiated,
    feasible,
    forget,
    heavy,
    linearized,
    natural,
    newton,
    prox,
    steepest_descent,
)
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import Counting, mlp


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_adam_is_torchs() -> None:
    """Over ten steps, every coordinate moving."""
    x, at = torch.nn.Parameter(randn(3, 2, 4)), SimpleNamespace()
    ours, torchs = x.detach().clone(), torch.optim.Adam([x], lr=0.05)
    for k in range(10):
        x.grad = randn(3, 2, 4, seed=k + 1)
        ours += adam(at, x.grad, rate=0.05)
        torchs.step()
        torch.testing.assert_close(ours, x.detach())


@pytest.mark.parametrize("together", [(), (0, 1), (5, 11)])
def test_every_coordinate_counts_its_own_steps(together: tuple[int, ...]) -> None:
    """As if each had an Adam of its own, stepped only when it was chosen; also after steps of all, and before them."""
    start, at, rate = randn(2, 6), SimpleNamespace(), torch.tensor([0.05, 0.2])
    own = [[torch.nn.Parameter(start[i, j].clone()) for j in range(6)] for i in range(2)]
    theirs = [[torch.optim.Adam([p], lr=float(rate[i])) for p in row] for i, row in enumerate(own)]
    ours = start.clone()
    for k in range(12):
        index = torch.stack(
            [torch.randperm(6, generator=torch.Generator().manual_seed(10 * k + i))[:2] for i in (0, 1)]
        )
        if k in together:
            index = torch.arange(6).expand(2, 6)
        slopes = randn(*index.shape, seed=k)
        if k in together:
            ours += adam(at, slopes, rate=rate)
        else:
            ours.scatter_add_(1, index, adam(at, slopes, rate=rate, index=index, like=start))
        for i in range(2):
            for m in range(index.shape[1]):
                j = int(index[i, m])
                own[i][j].grad = slopes[i, m].clone()
                theirs[i][j].step()
    torch.testing.assert_close(ours, torch.stack([torch.stack([p.detach() for p in row]) for row in own]))
    assert at.times.sum(dim=1).tolist() == [24.0 + 4 * len(together)] * 2


def test_adam_starts_anew_for_some() -> None:
    at, fresh, grad = SimpleNamespace(), SimpleNamespace(), randn(2, 5)
    for _ in range(3):
        adam(at, grad, rate=1.0)
    forget(at, torch.tensor([True, False]))
    forget(fresh, torch.tensor([True, False]))  # nothing to forget
    again, first = adam(at, randn(2, 5, seed=1), rate=1.0), adam(fresh, randn(2, 5, seed=1), rate=1.0)
    assert torch.equal(again[0], first[0]) and not torch.equal(again[1], first[1])


def test_newton_solves_a_separable_quadratic_at_once() -> None:
    """Where it bends downward it goes along the gradient."""
    bend, x = torch.tensor([[2.0, 5.0, -3.0, 0.0]]), torch.tensor([[1.0, -2.0, 1.0, 4.0]])
    move = newton(bend * x, bend, 1.0)
    assert torch.equal((x + move)[0, :2], torch.zeros(2)) and torch.equal(move[0, 2:], -(bend * x)[0, 2:])


@pytest.mark.parametrize("r", [1, 3, 12])
def test_natural_gradient_is_the_dense_solve(r: int) -> None:
    grad, scores = randn(4, 2, 5), randn(4, r, 2, 5, seed=1)
    ours = natural(grad, scores, 0.03)
    s = scores.flatten(2)
    dense = s.mT @ s / r + 0.03 * torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(ours.flatten(1), torch.linalg.solve(dense, grad.flatten(1)))


def test_exponentiated_gradient_is_the_papers() -> None:
    """Its formula on [0, 1]; an element at an end by rounding comes back."""
    prior, g = torch.tanh(randn(3, 8)), randn(3, 8, seed=1)
    p = (prior + 1) / 2
    up, down = p * torch.exp(0.7 * g), (1 - p) * torch.exp(-0.7 * g)
    torch.testing.assert_close(exponentiated(prior, g, 0.7), 2 * up / (up + down) - 1)
    stuck = exponentiated(torch.zeros(1, 1), torch.full((1, 1), 1e4), 100.0)
    assert float(stuck) == 1.0
    assert float(exponentiated(stuck, torch.full((1, 1), -1.0), 100.0)) < -0.9


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "l2 squared"])
def test_prox_is_the_solvers(norm: str) -> None:
    v, weight = randn(3, 7), torch.tensor([0.1, 0.8, 30.0], dtype=torch.float64)
    ours = prox(norm, v, weight)  # type: ignore[arg-type]
    for i in range(3):
        z = cp.Variable(7)
        penalty = cp.sum_squares(z) if norm == "l2 squared" else cp.norm(z, {"l1": 1, "l2": 2, "linf": "inf"}[norm])
        cp.Problem(cp.Minimize(float(weight[i]) * penalty + 0.5 * cp.sum_squares(z - v[i].numpy()))).solve(
            solver=cp.CLARABEL
        )
        torch.testing.assert_close(ours[i], torch.as_tensor(z.value, dtype=torch.float64), rtol=1e-4, atol=1e-5)


def test_linearized_step_is_stationary() -> None:
    """The gradient of what it minimizes is 0 there."""
    delta, grad, goal, eta = (
        randn(3, 2, 2),
        randn(3, 2, 2, seed=1),
        randn(3, 2, 2, seed=2),
        torch.tensor([0.0, 1.0, 7.0]),
    )
    found = linearized(delta, grad, goal, rho=0.5, eta=eta).requires_grad_(True)
    near = 0.25 * (found - goal).square() + 0.5 * eta[:, None, None] * (found - delta).square()
    (slope,) = torch.autograd.grad((grad * found + near).sum(), found)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


def test_admm_finds_the_constrained_minimum() -> None:
    """The pieces together, on a quadratic over ball ∩ box: the convex solver's answer."""
    root, b, rho = randn(5, 5), randn(5, seed=2), 2.0
    hessian = root @ root.T + torch.eye(5, dtype=torch.float64)
    ball, box = get_norm("l2"), (0.0, 1.0)
    at = SimpleNamespace(
        x=torch.tensor([[0.1, 0.9, 0.5, 0.0, 1.0]], dtype=torch.float64), eps=torch.tensor([0.3]).double()
    )
    delta = z = dual = torch.zeros(1, 5, dtype=torch.float64)
    eta = float(torch.linalg.eigvalsh(hessian).max())
    for _ in range(3000):
        delta = linearized(delta, delta @ hessian + b, z - dual, rho=rho, eta=eta)
        z = feasible(ball, at, at.x + prox("l2 squared", delta + dual, 0.5 / rho), box) - at.x
        dual = dual + delta - z
    v, x = cp.Variable(5), at.x[0].numpy()
    loss = 0.5 * cp.quad_form(v, cp.psd_wrap(hessian.numpy())) + b.numpy() @ v
    # A projection after a prox is the prox of the sum for ‖z‖₂², whose prox only scales.
    problem = cp.Problem(cp.Minimize(loss + 0.5 * cp.sum_squares(v)), [cp.norm(v) <= 0.3, x + v >= 0.0, x + v <= 1.0])
    problem.solve(solver=cp.CLARABEL)
    assert float((delta - z).abs().max()) < 1e-8
    value = float(0.5 * (z @ hessian * z).sum() + (z @ b).sum() + 0.5 * z.square().sum())
    assert value == pytest.approx(problem.value, abs=1e-5)
    torch.testing.assert_close(z[0], torch.as_tensor(v.value, dtype=torch.float64), rtol=0, atol=1e-4)


def test_plain_moves() -> None:
    grad, rate = randn(2, 3, 2), torch.tensor([1.0, 0.5])
    torch.testing.assert_close(descent(grad, rate), -grad * rate[:, None, None])
    assert torch.equal(steepest_descent(get_norm("linf"), grad, 0.1), -0.1 * grad.sign())
    unit = steepest_descent(get_norm("l2"), grad, 2.0)
    torch.testing.assert_close(unit, -2 * grad / grad.flatten(1).norm(dim=1)[:, None, None])
    at = SimpleNamespace()
    for k in range(3):
        found = heavy(at, randn(2, 3, seed=k), 0.9)
    torch.testing.assert_close(found, sum(0.1 * 0.9 ** (2 - k) * randn(2, 3, seed=k) for k in range(3)))
    with pytest.raises(ValueError, match=r"^damping: want"):
        natural(grad, grad[:, None], 0.0)
    with pytest.raises(ValueError, match=r"^norm: want"):
        prox("l0", grad, 1.0)  # type: ignore[arg-type]


def test_a_pairing_of_ones_own() -> None:
    """As the module's docstring has it: sphere and Adam, which no method here pairs; alone or in a batch."""
    model, x, ball, g = (
        mlp((2, 4, 4), 3),
        noise_box(8, (2, 4, 4), torch.float64),
        get_norm("linf"),
        attacker_loss("margin"),
    )

    def attack(x: Tensor, ids: Tensor) -> tuple[object, int]:
        seen = Counting(model)
        with Victim(seen).session(x, None, ids=ids, access="soft", loss=g) as session:
            live, best, ends = session.live(noise=session.noise(0)), Best(session), (session.low, session.high)
            live.points, live.eps = live.x, torch.full((len(live),), 0.1, dtype=x.dtype)
            for k in range(15):
                estimate = central(
                    session.values(live, g), live.points, Directions(live.noise, k, 5, live.x, "sphere"), 1e-3, box=ends
                )
                live.points = feasible(ball, live, live.points + adam(live, estimate, rate=0.02), ends)
                answer = session.ask(live.points, live, g)
                best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
                live.leave(answer.met)
                if not len(live):
                    break
            return session.result(best.points, asked=True), seen.forwards

    result, forwards = attack(x, torch.arange(8))
    assert int(result.queries.sum()) == forwards  # type: ignore[attr-defined]
    assert int(result.success.sum()) >= 3  # type: ignore[attr-defined]
    assert float(result.distances["linf"].max()) <= 0.1 + 1e-12  # type: ignore[attr-defined]
    alone, _ = attack(x[5:6], torch.tensor([5]))
    torch.testing.assert_close(alone.x_adv[0], result.x_adv[5])  # type: ignore[attr-defined]
