"""ZO-ADMM beyond the shared suite: feasible whatever δ is, rounds by the augmented Lagrangian, its optimum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustlab.attacker.victim import Victim
from robustlab.attacks import zo_admm
from robustlab.geometry.norms import get_norm
from tests.suite.cases import noise_box
from tests.suite.models import mlp
from tests.suite.oracles import affine_problem, free_optimum
from tests.suite.test_success import Recording
from tests.unit.test_zoo_attack import walled

CPU, D = torch.device("cpu"), 6


def minimum(function: object, start: Tensor) -> Tensor:
    """Where a smooth strictly convex function is smallest, by PyTorch's L-BFGS."""
    v = start.clone().requires_grad_(True)
    solver = torch.optim.LBFGS(
        [v], max_iter=300, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value: Tensor = function(v)  # type: ignore[operator]
        value.backward()
        return value

    solver.step(closure)  # type: ignore[arg-type]
    return v.detach()


def test_rounds_minimize_the_augmented_lagrangian() -> None:
    """ĝ is rebuilt from the probes; δ and z of three rounds are found by a solver, without their formulas."""
    model, x, y = walled((D,))
    gamma, rho, alpha, mu, q = 400.0, 2e3, 3e3, 1e-5, 5
    seen = Recording(model)
    wide = Victim(seen, bounds=(-9.0, 10.0), access="soft")  # 19 wide, and nothing is clipped
    scale = 19.0
    result = zo_admm(wide, x, y, steps=3, q=q, gamma=gamma, rho=rho, alpha=alpha, mu=mu)
    assert result.queries.tolist() == [1 + 3 * (q + 2)] and not bool(result.success.any())
    delta = dual = z = torch.zeros(D, dtype=x.dtype)
    for k in range(3):
        base, probes, asked = seen.points[1 + 3 * k : 4 + 3 * k]
        torch.testing.assert_close(base[0], x[0] + scale * delta, rtol=0, atol=1e-7)
        u = (probes - base) / (mu * scale)
        torch.testing.assert_close(u.norm(dim=1), torch.ones(q, dtype=x.dtype), rtol=0, atol=1e-6)
        with torch.no_grad():
            f = [
                logits[:, int(y)] - logits.index_fill(1, y, -torch.inf).amax(1) for logits in map(model, (probes, base))
            ]
        grad = D / q * ((f[0] - f[1]) / mu) @ u
        old, goal, eta = delta, z - dual, alpha * k**0.5
        delta = minimum(
            lambda v, g=grad, o=old, t=goal, e=eta: (
                v @ g + rho / 2 * (v - t).square().sum() + e / 2 * (v - o).square().sum()
            ),
            old,
        )
        dual = dual + delta - z
        z = minimum(lambda v, t=delta + dual: gamma * v.square().sum() + rho / 2 * (v - t).square().sum(), z)
        torch.testing.assert_close(asked[0], x[0] + scale * z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_what_is_returned_is_feasible_and_fools(norm: str) -> None:
    """Steps that throw δ far out of the box: every question is inside, and the success is the returned point's."""
    net, x = mlp((D,), 3), noise_box(8, (D,), torch.float64)
    y = net(x).argmax(dim=1)
    seen = Recording(net)
    result = zo_admm(Victim(seen, access="soft"), x, y, norm=norm, steps=25, q=4, rho=0.05, alpha=0.0, gamma=1e-3)
    points = torch.cat(seen.points)
    assert bool(((points >= 0) & (points <= 1)).all())
    assert int(result.success.sum()) >= 4
    assert torch.equal(net(result.x_adv).argmax(dim=1) != y, result.success)
    assert torch.equal(result.x_adv[~result.success], x[~result.success])


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "gate"), [("l2", 1.05), ("l1", 1.6), ("linf", 1.6)])
def test_optimum_of_an_affine_model(norm: str, gate: float) -> None:
    """Never below it; near it where all directions are asked, and nearer in its own norm than with another's D."""
    model, x, y = affine_problem(2, 8, 8, CPU, spread=1.0)
    best = free_optimum(model, x, y, norm)
    run = {"steps": 150, "q": 16, "gamma": 10.0 if norm == "l2" else 2.0, "rho": 300.0, "alpha": 20.0}
    victim = Victim(model, bounds=(-3.0, 3.0), access="soft")
    ratio = zo_admm(victim, x, y, norm=norm, **run).radius(norm) / best
    assert bool((ratio >= 1 - 1e-6).all()) and float(ratio.median()) <= gate, ratio
    if norm != "l2":
        other = get_norm(norm).length(zo_admm(victim, x, y, **run | {"gamma": 10.0}).x_adv - x) / best
        assert float(ratio.median()) < float(other.median())


def test_bad_input() -> None:
    net, x = mlp((D,), 3), torch.rand(2, D, dtype=torch.float64)
    for wrong, name in (
        ({"norm": "l0"}, "norm"), ({"q": 0}, "q"), ({"rho": 0.0}, "rho"), ({"alpha": -1.0}, "alpha"),
        ({"gamma": 0.0}, "gamma"), ({"mu": 0.0}, "mu"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            zo_admm(net, x, **wrong)
    with pytest.raises(ValueError, match=r"^budget: want at least 14,"):
        zo_admm(Victim(net, access="soft", budget=13), x, q=10)
