"""The projection of flips onto a budget, held to what defines it.

s is the point of C = {s ∈ [0, 1]^P : Σ s ≤ b} nearest to a if and only if it is in C and no point of C is farther along
a − s. For this set the farthest is known, as b ones where a − s is largest and positive:

    ⟨a − s, s⟩ ≥ max {⟨a − s, v⟩ : v ∈ C} = Σ of the ⌊b⌋ largest max(a − s, 0), and a part of the next

What is lacking bounds the distance from s to the projection by its root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, require_shape, require_unchanged

Project = Callable[[Tensor, float], Tensor]
"""(a (P,), b) → the nearest point of [0, 1]^P whose sum is at most b."""
PAIRS, SLACK = 30, 1e-5


def onto_budget(project: Project, *, seed: int = 0, hints: int = 1) -> None:
    """Check a projection onto a budget of flips: prints one line where all holds.

    Args:
        project: called as ``project(a, b)`` with a (P,), one number per pair, and the budget b ≥ 0; returns the point
            of {s ∈ [0, 1]^P : Σ s ≤ b} nearest to a, (P,).
        seed: of the points (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    cases = budget_cases(seed)
    try:
        _nearest(project, cases)
    except Wrong as wrong:
        raise wrong.shown_as("onto_budget", hints) from None
    print(f"onto_budget: holds, for {len(cases)} points within and beyond their budgets")


def budget_cases(seed: int) -> list[tuple[Tensor, float]]:
    """Points with a budget: some need no more than a clip, some have entries above 1 that stay 1, some none."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for scale, shift, share in ((1.0, 0.0, 2.0), (0.3, -0.1, 0.5), (3.0, 0.5, 0.4), (1.0, 1.2, 0.1), (5.0, 4.0, 0.9)):
        for _ in range(4):
            a = scale * torch.randn(PAIRS, generator=generator, dtype=torch.float64) + shift
            cases.append((a, share * float(a.clamp(0, 1).sum())))
            cases.append((a, float(max(1, round(cases[-1][1])))))
    return [*cases, (cases[8][0], 0.0), (-1 - cases[0][0].abs(), 3.0), (cases[8][0].float(), 2.0)]


def lacking(a: Tensor, s: Tensor, b: float) -> float:
    """How much farther along a − s the farthest point of the set lies than s does: 0 for the projection alone."""
    rest = a - s
    gains = rest.clamp_min(0).sort(descending=True).values
    taken = (b - torch.arange(len(a), dtype=a.dtype)).clamp(0, 1)
    return float((gains * taken).sum() - rest @ s)


def _nearest(project: Project, cases: list[tuple[Tensor, float]]) -> None:
    found = []
    for a, b in cases:
        given = a.clone()
        out = require_shape(project(given, b), a.shape, "one number per pair", "Return the point, not μ.")
        require_unchanged(given, a, "a")
        if out.dtype != a.dtype:
            raise Wrong(
                f"the result has dtype {out.dtype}, a has {a.dtype}", "dtype changed", "Use a.clamp and the like."
            )
        found.append(out)
    told = list(zip(found, cases, strict=True))
    low, high = min(float(out.min()) for out in found), max(float(out.max()) for out in found)
    if bool(torch.cat([out.double() for out in found]).isnan().any()):
        raise Wrong("the result is not a number", "a division by zero", "The sum may be 0, and so may the budget.")
    over = max(float(out.double().sum()) - b for out, (_, b) in told)
    off = max(lacking(a.double(), out.double(), b) for out, (a, b) in told)
    if max(-low, high - 1, over) <= SLACK and off <= 1e-4:
        return
    seen = f"a point goes from {low:.3g} to {high:.3g}, with a sum of up to {over:.3g} above its budget"
    if max(-low, high - 1, over) <= SLACK:
        seen = "the point is within its budget, but another one within it is nearer to a"

    def matches(made: Callable[[Tensor, float], Tensor]) -> bool:
        return all(torch.allclose(out.double(), made(a.double(), b), atol=1e-4, equal_nan=True) for out, (a, b) in told)

    blame(seen, _slips(), matches)
    if over > SLACK:
        raise Wrong(
            seen,
            "the sum exceeds the budget",
            "If you search for μ by bisection, let the interval begin at 0 and end at max(a).",
            "Return the end of the interval at which the sum is at most b.",
        )
    if max(-low, high - 1) > SLACK:
        raise Wrong(seen, "the result leaves [0, 1]", "Each flip is between none and one.", ".clamp(0, 1) comes last.")
    raise Wrong(
        seen,
        "a point of the set, not the nearest",
        "One number μ is taken off all entries, and then each is clipped to [0, 1].",
        "Find μ ≥ 0 at which (a − μ).clamp(0, 1) sums to b, by bisection between 0 and max(a), long enough.",
    )


def solved(a: Tensor, b: float, start: float = 0.0, top: float = 1.0) -> Tensor:
    """clip(a − μ) to [0, ``top``] with the μ ≥ ``start`` at which it sums to b, solved where the sum is linear in μ."""
    ends = torch.cat([a, a - top, a.new_tensor([start])])
    ends = ends[ends >= start].unique()  # the ends grow, and the sum falls
    sums = (a - ends[:, None]).clamp(0, top).sum(dim=1)
    if float(sums[0]) <= b:
        return (a - start).clamp(0, top)
    last = int((sums > b).nonzero().max())
    share = (sums[last] - b) / (sums[last] - sums[last + 1])
    return (a - (ends[last] + share * (ends[last + 1] - ends[last]))).clamp(0, top)


def _always(a: Tensor, b: float) -> Tensor:
    """Up to the budget, too: μ may be negative."""
    return solved(a, b, start=-float(a.abs().max()) - 1)


def _scaled(a: Tensor, b: float) -> Tensor:
    inside = a.clamp(0, 1)
    return inside * min(1.0, b / max(float(inside.sum()), 1e-12))


def _largest(a: Tensor, b: float) -> Tensor:
    """The b largest positive entries, clipped; the others 0."""
    kept = torch.zeros_like(a).index_fill(0, a.argsort(descending=True)[: int(b)], 1.0)
    return a.clamp(0, 1) if float(a.clamp(0, 1).sum()) <= b else a.clamp(0, 1) * kept


def _even(a: Tensor, b: float) -> Tensor:
    """What is too much, taken off all alike, once."""
    inside = a.clamp(0, 1)
    return (inside - max(0.0, float(inside.sum()) - b) / len(a)).clamp(0, 1)


def _hyperplane(a: Tensor, b: float) -> Tensor:
    return (a - max(0.0, float(a.sum()) - b) / len(a)).clamp(0, 1)


def _slips() -> Iterator[tuple[Any, ...]]:
    """The points of likely slips, each with its cause and hints."""
    yield (
        lambda a, b: a.clamp(0, 1),
        "no projection onto the budget",
        "Where the clipped point sums to more than b, a number μ is taken off all.",
    )
    yield (
        _always,
        "the sum is always b",
        "A point within its budget is only clipped: nobody has to spend all of it.",
        "μ is never negative: look first at a.clamp(0, 1).sum() <= b.",
    )
    yield (
        _scaled,
        "scaled, not shifted",
        "A factor is not the nearest way: a small entry loses as large a share as a large one.",
        "Take the same μ off every entry.",
    )
    yield (
        lambda a, b: solved(a.clamp(0, 1), b),
        "clipped before the shift",
        "An entry of 3 is still 1 after a shift by 2, if it is clipped only then.",
        "(a - mu).clamp(0, 1), with a as it came.",
    )
    yield (
        lambda a, b: solved(a, b, top=torch.inf),
        "no entry is held at 1",
        "A pair is flipped once at most.",
        "clamp(0, 1), not clamp_min(0): inside of the search, too.",
    )
    yield (
        lambda a, b: solved(a, b, top=torch.inf).clamp(max=1),
        "entries are held at 1 only after the search for μ",
        "The sum that the search looks at must be that of the point that comes back.",
        "(a - mu).clamp(0, 1).sum() inside of the search.",
    )
    yield (
        _largest,
        "rounded to the largest entries",
        "That is a point with few positive entries, and a nearer one keeps more of them.",
        "Draws come later; here s stays between 0 and 1.",
    )
    yield (
        _even,
        "what is too much is taken off once",
        "What was taken off an entry at 0 is clipped away, so that the sum stays above b.",
        "Search for the μ at which the *clipped* point sums to b.",
    )
    yield (
        _hyperplane,
        "the box is forgotten in the search for μ",
        "The sum of a is not the sum of the clipped point.",
        "(a - mu).clamp(0, 1).sum() inside of the search.",
    )
