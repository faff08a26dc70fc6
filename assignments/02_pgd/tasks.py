"""PGD from scratch: what each student gets, and the tests of what comes back.

A student's set of perturbations is {δ : length(δ) ≤ ε} for one of three lengths, with weights of the student's own:

    ellipsoid   ( Σ_i (δ_i / w_i)² )^½            worked out in the instructor's copy, given to no student
    costs       Σ_i w_i |δ_i|                     a price for each value
    pixels      Σ_p w_p (Σ_c δ_cp²)^½             a price for each pixel, whatever its colors do

The judge needs no projection: a point is the nearest of a set if and only if the set's support function says so, and
those of the three sets are one line each. So this file does not give away what the students are to find.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from assignments.grading.task import METHODS, Test, require, tensor_like
from robustlab.teaching.check.finding import lengths
from robustlab.teaching.check.gradient_attacks import Case, corner_case, lead, peak_case
from robustlab.teaching.check.onto_sets import BALLS, ConvexSet, shortfall
from robustlab.teaching.handout import linear_network, relu_network

BLOCKED = METHODS
SHAPE = (3, 4, 4)
WORKED, FOR_STUDENTS = "ellipsoid", ("costs", "pixels")


def draw(seed: int, worked: bool) -> dict[str, Any]:
    """A variant: a set with its weights, an affine network of five classes, its inputs, and two radii."""
    generator = torch.Generator().manual_seed(seed)
    kind = FOR_STUDENTS[int(torch.randint(2, (), generator=generator))]
    kind = WORKED if worked else kind
    weights = 1 + torch.rand((1, *SHAPE[1:]) if kind == "pixels" else SHAPE, generator=generator)
    weight = torch.randn(5, 48, generator=generator)
    model = linear_network(weight, -0.5 * weight.sum(dim=1))
    x = 0.5 + 0.05 * torch.randn(200, *SHAPE, generator=generator).clamp(-3, 3)
    y = model(x).argmax(dim=1).detach()
    mislabeled = torch.rand(200, generator=generator) < 0.05
    y[mislabeled] = (y[mislabeled] + 1) % 5
    share = float(0.35 + 0.3 * torch.rand((), generator=generator))
    eps_set, eps_linf = (
        round(float(smallest_radii(model, x, y, ball).quantile(share)), 4)
        for ball in (a_set(kind, weights), BALLS["linf"])
    )
    return {"kind": kind, "weights": weights, "model": model, "x": x, "y": y, "eps_set": eps_set, "eps_linf": eps_linf}


def a_set(kind: str, weights: Tensor) -> ConvexSet:
    """A set by its length and the dual of it, in double precision."""
    w = weights.double()

    def per_pixel(v: Tensor) -> Tensor:
        return torch.linalg.vector_norm(v, dim=1, keepdim=True)

    return {
        "ellipsoid": ConvexSet(lambda d: lengths(d / w, "l2"), lambda g: lengths(g * w, "l2")),
        "costs": ConvexSet(lambda d: lengths(d * w, "l1"), lambda g: lengths(g / w, "linf")),
        "pixels": ConvexSet(lambda d: lengths(per_pixel(d) * w, "l1"), lambda g: lengths(per_pixel(g) / w, "linf")),
    }[kind]


def smallest_radii(model: nn.Sequential, x: Tensor, y: Tensor, ball: ConvexSet) -> Tensor:
    """The smallest ε at which an affine model is fooled, whatever the box, (N,): min_k lead_k / dual(w_y − w_k)."""
    weight, z = model[1].weight.detach().double(), model(x).detach().double()
    leads = (z.gather(1, y[:, None]) - z).clamp_min(0)
    slopes = (weight[y][:, None] - weight[None]).flatten(0, 1).reshape(-1, *x.shape[1:])
    radii = leads / ball.dual(slopes).reshape(leads.shape)
    return radii.scatter(1, y[:, None], torch.inf).amin(dim=1)


def tests(seed: int, mine: dict[str, Any]) -> list[Test]:
    """Twenty points by the computer; the questions in words are graded by hand."""
    ball = a_set(mine["kind"], mine["weights"])
    return [
        *_linf(seed),
        *_projection(seed + 1, ball),
        *_in_the_set(seed + 2, ball),
        *_loud(seed + 3),
        *_answers(mine, ball),
    ]


def _linf(seed: int) -> list[Test]:
    """PGD in the ℓ∞ ball: 5 points."""
    corner = corner_case((2, 3, 3), seed=seed, count=12, eps=0.08, dtype=torch.float32)
    corner.model.insert(1, nn.Dropout(0.9).eval())  # who puts the model into training mode meets another one
    double = corner_case((5,), seed=seed + 1, count=6, eps=0.08)
    net, x, y = _relu_case(seed + 2)
    peak, slack = peak_case((1,), seed=seed + 3, count=40, eps=0.1, alpha=0.03)
    valley, far = peak_case((14,), seed=seed + 4, count=8, eps=0.1, alpha=0.0025)

    def best_corner(case: Case, tolerance: float) -> Callable[[Any], None]:
        def judge(out: Any) -> None:
            gap = (tensor_like(out, case.x) - case.expected.double()).abs().max()
            require(gap <= tolerance, f"on an affine model the result is {float(gap):.2g} away from the best corner")

        return judge

    def inside(out: Any) -> None:
        out = tensor_like(out, x)
        require(lengths(out - x.double(), "linf").max() <= 0.1 + 1e-6, "the result leaves the ball")
        require(out.min() >= 0 and out.max() <= 1, "the result leaves the box")
        grown = _loss(net, out, y) > _loss(net, x, y) + 1e-3
        require(grown.double().mean() > 0.9, "the loss hardly grows")

    def near_the_peak(case: Case, allowed: Tensor) -> Callable[[Any], None]:
        def judge(out: Any) -> None:
            short = 1.0 - lead(case.model, tensor_like(out, case.x))
            require((short <= allowed + 1e-4).all(), "a better point was passed on the way, or never reached")

        return judge

    cell, asks = "test-pgd-linf", "pgd_linf"
    return [
        Test("corner", 1, cell, asks, best_corner(corner, 1e-5), [corner.model, corner.x, corner.y, 0.08, 12, 0.03]),
        Test("double", 1, cell, asks, best_corner(double, 1e-10), [double.model, double.x, double.y, 0.08, 12, 0.03]),
        Test("inside", 1, cell, asks, inside, [net, x, y, 0.1, 10, 0.03]),
        Test("best", 1, cell, asks, near_the_peak(peak, slack), [peak.model, peak.x, peak.y, 0.1, 21, 0.03]),
        Test(
            "gradient", 1, cell, asks, near_the_peak(valley, far), [valley.model, valley.x, valley.y, 0.1, 80, 0.0025]
        ),
    ]


def _relu_case(seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small random network of three classes, inputs up to the ends of the box, and the network's own labels."""
    generator = torch.Generator().manual_seed(seed)
    net = relu_network(
        [
            (torch.randn(m, n, generator=generator) * (2 / n) ** 0.5, 0.1 * torch.randn(m, generator=generator))
            for n, m in pairwise([27, 24, 24, 3])
        ]
    )
    x = torch.rand(20, 3, 3, 3, generator=generator)
    return net, x, net(x).argmax(dim=1).detach()


def _loss(net: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return nn.functional.cross_entropy(net(x.float()), y, reduction="none")


def _projection(seed: int, ball: ConvexSet) -> list[Test]:
    """The projection onto the student's own set, and its dual: 7 points."""
    generator = torch.Generator().manual_seed(seed)
    delta, many = torch.randn(10, *SHAPE, generator=generator), torch.randn(10_000, *SHAPE, generator=generator)
    length, far = ball.length(delta.double()).float(), 0.3 * ball.length(many.double()).float()
    eps = length * (0.05 + 0.8 * torch.rand(10, generator=generator))
    inside = torch.arange(10) % 2 == 0

    def unmoved(out: Any) -> None:
        gap = (tensor_like(out, delta) - delta).abs().flatten(1).amax(dim=1)
        require((gap[~inside] > 0).all(), "a point outside of the set is not moved")
        require(gap[inside].max() <= 1e-5, f"a point inside the set is moved by {float(gap[inside].max()):.2g}")

    def on_the_surface(out: Any) -> None:
        share = ball.length(tensor_like(out, delta)) / eps
        require(share.max() <= 1 + 1e-4, f"the length of a result is {float(share.max()):.4g}·ε")
        require(share.min() >= 0.99, f"the length of a result is {float(share.min()):.4g}·ε, it could be ε")

    def nearest(points: Tensor, radii: Tensor) -> Callable[[Any], None]:
        def judge(out: Any) -> None:
            out = tensor_like(out, points)
            require((ball.length(out) <= radii * (1 + 1e-4)).all(), "a result is outside of the set")
            off = float(shortfall(ball, points.double(), out, radii.double()).max())
            require(off <= 2e-3, f"a point of the set may be nearer, by up to {off:.2g} of the length of δ")

        return judge

    def the_dual(out: Any) -> None:
        exact = ball.dual(delta.double())
        off = float((tensor_like(out, length) / exact - 1).abs().max())
        require(off <= 1e-3, f"the dual is off by up to {off:.0%}")

    cell, asks = "test-project", "project"
    return [
        Test("dual", 1, "test-dual", "dual", the_dual, [delta]),
        Test("within", 1, cell, asks, unmoved, [delta, torch.where(inside, 1.2, 0.5) * length]),
        Test("surface", 1, cell, asks, on_the_surface, [delta, eps]),
        Test("nearest", 3, cell, asks, nearest(delta, eps), [delta, eps]),
        Test("many", 1, cell, asks, nearest(many, far), [many, far], seconds=5.0),
    ]


def _in_the_set(seed: int, ball: ConvexSet) -> list[Test]:
    """PGD in the student's own set: 3 points."""
    generator = torch.Generator().manual_seed(seed)
    # Logits so near to each other that the cross-entropy keeps a slope in single precision, wherever in the box x lies.
    weight = 0.2 * torch.randn(2, 48, generator=generator)
    model, eps, y = linear_network(weight), 0.2, torch.arange(8) % 2
    uphill = (weight[1 - y] - weight[y]).double().reshape(8, *SHAPE)
    x = 0.4 + 0.2 * torch.rand(8, *SHAPE, generator=generator)
    ends = torch.rand(8, *SHAPE, generator=generator).round()

    # After k steps of length α the loop is short of the optimum by |δ*|² / 2αk at most, here far less than is allowed.
    def optimum(out: Any) -> None:
        delta = tensor_like(out, x) - x.double()
        require((ball.length(delta) <= eps * (1 + 1e-3)).all(), "the result leaves the set")
        share = float(((uphill * delta).flatten(1).sum(dim=1) / (eps * ball.dual(uphill))).min())
        require(share >= 0.98, f"on an affine model the loss grows by {share:.0%} of what the set allows")

    # From an end of the box a value moves one way only, and with this radius never as far as the other end.
    room, radius = torch.where(uphill * (0.5 - ends) > 0, uphill, 0), 0.5

    def in_both(out: Any) -> None:
        out = tensor_like(out, ends)
        require(out.min() >= 0 and out.max() <= 1, "the result leaves the box")
        require((ball.length(out - ends) <= radius * (1 + 1e-3)).all(), "the result leaves the set")
        share = float(((uphill * (out - ends)).flatten(1).sum(dim=1) / (radius * ball.dual(room))).min())
        require(share >= 0.65, f"from an end of the box the loss grows by {share:.0%} of what set and box allow")

    cell, asks = "test-pgd-set", "pgd_set"
    return [
        Test("optimum", 2, cell, asks, optimum, [model, x, y, eps, 100, 0.5], seconds=30.0),
        Test("box", 1, cell, asks, in_both, [model, ends, y, radius, 100, 0.02], seconds=30.0),
    ]


def _loud(seed: int) -> list[Test]:
    """A network whose cross-entropy has no gradient in single precision: 1 point."""
    generator = torch.Generator().manual_seed(seed)
    weight = 3e4 * torch.randn(4, 48, generator=generator)
    model = linear_network(weight, -0.5 * weight.sum(dim=1))
    x = 0.5 + 0.05 * torch.randn(60, *SHAPE, generator=generator).clamp(-3, 3)
    y = model(x).argmax(dim=1).detach()
    eps = round(float(smallest_radii(model, x, y, BALLS["linf"]).quantile(0.8)), 4)

    def broken(out: Any) -> None:
        out = tensor_like(out, x)
        require(lengths(out - x.double(), "linf").max() <= eps + 1e-6, "the result leaves the ball")
        require(out.min() >= 0 and out.max() <= 1, "the result leaves the box")
        share = float((model(out.float()).argmax(dim=1) != y).double().mean())
        require(share >= 0.7, f"{share:.0%} of the points are fooled, 80% could be")

    return [Test("loud", 1, "test-loud", "attack_loud", broken, [model, x, y, eps])]


def _answers(mine: dict[str, Any], ball: ConvexSet) -> list[Test]:
    """Numbers about the student's own network: 4 points."""
    model, x, y = mine["model"], mine["x"], mine["y"]
    radii = smallest_radii(model, x, y, ball)
    robust = {
        "linf": float((smallest_radii(model, x, y, BALLS["linf"]) > mine["eps_linf"]).double().mean()),
        "set": float((radii > mine["eps_set"]).double().mean()),
    }

    def accuracy(name: str) -> Callable[[Any], None]:
        def judge(value: Any) -> None:
            given = value.get(name) if isinstance(value, dict) else None
            one = isinstance(given, int | float) or (isinstance(given, Tensor) and given.numel() == 1)
            require(one, f"robust_accuracy has no number {name!r}")
            require(abs(float(given) - robust[name]) <= 0.0051, f"{float(given):.3f} is not that of your network")

        return judge

    def each_radius(value: Any) -> None:
        off = (tensor_like(value, x[:, 0, 0, 0]) - radii).abs()
        share = float((off <= 0.02 * radii + 1e-4).double().mean())
        require(share >= 0.95, f"{share:.0%} of the radii are within 2% of the smallest ε")

    cell = "test-answers"
    return [
        Test("accuracy-linf", 1, cell, "robust_accuracy", accuracy("linf"), call=False),
        Test("accuracy-set", 1, cell, "robust_accuracy", accuracy("set"), call=False),
        Test("radii", 2, cell, "smallest_eps", each_radius, call=False),
    ]
