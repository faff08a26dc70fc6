"""ZO-SVRG beyond the shared suite: every round is the paper's, and its estimates are better than those without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustlab.attacker.victim import Victim
from robustlab.attacks import zo_svrg
from tests.suite.models import mlp
from tests.unit.test_nes import WIDE, blocked, margin


def test_every_round_is_the_papers() -> None:
    """Rebuilt from the points asked about: the same directions at the point and the snapshot; all counted.

    The estimate so corrected is nearer to the gradient by autograd than the cheap one of the same directions.
    """
    seen, x, y = blocked((2, 3, 3))
    q, many, mu, eps, alpha, epoch, rounds = 2, 40, 1e-3, 5.0, 0.01, 4, 12
    victim = Victim(seen, bounds=WIDE)
    result = zo_svrg(
        victim,
        x,
        y,
        norm="l2",
        eps=eps,
        steps=rounds,
        epoch=epoch,
        q=q,
        q_full=many,
        mu=mu,
        step_size=alpha,
        loss="margin",
    )
    assert result.queries.tolist() == [1 + 3 * (many + 1) + 9 * (2 * q + 1)]
    asked, here = iter(seen.points[1:]), x
    corrected, cheap = list[Tensor](), list[Tensor]()

    def estimate(probes: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        u = (probes - at) / mu
        torch.testing.assert_close(u.flatten(1).norm(dim=1), torch.ones(len(u), dtype=torch.float64))
        rise = margin(seen, probes, y) - margin(seen, at, y)
        return 18 / mu * (rise.reshape(-1, 1, 1, 1) * u).mean(dim=0, keepdim=True), u

    for k in range(rounds):
        found, u = estimate(next(asked), here)
        if k % epoch == 0:
            snapshot, full = here, found
        else:
            old, same = estimate(next(asked), snapshot)
            torch.testing.assert_close(u, same, rtol=0, atol=1e-9)
            point = here.clone().requires_grad_(True)
            z = seen.model(point)
            (truth,) = torch.autograd.grad(
                (z.gather(1, y[:, None])[0] - z.index_fill(1, y, -torch.inf).amax()).sum(), point
            )
            cheap.append((found - truth).norm())
            found = found - old + full
            corrected.append((found - truth).norm())
        moved = next(asked)
        torch.testing.assert_close(moved, here - alpha * found / found.norm(), rtol=0, atol=1e-8)
        here = moved
    assert float(torch.stack(corrected).mean()) < 0.7 * float(torch.stack(cheap).mean())


def test_bad_input() -> None:
    model, x = mlp((6,), 3), torch.rand(2, 6, dtype=torch.float64)
    for name, value in (("q", 0), ("q_full", 0), ("epoch", 0), ("steps", 0), ("mu", 0.0)):
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            zo_svrg(model, x, eps=0.1, **{name: value})  # type: ignore[arg-type]
