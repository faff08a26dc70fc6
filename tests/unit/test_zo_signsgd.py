"""ZO-signSGD beyond the shared suite: every round is the paper's, and every coordinate moves by the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import nes, zo_signsgd, zo_svrg
from tests.suite.models import Affine, mlp
from tests.unit.test_nes import WIDE, blocked, margin


@pytest.mark.parametrize("pairs", [False, True])
def test_every_round_is_the_papers(pairs: bool) -> None:
    """Rebuilt from the points asked about: unit directions, one-sided or in pairs, signs, projection; all counted."""
    seen, x, y = blocked((2, 3, 3))
    q, mu, eps, alpha, rounds = 5, 0.01, 0.1, 0.03, 8
    result = zo_signsgd(
        Victim(seen, bounds=WIDE), x, y, eps=eps, steps=rounds, q=q, mu=mu, step_size=alpha, pairs=pairs, loss="margin"
    )
    each = 2 * q if pairs else q
    assert result.queries.tolist() == [1 + rounds * (each + 1)]
    here = x
    for probes, point in zip(seen.points[1::2], seen.points[2::2], strict=True):
        u = (probes[:q] - here) / mu
        torch.testing.assert_close(u.flatten(1).norm(dim=1), torch.ones(q, dtype=torch.float64))
        loss, base = margin(seen, probes, y), margin(seen, here, y)
        if pairs:
            torch.testing.assert_close(probes[q:], here - mu * u)
        rise = loss[:q] - loss[q:] if pairs else loss - base
        grad = (rise.reshape(q, 1, 1, 1) * u).sum(dim=0, keepdim=True)
        torch.testing.assert_close(point, x + (here - alpha * grad.sign() - x).clamp(-eps, eps), rtol=0, atol=1e-9)
        here = point


def test_iterates_are_steps_of_one_length() -> None:
    """In a wide ball each coordinate of δ is a whole number of α, of the parity of the rounds: signs alone."""
    seen, x, y = blocked((2, 3, 3))
    zo_signsgd(Victim(seen, bounds=WIDE), x, y, eps=9.0, steps=7, q=3, step_size=0.125)
    whole = (seen.points[-1] - x) / 0.125
    torch.testing.assert_close(whole, whole.round())
    assert bool((whole.round() % 2 == 1).all()) and float(whole.abs().max()) <= 7


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_comes_near_the_optimum_of_an_affine_model(norm: str) -> None:
    """Signs reach the corner of the cube, best in ℓ∞; in ℓ2 they stay off the gradient, by its cosine to them.

    A coordinate of small slope often moves the wrong way, so that there are ten times as many directions as dimensions.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 6, generator=generator).double()
    x = 0.2 * torch.randn(12, 6, generator=generator).double()
    model = Affine(weight, torch.zeros(2, dtype=torch.float64))
    with torch.no_grad():
        z = model(x)
    slope = weight[0] - weight[1]
    best = (z[:, 0] - z[:, 1]).abs() / slope.norm(p=1 if norm == "linf" else 2)
    reach = 1.0 if norm == "linf" else float(slope.norm() * 6**0.5 / slope.norm(p=1))
    victim = Victim(model, bounds=WIDE)
    above = zo_signsgd(victim, x, norm=norm, eps=1.05 * reach * best, steps=60, q=60)  # type: ignore[arg-type]
    below = zo_signsgd(victim, x, norm=norm, eps=0.999 * best, steps=60, q=60)  # type: ignore[arg-type]
    assert bool(above.success.all()) and not bool(below.success.any())


def test_bad_input() -> None:
    model, x = mlp((6,), 3), torch.rand(2, 6, dtype=torch.float64)
    for name, value in (("q", 0), ("steps", 0), ("mu", 0.0)):
        with pytest.raises(ValueError, match=rf"^{name}: want"):
            zo_signsgd(model, x, eps=0.1, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", [nes, zo_signsgd, zo_svrg])
def test_in_half_precision_probes_are_not_rounded_away(attack: Callable[..., AttackResult]) -> None:
    """By default most elements of a probe move, though bfloat16 has steps of 1/256 there."""
    asked: list[Tensor] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).bfloat16()
    model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))
    x = torch.full((1, 3, 8, 8), 0.75, dtype=torch.bfloat16)
    attack(model, x, model(x).argmax(dim=1), norm="linf", eps=0.01, steps=1, q=8)
    probes = torch.cat([points for points in asked if len(points) > 1])
    assert float((probes != 0.75).float().mean()) > 0.5
