"""Bandits beyond the shared suite: each round is the paper's, and its priors save queries."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.attacker.victim import Victim
from robustlab.attacks import bandits, nes
from robustlab.geometry.keyed import Noise
from tests.suite.cases import noise_box
from tests.suite.models import Affine, Counting, Then, mlp
from tests.suite.test_success import Recording
from tests.unit.test_nes import WIDE, blocked, margin

SHAPE = (2, 6, 4)


def enlarged(v: Tensor) -> Tensor:
    """3 × 2 tiles of two channels on 6 × 4 pixels."""
    return v.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_round_is_the_papers(norm: str) -> None:
    """Its algorithms written down again beside the points asked about, from the same random numbers."""
    seen, x, y = blocked(SHAPE)
    eps, alpha, delta, eta, kappa, rounds = 0.3, 0.07, 0.5, 0.02, 3.0, 9
    result = bandits(
        Victim(seen, bounds=WIDE), x, y, norm=norm, eps=eps, steps=rounds, tiles=2, exploration=delta,  # type: ignore[arg-type]
        probe=eta, prior_rate=kappa / 100, step_size=alpha, loss="margin",
    )  # fmt: skip
    assert result.queries.tolist() == [1 + 3 * rounds] == [sum(map(len, seen.points))]
    here, v, noise = x, torch.zeros(1, 2, 3, 2, dtype=torch.float64), Noise(0, torch.tensor([0]))
    for k, (probes, point) in enumerate(zip(seen.points[1::2], seen.points[2::2], strict=True)):
        u = noise.quick_normal(k, (2, 3, 2), torch.float64) / math.sqrt(12)
        q = torch.cat([enlarged(v + delta * u), enlarged(v - delta * u)])
        torch.testing.assert_close(probes, here + eta * q / q.flatten(1).norm(dim=1)[:, None, None, None])
        first, second = margin(seen, probes, y)
        g = (second - first) / eta * u  # (δ·Δ/δ) u; κ is for a box of width 1, and this one has width 100
        if norm == "linf":
            p = (v + 1) / 2
            up, down = p * torch.exp(kappa * g), (1 - p) * torch.exp(-kappa * g)
            v = 2 * up / (up + down) - 1
            moved = here + alpha * enlarged(v).sign() - x
            moved = moved.clamp(-eps, eps)
        else:
            v = v + kappa * g
            moved = here + alpha * enlarged(v) / enlarged(v).norm() - x
            moved = moved * min(1.0, eps / float(moved.norm()))
        torch.testing.assert_close(point, x + moved, rtol=0, atol=1e-9)
        here = point


def smooth_affine(n: int) -> tuple[Affine, Tensor, Tensor]:
    """Two classes that differ by tiles of 2 × 2 pixels, of slope 1; points near the boundary; the slope at each."""
    generator = torch.Generator().manual_seed(0)
    weight = enlarged(torch.randn(1, 2, 4, 4, generator=generator, dtype=torch.float64)).flatten(1)
    weight /= 2 * weight.norm()
    model = Affine(torch.cat([weight, -weight]), torch.zeros(2, dtype=torch.float64))
    x = 0.1 * torch.randn(n, 2, 8, 8, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        first = model(x).argmax(dim=1) == 0
        return model, x, torch.where(first[:, None], 2 * weight, -2 * weight)


TUNED = {"linf": {"exploration": 1.0, "prior_rate": 6.0}, "l2": {"exploration": 0.1, "prior_rate": 0.3}}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_priors_save_queries(norm: str) -> None:
    """Tiles cost less than no tiles and than NES, at twice the smallest radius, on a gradient made of tiles."""
    model, x, slope = smooth_affine(8)
    eps = 2 * (x.flatten(1) * slope).sum(dim=1).abs() / slope.norm(p=1 if norm == "linf" else 2, dim=1)
    victim = Victim(model, bounds=(-1.0, 1.0), budget=600)

    def spent(attack: object, **more: object) -> float:
        result = attack(victim, x, norm=norm, eps=eps, loss="margin", step_size=eps / 20, **more)  # type: ignore[operator]
        return float(torch.where(result.success, result.first_success, 600).double().mean())

    tiled, plain = (spent(bandits, tiles=tiles, probe=0.05, **TUNED[norm]) for tiles in (4, 8))
    assert tiled < 0.8 * plain
    assert tiled < 0.8 * spent(nes, q=10, sigma=0.01)


def test_the_prior_turns_to_the_gradient() -> None:
    """The cosine of a step with a constant gradient climbs far above that of a single pair, √(2/(πd))."""
    model, x, slope = smooth_affine(1)
    wall = torch.where(model(x).detach() == model(x).detach().amax(), 1e4, 0.0)
    seen = Recording(Then(model, lambda z: z + wall))
    run = {"eps": 0.9, "steps": 200, "tiles": 4, "step_size": 1e-4, "loss": "margin", "probe": 0.05, **TUNED["l2"]}
    bandits(Victim(seen, bounds=(-1.0, 1.0)), x, norm="l2", **run)  # type: ignore[arg-type]
    step = (seen.points[-1] - seen.points[-3]).flatten()
    cosine = float(F.cosine_similarity(step, -slope[0], dim=0))
    assert cosine > 0.7 > 9 * math.sqrt(2 / (math.pi * 128))


def test_probes_in_the_corner_of_the_box() -> None:
    """Every question is inside, and images of any form are tiled."""
    for shape in ((1, 1, 1), (3, 7, 5), (1, 2, 9)):
        model, x = Counting(mlp(shape, 3)), noise_box(4, shape, torch.float64).round()
        result = bandits(model, x, eps=0.3, steps=6, probe=0.5)
        assert model.low >= 0 and model.high <= 1 and model.forwards == int(result.queries.sum())


def test_bad_input() -> None:
    model, x = mlp(SHAPE, 3), torch.rand(2, *SHAPE, dtype=torch.float64)
    wrong = {"steps": (0,), "tiles": (0, 5), "exploration": (0.0,), "probe": (-1.0, math.nan), "prior_rate": (0.0,)}
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name}: want"):
                bandits(model, x, eps=0.1, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^x: want images"):
        bandits(mlp((6,), 3), torch.rand(2, 6, dtype=torch.float64), eps=0.1)
