"""An estimate of a gradient from pairs of values, held to functions whose slopes are known.

Along u the slope of an affine function a·p + c is a·u, whatever the step, so the mean over q directions is
(1/q) Σ (a·u_j) u_j exactly. The same holds in the middle of a pair for a function with curvature, and only there: a
pair with one end at x itself is off by half of the curvature. Near the ends of the box a pair has to move as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, of_the_batch, require_answer, require_unchanged

Values = Callable[[Tensor], Tensor]
"""g: points (N, q, C, H, W) → one value each, (N, q)."""
Estimate = Callable[[Values, Tensor, Tensor, float], Tensor]
"""(g, x (N, C, H, W), u (N, q, C, H, W), mu) → the estimated gradients, like x."""
COUNT, PAIRS, MU = 6, 7, 0.05
CLOSE = 1e-8


def slope_estimate(function: Estimate, *, seed: int = 0, hints: int = 1) -> None:
    """Check an estimate of gradients by central differences: prints one line where all holds.

    Args:
        function: called as ``function(g, x, u, mu)`` with x (N, C, H, W) in [0, 1], q directions for each input,
            u (N, q, C, H, W), and a step mu. ``g`` takes points (N, m, C, H, W) of the box, for any m, and returns
            (N, m); 2q rows per input are enough. Returns, like x, the mean over j of s_j·u_j, where s_j is the slope of
            g along u_j, from the two ends of a pair of length 2·mu·‖u_j‖ around x, or beside it near an end of the box.
        seed: of the functions, inputs and directions (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number, (shape, curved, ends) in enumerate(
            [((1, 3, 3), False, False), ((2, 4, 2), True, False), ((1, 4, 4), False, True)]
        ):
            _exact(function, shape, curved, ends, torch.Generator().manual_seed(seed + number))
    except Wrong as wrong:
        raise wrong.shown_as("slope_estimate", hints) from None
    print("slope_estimate: holds, on affine and curved functions, and at the ends of the box")


class Asked:
    """g(p) = a·p − k/2·‖p − x‖² for each input, which notes what it is asked about."""

    def __init__(self, slope: Tensor, x: Tensor, curvature: float) -> None:
        self.slope, self.x, self.curvature = slope, x, curvature
        self.rows, self.outside = 0, 0.0

    def __call__(self, points: Tensor) -> Tensor:
        """The values at points (N, m, C, H, W), (N, m)."""
        if points.dim() != self.x.dim() + 1 or points.shape[2:] != self.x.shape[1:] or len(points) != len(self.x):
            raise Wrong(
                f"g was asked about points of shape {tuple(points.shape)}",
                "wrong shape of the points",
                f"All of an input's points are in one row: here ({len(self.x)}, m, *{tuple(self.x.shape[1:])}).",
                "x[:, None] + mu * u.",
            )
        self.rows += points.shape[1]
        self.outside = max(self.outside, float(-points.min()), float(points.max() - 1))
        at = (points - self.x[:, None]).flatten(2)
        value: Tensor = (points.flatten(2) * self.slope.flatten(1)[:, None]).sum(dim=2)
        return value - self.curvature / 2 * at.square().sum(dim=2)


def _exact(function: Estimate, shape: tuple[int, ...], curved: bool, ends: bool, generator: torch.Generator) -> None:
    def drawn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    a, u, x = drawn(COUNT, *shape), drawn(COUNT, PAIRS, *shape), 0.5 + 0.03 * drawn(COUNT, *shape).clamp(-3, 3)
    if ends:
        x = torch.where(drawn(COUNT, *shape) < 0, x.round(), x)
    slopes = (a[:, None] * u).flatten(2).sum(dim=2)[..., None, None, None]
    expected = (slopes * u).mean(dim=1)
    g, given = Asked(a, x, 4.0 if curved else 0.0), x.clone()
    out = require_answer(function(g, given, u.clone(), MU), x)
    require_unchanged(given, x)
    if g.outside > 1e-9:
        raise Wrong(
            f"g was asked about a point {g.outside:.2g} outside of the box",
            "pairs leave the box",
            "An interface takes images, and x may lie at an end of the box.",
            "Move the middle of the pair: x.clamp(|mu·u|, 1 − |mu·u|).",
        )
    if not torch.allclose(out, expected, atol=CLOSE):
        _explain(out, expected, u, slopes, g, a, ends)
    if g.rows > 2 * PAIRS:
        raise Wrong(
            f"g was asked about {g.rows} points per input for {PAIRS} directions",
            "more questions than two per direction",
            "Each question costs. Which of the values do you use?",
            "One value at each end of a pair: g(middle + mu·u) and g(middle − mu·u).",
        )


def _explain(out: Tensor, expected: Tensor, u: Tensor, slopes: Tensor, g: Asked, a: Tensor, ends: bool) -> None:
    for factor, cause, hint in (
        (-1.0, "sign lost", "The value at the end of +u comes first: g(+) − g(−)."),
        (2.0, "a pair is as long as 2·mu, not mu", "Divide the difference by 2·mu."),
        (0.5, "a difference from x alone is divided by 2·mu", "From x to x + mu·u it is mu."),
        (2 * MU, "the length of the step is ignored", "A slope is a difference of values over a distance."),
        (float(PAIRS), "a sum over the directions, not their mean", "Take the mean over the directions of each input."),
    ):
        if torch.allclose(out, factor * expected, atol=CLOSE):
            raise Wrong(f"the result is {factor:.3g} times what it should be", cause, hint)
    if torch.allclose(out, (slopes * u).mean(dim=(0, 1)).expand_as(out), atol=CLOSE):
        raise _of_the_batch()
    if g.curvature:
        bend = g.curvature / 2 * MU * u.flatten(2).square().sum(dim=2)[..., None, None, None]
        for sign in (-1, 1):
            if torch.allclose(out, ((slopes + sign * bend) * u).mean(dim=1), atol=CLOSE):
                raise Wrong(
                    "on a function with curvature the result is off by half of the curvature",
                    "a one-sided difference",
                    "Between x and x + mu·u a curved function has another slope than at x.",
                    "Ask at both sides of x: (g(x + mu·u) − g(x − mu·u)) / (2·mu).",
                )
    if ends:
        raise Wrong(
            "right inside of the box, and wrong where x lies at its ends",
            "a pair is clamped to another length",
            "After a clamp the points of the pair are no longer 2·mu·‖u‖ apart.",
            "Move the middle of the pair, not its ends: x.clamp(|mu·u|, 1 − |mu·u|).",
        )
    raise Wrong(
        f"the result is off by up to {float((out - expected).abs().max()):.2g}",
        "another mean than that of slope times direction",
        "One slope per direction, (N, q), stretches its own direction.",
        "(slope[..., None, None, None] * u).mean(dim=1).",
    )


def _of_the_batch() -> Wrong:
    return of_the_batch(
        "Each input has slopes and directions of its own.",
        "Take the mean over dimension 1 only.",
        seen="all samples of a batch get the same result",
    )
