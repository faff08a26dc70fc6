"""A projection onto a convex set, held to what defines it.

u is the point of a convex set C nearest to δ if and only if u is in C and no point of C is farther along δ − u:

    ⟨δ − u, u⟩ ≥ max {⟨δ − u, v⟩ : v ∈ C}

The right side, the support function of C, is often a simple formula where the projection is not. What is lacking is a
bound as well: the distance from u to the true projection is at most the square root of the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, lengths, of_the_batch, require_answer, require_unchanged

Project = Callable[[Tensor, Tensor], Tensor]
"""(delta (N, ...), eps (N,)) → the nearest points of the sets."""


class ConvexSet(NamedTuple):
    """The set {δ : length(δ) ≤ ε}.

    Attributes:
        length: δ (N, ...) → (N,), a norm.
        dual: g (N, ...) → max {⟨g, v⟩ : length(v) ≤ 1}, (N,).
    """

    length: Callable[[Tensor], Tensor]
    dual: Callable[[Tensor], Tensor]


BALLS = {
    "l1": ConvexSet(lambda d: lengths(d, "l1"), lambda g: lengths(g, "linf")),
    "l2": ConvexSet(lambda d: lengths(d, "l2"), lambda g: lengths(g, "l2")),
    "linf": ConvexSet(lambda d: lengths(d, "linf"), lambda g: lengths(g, "l1")),
}


def projection(
    project: Project,
    onto: Literal["l1", "l2", "linf"] | ConvexSet,
    *,
    shape: tuple[int, ...] = (2, 4, 4),
    seed: int = 0,
    hints: int = 1,
) -> None:
    """Check a projection: prints one line where all holds.

    Args:
        project: called as ``project(delta, eps)`` with δ (N, *shape) and one radius per sample, (N,).
        onto: the ball of a norm by its name, or a set of your own.
        shape: of one perturbation (default 2 × 4 × 4).
        seed: of the perturbations (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    ball = BALLS[onto] if isinstance(onto, str) else onto
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    eps = ball.length(delta) * torch.tensor([1.5, 0.9, 0.5, 0.2, 0.05, 1.0], dtype=delta.dtype)
    try:
        _nearest(project, ball, delta, eps)
    except Wrong as wrong:
        raise wrong.shown_as("projection", hints) from None
    print("projection: holds, inside and outside of the set, with one radius per sample")


def _nearest(project: Project, ball: ConvexSet, delta: Tensor, eps: Tensor) -> None:
    given = delta.clone()
    out = require_answer(project(given, eps.clone()), delta)
    require_unchanged(given, delta, "δ")
    inside = ball.length(delta) <= eps
    moved = lengths(out - delta, "linf") > 1e-6
    if bool((inside & moved).any()):
        _inside_was_moved(project, ball, delta, out, eps)
    alone = torch.cat([require_answer(project(delta[i : i + 1], eps[i : i + 1]), delta[:1]) for i in range(len(eps))])
    if bool((shortfall(ball, delta, alone, eps) <= 1e-4).all()) and not torch.allclose(out, alone, atol=1e-6):
        raise _of_the_batch()
    over = ball.length(out) / eps
    if bool((over > 1.05).any()):
        raise Wrong(
            f"the result is outside of the set: its length is {float(over.max()):.3g}·ε",
            "the length is not that of this set",
            "Measure the length of what you return.",
            "Which weights has the set, which norm, and over which dimensions is each sum?",
        )
    if bool((over > 1 + 1e-5).any()):
        raise Wrong(
            f"the result is outside of the set: its length is {float(over.max()):.3g}·ε",
            "the projection stops short of the set",
            "If you search for a multiplier by bisection, take more steps.",
            "Return the end of the interval on the safe side.",
        )
    if bool((shortfall(ball, delta, out, eps) > 1e-3).any()):
        with_signs = out.abs() * delta.sign()
        if bool((shortfall(ball, delta, with_signs, eps) <= 1e-3).all()):
            raise Wrong(
                "with the signs of δ the result would be the projection",
                "signs lost",
                "Toward the set a value moves to 0, and not beyond it.",
                "Compute with δ.abs(), and multiply by δ.sign() at the end.",
            )
        raise Wrong(
            "the result is in the set, but another point of the set is nearer to δ",
            "a point of the set, not the nearest",
            "Scaling δ to length ε is the projection for ℓ2 alone.",
            "Minimize ½‖u − δ‖² + τ·length(u) for a multiplier τ ≥ 0, and find the τ at which length(u) = ε.",
        )


def _inside_was_moved(project: Project, ball: ConvexSet, delta: Tensor, out: Tensor, eps: Tensor) -> None:
    """Raises what explains that a δ of the set, which is its own projection, did not stay."""
    inside = (ball.length(delta) <= eps).nonzero().flatten().tolist()
    alone = torch.cat([require_answer(project(delta[i : i + 1], eps[i : i + 1]), delta[:1]) for i in inside])
    if bool((alone - delta[inside]).abs().max() <= 1e-6):
        raise _of_the_batch()
    before, after = ball.length(delta[inside]) / eps[inside], ball.length(out[inside]) / eps[inside]
    if bool((after > 1 - 1e-3).all()):
        raise Wrong(
            "a δ inside the set was moved",
            "it always scales to the surface",
            "The nearest point to a point of the set is the point itself.",
            "Only shrink: where length(δ) ≤ ε, return δ.",
        )
    i = int((after - before).abs().argmax())
    raise Wrong(
        f"a δ inside the set was moved: its length was {float(before[i]):.3g}·ε and is {float(after[i]):.3g}·ε",
        "what lies inside is changed, too",
        "The nearest point to a point of the set is the point itself.",
        "Compare length(δ) with ε: where it is not larger, return δ as it is.",
    )


def _of_the_batch() -> Wrong:
    return of_the_batch(
        "Look for max(), sum(), norm() over the whole batch.",
        "Reduce over delta.flatten(1), dim=1, and keep one number per sample.",
    )


def shortfall(ball: ConvexSet, delta: Tensor, out: Tensor, eps: Tensor) -> Tensor:
    """A bound on the distance from ``out``, a point of the set, to the projection of δ, as a share of ‖δ‖₂, (N,)."""
    rest = delta - out
    gap = eps * ball.dual(rest) - (rest * out).flatten(1).sum(dim=1)
    return gap.clamp_min(0).sqrt() / lengths(delta, "l2").clamp_min(torch.finfo(delta.dtype).tiny)
