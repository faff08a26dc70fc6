"""NES beyond the shared suite: what it asks, round by round, its momentum and step sizes, and what hinders it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustlab.attacker.victim import Victim
from robustlab.attacks import nes
from tests.suite.cases import noise_box
from tests.suite.models import Affine, Counting, Then, mlp
from tests.suite.test_success import Recording

WIDE = (-50.0, 50.0)


def blocked(shape: tuple[int, ...], seed: int = 0) -> tuple[Recording, Tensor, Tensor]:
    """A model whose label cannot be left, one sample, and its label."""
    model, x = mlp(shape, 3, seed=seed), 0.3 + 0.4 * noise_box(1, shape, torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    wall = torch.zeros(3, dtype=torch.float64)
    wall[int(y)] = 30.0
    return Recording(Then(model, lambda z: z + wall)), x, y


def margin(seen: Recording, points: Tensor, y: Tensor) -> Tensor:
    """z_y − max_{k≠y} z_k of one sample's points: the loss that all these attacks make small."""
    with torch.no_grad():
        z = seen.model(points)
    return z[:, int(y)] - z.index_fill(1, y, -torch.inf).amax(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_round_is_the_papers(norm: str) -> None:
    """Rebuilt from the points asked about: pairs, estimate, momentum, step and projection; counted to the query."""
    seen, x, y = blocked((2, 3, 3))
    q, sigma, eps, alpha, rounds = 4, 0.01, 0.2, 0.05, 7
    victim = Victim(seen, bounds=WIDE)
    result = nes(
        victim,
        x,
        y,
        norm=norm,
        eps=eps,
        steps=rounds,
        q=q,
        sigma=sigma,
        step_size=alpha,
        plateau=99,
        loss="margin",  # type: ignore[arg-type]
    )
    assert result.queries.tolist() == [1 + rounds * (2 * q + 1)] and not bool(result.success)
    asked, here, momentum = seen.points[1:], x, torch.zeros_like(x)
    assert [len(p) for p in asked] == [2 * q, 1] * rounds
    for probes, point in zip(asked[::2], asked[1::2], strict=True):
        up, down = probes.chunk(2)
        torch.testing.assert_close((up + down) / 2, here.expand_as(up), rtol=0, atol=1e-12)
        u = (up - here) / sigma
        assert 0.5 < float(u.square().mean()) < 2.0
        loss = margin(seen, probes, y)
        grad = ((loss[:q] - loss[q:]).reshape(q, 1, 1, 1) * u).mean(dim=0, keepdim=True) / (2 * sigma)
        momentum = 0.9 * momentum + 0.1 * grad
        step = momentum.sign() if norm == "linf" else momentum / momentum.norm()
        delta = here - alpha * step - x
        delta = delta.clamp(-eps, eps) if norm == "linf" else delta * min(1.0, eps / float(delta.norm()))
        torch.testing.assert_close(point, x + delta, rtol=0, atol=1e-9)
        here = point


def test_pairs_stay_pairs_in_the_corner_of_the_box() -> None:
    """Every pair is moved inside as a whole: no question is outside, and no coordinate loses half of its slope."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, generator=generator, dtype=torch.float64)
    model = Affine(torch.stack([weight, -weight]), torch.tensor([40.0, 0.0], dtype=torch.float64))
    x, seen = (weight > 0).double()[None], Recording(model)  # at the far end of every coordinate
    nes(Victim(seen), x, eps=0.5, steps=3, q=6, sigma=0.01)
    for probes in seen.points[1::2]:
        assert bool(((probes >= 0) & (probes <= 1)).all())
        up, down = probes.chunk(2)
        with torch.no_grad():
            assert bool(((up - down).abs().amin(dim=1) > 0).all()), "a coordinate of a pair was clipped to the same end"


def test_the_step_is_halved_on_a_plateau() -> None:
    """A flat model with a loss that only rises: α halves each ``plateau`` rounds, down to a 200th."""
    asked = list[Tensor]()

    def rising(points: Tensor) -> Tensor:
        asked.append(points)
        level = 1 + 0.01 * len(asked) + 1e-6 * points.flatten(1).sum(dim=1)
        return torch.stack([level, torch.zeros_like(level)], dim=1)

    x = torch.zeros(1, 4, dtype=torch.float64)
    nes(Victim(rising, bounds=WIDE, access="soft"), x, eps=40.0, steps=40, q=1, step_size=0.4, momentum=0.0, plateau=3)
    points = torch.cat([x, *asked[2::2]])
    steps = (points[1:] - points[:-1]).abs().amax(dim=1)
    halvings = [max(0.4 / 2 ** (k // 3), 0.4 / 200) for k in range(40)]
    torch.testing.assert_close(steps, torch.tensor(halvings, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_comes_near_the_optimum_of_an_affine_model(norm: str) -> None:
    """Above the smallest radius it gets there, below it never."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (
        torch.randn(2, 18, generator=generator).double(),
        0.2 * torch.randn(12, 18, generator=generator).double(),
    )
    model = Affine(weight, torch.zeros(2, dtype=torch.float64))
    with torch.no_grad():
        z = model(x)
    best = (z[:, 0] - z[:, 1]).abs() / (weight[0] - weight[1]).norm(p=1 if norm == "linf" else 2)
    victim = Victim(model, bounds=WIDE)
    above = nes(victim, x, norm=norm, eps=1.05 * best, steps=40, q=40)  # type: ignore[arg-type]
    below = nes(victim, x, norm=norm, eps=0.999 * best, steps=40, q=40)  # type: ignore[arg-type]
    assert bool(above.success.all()) and not bool(below.success.any())


def test_a_round_that_cannot_be_paid_is_not_begun() -> None:
    model, x = mlp((6,), 3), noise_box(5, (6,), torch.float64)
    with pytest.raises(ValueError, match=r"^budget: want at least 13,"):
        nes(Victim(model, budget=12), x, eps=1e-9, q=5)
    for budget, spent in ((13, 12), (23, 12), (24, 23)):
        seen = Counting(model)
        result = nes(Victim(seen, budget=budget, access="soft"), x, eps=1e-9, q=5)
        assert result.queries.tolist() == [spent] * 5 and seen.forwards == 5 * spent


def test_bad_input() -> None:
    model, x = mlp((6,), 3), torch.rand(2, 6, dtype=torch.float64)
    for name, values in {
        "q": (0,),
        "steps": (0,),
        "plateau": (1,),
        "sigma": (0.0, math.nan),
        "momentum": (-0.1, 1.0),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name}: want"):
                nes(model, x, eps=0.1, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^access: this attack needs 'soft'"):
        nes(Victim(model, access="hard"), x, eps=0.1)
