"""The point of a sphere and a slab that lies farthest along v, held to a bound that no point of the set passes.

For every number t, a point at μ + z with ‖z‖₂ ≤ R and |⟨z, e⟩| ≤ S has

    ⟨v, z⟩ = ⟨v − te, z⟩ + t⟨e, z⟩ ≤ R‖v − te‖₂ + S|t| ,

and the least such bound is reached. It is a search along one line, and knows nothing of the closed form that it checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, require_shape, require_unchanged

Farthest = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]
"""(v (d,), mu (d,), e (d,), R (), S ()) → the point (d,)."""
DIMENSIONS = (2, 3, 8)
SLACK = 1e-7  # share of R, in float64
WHERE_PARALLEL = (
    "Where v runs along e, no direction across is better than another.",
    "Take none of them: return mu + first * e where across is below 1e-12 of v.",
)


class Walk(NamedTuple):
    """A direction, and the set in which one walks along it."""

    v: Tensor
    mu: Tensor
    e: Tensor
    R: Tensor
    S: Tensor


def farthest_point(function: Farthest, *, seed: int = 0, hints: int = 1) -> None:
    """Check the farthest point of a sphere and a slab: prints one line where all holds.

    Args:
        function: called as ``function(v, mu, e, R, S)`` with float64 tensors: a direction v (d,) other than 0, of any
            length, the center μ (d,), a unit vector e (d,), the radius R () and the slab's half width S (), which may
            be larger than R; returns a point x (d,) of {‖x − μ‖₂ ≤ R, |⟨x − μ, e⟩| ≤ S} at which ⟨v, x⟩ is largest,
            and the same one from call to call.
        seed: of the sets and directions (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for d in DIMENSIONS:
            for walk in walks(d, seed):
                _reached(function, walk)
    except Wrong as wrong:
        raise wrong.shown_as("farthest_point", hints) from None
    print("farthest_point: holds, where the slab cuts, where it does not, and for v along e, in 2, 3 and 8 dimensions")


def walks(d: int, seed: int) -> Iterator[Walk]:
    """Walks that either wall of the slab cuts, that it does not, and that go along e, exactly and nearly."""
    generator = torch.Generator().manual_seed(seed + d)

    def normal() -> Tensor:
        return torch.randn(d, generator=generator, dtype=torch.float64)

    e, mu, R = normal(), 3 * normal(), torch.tensor(2.0, dtype=torch.float64)
    e = e / e.norm()
    # The sphere's own optimum lies 0.78 R from μ along e, or not at all where v is across.
    for side, share in ((1, 0.25), (-1, 0.25), (1, 0.7), (-1, 0.7), (-1, 2.0), (1, 0.9), (0, 0.5)):
        across = normal()
        across = across - (across @ e) * e
        yield Walk(1.7 * (side * e + 0.8 * across / across.norm()), mu, e, R, share * R)
    axis = torch.eye(d, dtype=torch.float64)[0]  # v - (v @ e) * e is exactly 0, and beside it only nearly
    for along, side in ((axis, 1), (axis, -1), (e, 1), (e, -1)):
        yield Walk(3.0 * side * along, mu, along, R, R / 2)
        yield Walk(3.0 * side * along, mu, along, R, 2 * R)
    for k in range(20):  # the walk along e may come out longer than R, by rounding
        yield Walk((1 + 0.1 * k) * e + 1e-8 * normal(), mu, e, R, 2 * R)


def largest(walk: Walk) -> float:
    """max ⟨v, x − μ⟩ over the set: the least of R‖v − te‖₂ + S|t| over t, which is convex, by ever smaller brackets."""
    v, _, e, R, S = walk
    along, side, radius, width = float(v @ e), float((v - (v @ e) * e).norm()), float(R), float(S)

    def bound(t: float) -> float:
        return radius * math.hypot(along - t, side) + width * abs(t)

    low, high = min(along, 0.0), max(along, 0.0)
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if bound(left) < bound(right) else (left, high)
    return min(bound(low), bound(high))


def _asked(function: Farthest, walk: Walk) -> Tensor:
    given = Walk(*(part.clone() for part in walk))
    out = function(*given)
    for name, part, was in zip(Walk._fields, given, walk, strict=True):
        require_unchanged(part, was, name)
    point = require_shape(
        out, walk.v.shape, "a point (d,)", "Return the point itself: the mean, a walk along e, and a walk across."
    ).to(walk.v)
    if not bool(point.isfinite().all()):
        if _parallel(walk):
            raise Wrong("the point is not finite", "0/0 where v is parallel to e", *WHERE_PARALLEL)
        raise Wrong(
            "the point is not finite",
            "the root of a number that rounding made negative",
            "R² − first² may be −1e-16 where it should be 0.",
            ".clamp_min(0) before .sqrt().",
        )
    return point


def _parallel(walk: Walk) -> bool:
    return bool((walk.v - (walk.v @ walk.e) * walk.e).norm() <= 1e-12 * walk.v.norm())


def _reached(function: Farthest, walk: Walk) -> None:
    v, mu, e, R, S = walk
    point = _asked(function, walk)
    step = point - mu
    over = float(step.norm() - R), float((step @ e).abs() - S)
    short = (largest(walk) - float(v @ step)) / float(v.norm())
    slack = SLACK * float(R)
    if max(*over, short) > slack:
        seen = f"v @ (x - mu) is {short:.2g}·‖v‖ below what a point of the set reaches"
        if max(over) > slack:
            seen = f"the point is {max(over):.2g} outside the {'sphere' if over[0] > slack else 'slab'}"
        if over[1] > slack and torch.allclose(point, mu + R * v / v.norm(), atol=1e-9):
            other = _asked(function, walk._replace(v=-v)) - mu
            one = (other @ e).abs() <= S + slack
            raise Wrong(
                seen,
                "one wall of the slab is forgotten" if one else "the slab is forgotten",
                "The sphere's own optimum may lie beyond a wall.",
                "Cut the walk along e at -S and S.",
            )
        if _parallel(walk):  # all other slips show where it is not
            raise Wrong(seen, "rounding is taken for a direction where v is parallel to e", *WHERE_PARALLEL)
        blame(seen, _slips(walk), lambda slip: torch.allclose(point, slip, atol=1e-9))
        if over[0] > slack:
            raise Wrong(seen, "the walk across is too long", "Both walks together have a length of at most R.")
        if over[1] > slack:
            raise Wrong(seen, "the walk along e is too long", "Cut it at -S and S.", "first.clamp(-S, S).")
        raise Wrong(
            seen,
            "not the farthest point",
            "Walk along e as far as the sphere alone asks for, at most to a wall; spend the rest of R across.",
            "The direction across is v - (v @ e) * e, of length 1.",
        )
    if not torch.equal(_asked(function, walk), point):
        raise Wrong(
            "the same call gave another point",
            "the direction across is random where v is parallel to e",
            *WHERE_PARALLEL,
        )


def _slips(walk: Walk) -> Iterator[tuple[Any, ...]]:
    """The points of likely slips, each with its cause and hints."""
    v, mu, e, R, S = walk
    along, length = v @ e, v.norm()
    across = v - along * e
    unit = across / across.norm().clamp_min(1e-300)
    first = (R * along / length).clamp(-S, S)  # the part that the sphere alone asks for
    rest = (R**2 - first**2).clamp_min(0).sqrt()

    def after(first: Tensor) -> Tensor:
        """A walk along e, and across it what is left of R."""
        return first * e + (R**2 - first**2).clamp_min(0).sqrt() * unit

    best = after(first)
    yield best, "the step alone, without the mean", "The set lies around the mean.", "mu + ..."
    yield mu - best, "the nearest point, not the farthest", "A poison of class y hurts along -y·w.", "mu + first * e."
    yield (
        mu + first * e + R * across / length,
        "what the wall saves is not spent across",
        "Where a wall cuts the walk along e, a longer walk across is left.",
        "It is (R² − first²) ** 0.5 long.",
    )
    yield (
        mu + first * e + R * unit,
        "R is spent twice",
        "Lengths at a right angle add by their squares.",
        "(R ** 2 - first ** 2).sqrt() is left for the walk across.",
    )
    yield (
        mu + first * e + (R - first.abs()) * unit,
        "lengths are added, not their squares",
        "The two walks are at a right angle.",
        "(R ** 2 - first ** 2).sqrt().",
    )
    yield (
        mu + first * e,
        "nothing is walked across",
        "Only a v along e gains nothing across.",
        "+ rest * across / length.",
    )
    yield (
        mu + first * e + rest * across,
        "the direction across has not length 1",
        "rest is the length of the walk.",
        "across / across.norm().",
    )
    yield (
        mu + first * e + rest * v / length,
        "v still has its part along e",
        "The walk across is at a right angle to e.",
        "across = v - (v @ e) * e.",
    )
    yield (
        mu + after(S.minimum(R) * along.sign()),
        "one always walks to a wall",
        "The sphere's own optimum may lie between the walls.",
        "R * along / v.norm(), cut at -S and S.",
    )
    for name, wish in (("v has not length 1", R * along), ("the walk along e is not R times the cosine", along)):
        hint = "Twice as long a v has the same farthest point."
        yield mu + after(wish.clamp(-S, S)), name, hint, "R * along / v.norm()."
