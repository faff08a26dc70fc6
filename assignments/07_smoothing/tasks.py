"""Smoothing: what each student gets, and the tests of what comes back.

A student smooths with noise of one kind, drawn for each value alone, and certifies in the norm that belongs to it:

    gaussian   N(0, scale²)           ℓ2, worked out in the instructor's copy, given to no student
    laplace    exp(−|z| / scale)      ℓ1
    uniform    on [−scale, scale]     ℓ1

A model that decides by one threshold is smoothed to itself, and the share of its votes is known: the distribution
function of the noise at the distance to the threshold. So the judge knows when a certificate is false. It counts how
many are, over many inputs, and how large the others are. The model stays with the judge, who also counts the draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

from assignments.grading.task import METHODS, Test, require, tensor_like
from robustlab.teaching.check.smoothing import distance_at, expected_radius, share_at, threshold_model
from robustlab.teaching.handout import relu_network
from robustlab.teaching.metered import Metered

BLOCKED = METHODS
WORKED, FOR_STUDENTS = "gaussian", ("laplace", "uniform")
FEATURES = 4
SIGMAS = 3.7
"""How many standard deviations a share may be off by chance: one honest answer in ten thousand."""


def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: the noise and its scale, a network of three classes with points, and what to certify at best."""
    generator = torch.Generator().manual_seed(seed)
    kind = FOR_STUDENTS[int(torch.randint(2, (), generator=generator))]
    kind = WORKED if worked else kind
    shares = torch.rand(3, generator=generator, dtype=torch.float64)
    scale = round(float(0.3 + 0.4 * shares[0]), 3)
    layers = [
        (torch.randn(m, n, generator=generator) * (2 / n) ** 0.5, 0.2 * torch.randn(m, generator=generator))
        for n, m in ((FEATURES, 24), (24, 3))
    ]
    x = 1.5 * torch.randn(60, FEATURES, generator=generator)
    network = relu_network(layers)
    y = network(x).argmax(dim=1)
    wanted = distance_at(kind, scale, 0.93 + 0.05 * float(shares[1]))
    return {
        "kind": kind, "scale": scale, "model": network, "x": x, "y": y,
        "alpha": 0.001, "n": 200 + int(800 * shares[2]), "wanted": round(wanted, 4),
    }  # fmt: skip


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Twenty points by the program; the rest by hand."""
    return [
        *_bound(seed),
        *_radius(mine),
        *_certificates(seed + 1, mine),
        *_curve(seed + 2),
        *_answers(mine),
    ]


def _bound(seed: int) -> list[Test]:
    """The lower confidence bound: 2 points."""
    generator = torch.Generator().manual_seed(seed)
    alpha = round(float(0.01 + 0.1 * torch.rand((), generator=generator)), 4)

    def by_definition(k: Tensor, n: int) -> Callable[[Any], None]:
        """The p at which so many votes or more have the probability α."""

        def judge(out: Any) -> None:
            p = tensor_like(out, k.double())
            require(((p >= 0) & (p <= 1)).all(), "a bound is no probability")
            off = torch.from_numpy(binom.sf(k.numpy() - 1, n, p.numpy())) - alpha
            low = p[k == 0]
            require(len(low) == 0 or low.max() <= 1e-6, "without a vote the bound is 0")
            worst = float(off[k > 0].abs().max()) / alpha
            require(worst <= 0.02, f"at the bound, so many votes have a probability that is {worst:.0%} off α")

        return judge

    some = torch.cat([torch.tensor([0, 60]), torch.randint(1, 60, (40,), generator=generator)])
    many = torch.randint(40_000, 100_000, (200,), generator=generator)
    cell, asks = "test-bound", "lower_bound"
    return [
        Test("tail", 1, cell, asks, by_definition(some, 60), [some, 60, alpha]),
        Test("many", 1, cell, asks, by_definition(many, 100_000), [many, 100_000, alpha]),
    ]


def _radius(mine: dict[str, Any]) -> list[Test]:
    """From a probability to a radius: 4 points."""
    kind, scale = mine["kind"], mine["scale"]
    far = scale * torch.linspace(0.01, 0.95, 40, dtype=torch.float64)
    p = share_at(kind, scale, far)

    def distances(out: Any) -> None:
        off = float((tensor_like(out, far) - far).abs().max())
        require(off <= 1e-6, f"a radius is {off:.2g} away from the distance at which a threshold has this share")

    def none(out: Any) -> None:
        out = tensor_like(out, low)
        require((out[:6] == 0).all(), "a share of at most one half certifies nothing")
        require(out[6] > 0, "a share of nine tenths certifies something")

    low = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9], dtype=torch.float64)
    return [
        Test("units", 3, "test-radius", "radius", distances, [p]),
        Test("half", 1, "test-radius", "radius", none, [low]),
    ]


def _certificates(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Certificates from votes: 8 points."""
    kind, scale = mine["kind"], mine["scale"]
    generator = torch.Generator().manual_seed(seed)
    alpha = round(float(0.18 + 0.04 * torch.rand((), generator=generator)), 4)
    count, n0, n = 1600, 100, 100

    def case(far: Tensor, cuts: tuple[float, ...] = (0.0,)) -> tuple[Metered, Tensor, Tensor]:
        """Inputs at given distances from the first cut, on both of its sides, and their classes."""
        model, across, labels = threshold_model(kind, FEATURES, generator, cuts)
        side = torch.where(torch.arange(len(far)) % 2 == 0, 1.0, -1.0) if len(cuts) == 1 else torch.ones(len(far))
        x = torch.randn(len(far), FEATURES, generator=generator)
        x = x + ((side * far) - x @ across)[:, None] * across
        return Metered(model, (FEATURES,), len(far) * (n0 + n), box=False), x, labels[(side > 0).long()]

    def answer(out: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        require(isinstance(out, list) and len(out) == 2, "it returned no pair of classes and radii")
        classes, radii = out
        require(isinstance(classes, Tensor) and classes.dtype == torch.int64, "the classes are no integers")
        require(classes.shape == x[:, 0].shape, "want one class per input")
        radii = tensor_like(radii.double() if isinstance(radii, Tensor) else radii, x[:, 0].double())
        require((radii[classes < 0] == 0).all(), "where it abstains, the radius is 0")
        require((radii >= 0).all(), "a radius is negative")
        return classes, radii

    far = torch.cat([torch.zeros(count // 2), torch.full((count // 2,), 0.6 * scale)])
    at_the_cut, x, y = case(far)

    def coverage(out: Any) -> None:
        classes, radii = answer(out, x)
        false = (radii > 0) & ((radii > far + 1e-5) | (classes != y))
        # On the cut both classes have half of the votes, and every positive radius is false.
        for rows, where in ((far == 0, "on the border between two classes"), (far > 0, "away from the border")):
            share, chance = float(false[rows].double().mean()), (alpha * (1 - alpha) / int(rows.sum())) ** 0.5
            said = f"{where} {share:.1%} of the certificates are false, α is {alpha:.1%}"
            require(share <= alpha + SIGMAS * chance, said)
        require((radii[far > 0] > 0).any(), "nothing is certified")

    away = torch.full((count,), 0.9 * scale)
    clear, x_clear, y_clear = case(away)
    best = expected_radius(kind, scale, float(share_at(kind, scale, away[:1].double())), n, alpha)

    def power(out: Any) -> None:
        classes, radii = answer(out, x_clear)
        share = float((radii * (classes == y_clear)).mean()) / best
        require(share >= 0.975, f"the mean radius is {share:.1%} of what {n} draws give at this α")
        require(share <= 1.025, f"the mean radius is {share:.1%} of what {n} draws give at this α")

    three, x_three, _ = case(torch.full((400,), 0.0), (-0.4 * scale, 0.4 * scale))

    def abstains(out: Any) -> None:
        classes, _ = answer(out, x_three)
        share = float((classes < 0).double().mean())
        require(share >= 0.6, f"where no class has a clear half of the votes, it abstains on {share:.0%} of the inputs")

    few, x_few, _ = case(away[:50])

    def thrifty(out: Any) -> None:
        answer(out, x_few)
        require(few.refused == 0, "the model refused a question")
        want = 50 * n
        require(want <= few.used <= 50 * (n0 + n), f"it took {few.used} draws, want {n0} + {n} per input")

    cell, asks = "test-certify", "certify"

    def asked(name: str, points: int, judge: Callable[[Any], None], model: Metered, x: Tensor) -> Test:
        return Test(name, points, cell, asks, judge, [x, n0, n, alpha], model=model, seconds=30.0)

    return [
        asked("coverage", 2, coverage, at_the_cut, x),
        asked("power", 4, power, clear, x_clear),
        asked("abstains", 1, abstains, three, x_three),
        asked("budget", 1, thrifty, few, x_few),
    ]


def _curve(seed: int) -> list[Test]:
    """The certified accuracy over the radius: 2 points."""
    generator = torch.Generator().manual_seed(seed)
    y, radii = torch.randint(4, (80,), generator=generator), torch.rand(80, generator=generator, dtype=torch.float64)
    wrong, none = torch.rand(80, generator=generator) < 0.2, torch.rand(80, generator=generator) < 0.25
    radii = (20 * radii).round() / 20
    at = torch.tensor([0.0, 0.25, 0.5, 0.9], dtype=torch.float64)

    def share(classes: Tensor, radii: Tensor) -> Callable[[Any], None]:
        exact = ((classes == y) & (radii >= at[:, None])).double().mean(dim=1)

        def judge(out: Any) -> None:
            out = tensor_like(out.double() if isinstance(out, Tensor) else out, at)
            off = float((out - exact).abs().max())
            require(off <= 1e-6, f"a share is off by {off:.3f}")

        return judge

    mixed = torch.where(wrong, (y + 1) % 4, y)
    quiet = torch.where(none, -1, y)
    cell, asks = "test-curve", "certified_accuracy"
    radii_quiet = torch.where(none, 0.0, radii)
    return [
        Test("wrong", 1, cell, asks, share(mixed, radii), [mixed, radii, y, at]),
        Test("counted", 1, cell, asks, share(quiet, radii_quiet), [quiet, radii_quiet, y, at]),
    ]


def _answers(mine: dict[str, Any]) -> list[Test]:
    """Numbers about the student's own noise: 4 points."""
    kind, scale, alpha = mine["kind"], mine["scale"], mine["alpha"]
    needed = next(n for n in range(1, 10**5) if distance_at(kind, scale, alpha ** (1 / n)) >= mine["wanted"])
    most = distance_at(kind, scale, alpha ** (1 / mine["n"]))

    def number(exact: float, off: float) -> Callable[[Any], None]:
        def judge(value: Any) -> None:
            one = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
            require(one, "this is no number")
            require(abs(float(value) - exact) <= off, f"{float(value):.4g} is not right for your noise")

        return judge

    cell = "test-answers"
    return [
        Test("needed", 2, cell, "draws_needed", number(needed, 1.0), call=False),
        Test("most", 2, cell, "largest_radius", number(most, 2e-3 * most), call=False),
    ]
