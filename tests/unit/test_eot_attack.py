"""EOT as an attack: PGD where nothing is transformed, closed forms on affine models, fresh unbiased draws, held out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.results import so_far
from robustlab.attacker.victim import Victim
from robustlab.attacks.semantic.spatial import transform
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.evaluation.adaptive.eot_attack import EotResult, eot_attack, expected
from robustlab.evaluation.adaptive.random_views import RandomViews
from robustlab.geometry.keyed import Noise
from tests.suite.models import Affine, Counting, mlp
from tests.unit.test_uap import Ends

WIDE = (-50.0, 50.0)
View = Callable[[Tensor], Tensor]


def lead(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """z_0 − z_1: linear where the model is."""
    return logits[:, 0] - logits[:, 1]


def points(n: int = 5, d: int = 6) -> Tensor:
    return 0.2 + 0.6 * torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def affine(d: int = 6) -> tuple[Affine, Tensor]:
    way = torch.randn(d, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Affine(torch.stack([way, 0 * way]), torch.tensor([9.0, 0.0]).double()), way


def maps(count: int = 4, d: int = 6) -> tuple[list[View], Tensor]:
    """t(x) = A x + c, and the matrices (count, d, d)."""
    generator = torch.Generator().manual_seed(5)
    matrices = torch.randn(count, d, d, generator=generator, dtype=torch.float64)
    shifts = torch.randn(count, d, generator=generator, dtype=torch.float64)
    return [lambda x, a=a, c=c: x @ a.T + c for a, c in zip(matrices, shifts, strict=True)], matrices


class Stretched:
    """Every feature times a uniform number of its own, so that E t(x) = x."""

    def view(self, x: Tensor, noise: Noise, draw: tuple[int, ...]) -> View:
        factor = noise.uniform(draw, x.shape[1:], x.dtype, 0.0, 2.0)
        return lambda given: given * factor


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_without_a_transformation_it_is_pgd(norm: Any) -> None:
    model, x = mlp((6,), 3, torch.float64, 1), points()
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    ours = eot_attack(model, x, transforms=[lambda t: t], norm=norm, eps=0.3, steps=12)
    theirs = pgd_maximize(model, x, y, norm=norm, eps=0.3, steps=12, init=torch.zeros_like(x))
    torch.testing.assert_close(ours.x_adv, theirs, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(ours.success, model(theirs).argmax(dim=1) != y) and bool(ours.success.any())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_optimum_under_affine_maps(norm: Any) -> None:
    """E[⟨w, A(x + δ) + c⟩] falls fastest along −(mean A)ᵀ w, and the ball's best point in that direction is it."""
    (model, way), (family, matrices), x = affine(), maps(), points()
    slope = matrices.mean(dim=0).T @ way
    unit = slope.sign() if norm == "linf" else slope / slope.norm()
    result = eot_attack(Victim(model, bounds=WIDE), x, transforms=family, norm=norm, eps=0.7, loss=lead)
    torch.testing.assert_close(result.x_adv, x - 0.7 * unit, rtol=0, atol=1e-9)
    with torch.no_grad():
        hits = torch.stack([model(view(result.x_adv)).argmax(dim=1) != model(x).argmax(dim=1) for view in family])
    torch.testing.assert_close(result.rate, hits.double().mean(dim=0))


@pytest.mark.slow
def test_the_gradient_is_unbiased() -> None:
    """Of one draw, over many keys, against the mean by a sum of 4000 by hand: 4.5 standard errors in every number."""
    model, x = mlp((6,), 3, torch.float64, 2), points(2)
    g, (low, high) = attacker_loss("ce"), WIDE

    def estimate(seed: int) -> Tensor:
        with Victim(model, bounds=(low, high)).session(x, loss=g) as session:
            at = session.everyone()
            at.eps, at.points = torch.ones(2).double(), x
            noise = Noise(seed, torch.arange(2))
            return expected(session, at, [Stretched().view(x, noise, (k,)) for k in range(2)], g)[1]

    runs = torch.stack([estimate(seed) for seed in range(300)])
    factors = 2 * torch.rand(4000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    rows = []
    for i in range(2):
        leaf = x[i].clone().requires_grad_(True)
        value = g(model(leaf * factors), y[i].expand(4000), None, 0.0).mean()
        rows.append(torch.autograd.grad(value, leaf)[0])
    spread = runs.std(dim=0) * (1 / 300 + 2 / 4000) ** 0.5
    assert bool(((runs.mean(dim=0) - torch.stack(rows)).abs() < 4.5 * spread).all()) and float(spread.min()) > 0


def test_the_penalty_by_finite_differences() -> None:
    """λ·E‖t(x + δ) − t(x)‖₂ and its gradient; at δ = 0, where it has none, 0 is taken."""
    (model, _), (family, _), x = affine(), maps(), points(2)
    g = attacker_loss(lead)
    with Victim(model, bounds=WIDE).session(x, loss=g) as session:
        at = session.everyone()
        at.eps = torch.ones(2).double()

        def value(where: Tensor, weight: float) -> Tensor:
            at.points = where
            return expected(session, at, family, g, weight)[0]

        at.points = x
        without, pulled = (expected(session, at, family, g, weight)[1] for weight in (0.0, 3.0))
        torch.testing.assert_close(without, pulled)
        here = x + 0.1
        at.points = here
        grad = expected(session, at, family, g, 3.0)[1]
        by_hand = torch.stack([(view(here) - view(x)).norm(dim=1) for view in family]).mean(dim=0)
        torch.testing.assert_close(value(here, 3.0) - value(here, 0.0), 3.0 * by_hand)
        for j in range(6):
            nudge = torch.zeros(6, dtype=torch.float64).index_fill_(0, torch.tensor([j]), 1e-6)
            slope = (value(here + nudge, 3.0) - value(here - nudge, 3.0)) / 2e-6
            torch.testing.assert_close(slope, grad[:, j], rtol=1e-5, atol=1e-6)


def test_draws_are_fresh_in_each_step_and_at_the_end() -> None:
    drawn = list[tuple[int, ...]]()

    class Noted(Stretched):
        def view(self, x: Tensor, noise: Noise, draw: tuple[int, ...]) -> View:
            drawn.append((*draw, noise.seed, len(x)))
            return super().view(x, noise, draw)

    model, x = mlp((6,), 3, torch.float64, 1), points()
    eot_attack(Victim(model, bounds=WIDE), x, transforms=Noted(), eps=0.1, steps=3, draws=4, held_out=7, seed=1)
    assert len(drawn) == len(set(drawn)) == 3 * 4 + 7 and len({seed for *_, seed, _ in drawn}) == 2


def test_rows_do_not_know_of_each_other() -> None:
    model, x = mlp((6,), 3, torch.float64, 1), points()
    arguments: dict[str, Any] = {"transforms": Stretched(), "eps": 0.2, "steps": 5, "penalty": 0.1}
    whole = eot_attack(Victim(model, bounds=WIDE), x, **arguments)
    alone = eot_attack(Victim(model, bounds=WIDE), x[2:3], ids=torch.tensor([2]), **arguments)
    torch.testing.assert_close(whole.x_adv[2:3], alone.x_adv, rtol=0, atol=1e-9)
    assert float(whole.rate[2]) == float(alone.rate[0])


@pytest.mark.parametrize("budget", [None, 9, 20])
def test_every_forward_row_is_counted(budget: int | None) -> None:
    model, x = mlp((6,), 3, torch.float64, 1), points()
    seen = Counting(model)
    result = eot_attack(
        Victim(seen, bounds=(0.0, 1.0), budget=budget), x, transforms=Stretched(), eps=0.2, steps=4, draws=3, held_out=5
    )
    steps = {None: 4, 9: 1, 20: 4}[budget]
    assert int(result.queries.sum()) == seen.forwards == 5 * (1 + 3 * steps + 5)
    assert int(result.gradients.sum()) == seen.backwards == 5 * 3 * steps
    assert seen.low >= 0 and seen.high <= 1 and float(result.distances["linf"].max()) <= 0.2 + 1e-9


def test_an_interruption_leaves_the_points() -> None:
    """After the question about x and two of four steps, in one pass each."""
    model, x = mlp((6,), 3, torch.float64, 1), points()
    arguments: dict[str, Any] = {"transforms": Stretched(), "eps": 0.2, "draws": 2, "step_size": 0.03}
    with pytest.raises(KeyboardInterrupt) as caught:
        eot_attack(Ends(model, 1 + 2), x, steps=4, **arguments)
    found, two = so_far(caught.value), eot_attack(model, x, steps=2, **arguments)
    assert isinstance(found, EotResult) and torch.equal(found.x_adv, two.x_adv)
    assert bool(found.rate.isnan().all()) and not bool(found.success.any())


class Corner(nn.Module):
    """Class 1 where the pixel in the middle of the upper edge is bright enough, whatever else there is."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0, 1:3, 4:6].mean(dim=(1, 2))
        return torch.stack([0.5 - bright, bright - 0.5], dim=1) * 8


def test_it_holds_in_views_in_which_pgd_does_not() -> None:
    """A model that looks at four pixels is fooled by PGD there, and not once the image is moved; EOT paints wider."""
    x = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
    family = RandomViews(rotation=0.0, scale=(1.0, 1.0), translation=0.2, brightness=0.0)
    plain = eot_attack(Corner(), x, transforms=[lambda t: t], norm="l2", eps=1.7)
    robust = eot_attack(Corner(), x, transforms=family, norm="l2", eps=2.2, rate=0.5, steps=60)
    longer = eot_attack(Corner(), x, transforms=[lambda t: t], norm="l2", eps=2.2)
    judged = [family.view(x, Noise(77, torch.arange(2)), (s,)) for s in range(200)]

    def rate(points: Tensor) -> Tensor:
        with torch.no_grad():
            return (
                torch.stack([Corner()(view(points).clamp(0, 1)).argmax(dim=1) == 1 for view in judged]).double().mean(0)
            )

    assert bool(plain.success.all()) and bool(longer.success.all())
    assert bool((rate(robust.x_adv) > rate(longer.x_adv) + 0.1).all()), (rate(robust.x_adv), rate(longer.x_adv))
    assert bool(((robust.rate - rate(robust.x_adv)).abs() < 0.3).all())


def test_views_are_those_of_their_numbers() -> None:
    """At scale 2 about the center the middle of an image is looked at; without any change the image stays."""
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = Noise(0, torch.arange(3))
    still = RandomViews(rotation=0.0, scale=(1.0, 1.0), translation=0.0, brightness=0.0).view(x, noise, (0,))
    torch.testing.assert_close(still(x), x, rtol=0, atol=1e-12)
    zero = torch.zeros(3, dtype=torch.float64)
    large = transform(x, zero, zero, zero, scale=zero + 2)
    rows = (torch.arange(8) - 3.5) / 2 + 3.5
    below, part = rows.floor().long(), (rows - rows.floor()).double()
    lines = x[:, :, below] * (1 - part)[:, None] + x[:, :, below + 1] * part[:, None]
    want = lines[..., below] * (1 - part) + lines[..., below + 1] * part
    torch.testing.assert_close(large, want, rtol=0, atol=1e-12)
    lit = RandomViews(rotation=0.0, scale=(1.0, 1.0), translation=0.0, brightness=0.2, sigma=0.1).view(x, noise, (1,))
    assert 0.05 < float((lit(x) - x).std()) < 0.3 and torch.equal(lit(x), lit(x))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("transforms", [], TypeError), ("transforms", 3, TypeError), ("transforms", [3], TypeError),
        ("held_out", 0, ValueError), ("held_out", [], TypeError), ("draws", 0, ValueError), ("steps", 0, ValueError),
        ("norm", "l1", ValueError), ("eps", -0.1, ValueError), ("penalty", -1.0, ValueError),
        ("rate", 0.0, ValueError), ("rate", 1.1, ValueError), ("step_size", 0.0, ValueError),
    ],
)  # fmt: skip
def test_bad_arguments(name: str, value: Any, error: type[Exception]) -> None:
    seen = Counting(mlp((6,), 3, torch.float64, 1))
    with pytest.raises(error, match=rf"^{name}: "):
        eot_attack(seen, points(), **{"transforms": Stretched(), "eps": 0.1, name: value})
    assert seen.forwards == 0
