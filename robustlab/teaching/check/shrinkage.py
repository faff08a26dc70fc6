"""The step of EAD that leaves most pixels as they are, held to the objective that it minimizes.

Per pixel, ½(u − b)² + β|u − x| is a parabola with a kink at x. Its least value on [0, 1] is at the kink, at the vertex
of one of its two sides, or at an end: the best of five points, whatever the formula says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, require_answer, require_in_box, require_unchanged

Shrink = Callable[[Tensor, Tensor, float], Tensor]
"""(b (N, ...), x (N, ...), beta) → like x."""
CLOSE = 1e-9


def shrinkage(function: Shrink, *, shape: tuple[int, ...] = (1, 5, 5), seed: int = 0, hints: int = 1) -> None:
    """Check the shrinkage toward x inside the box: prints one line where all holds.

    Args:
        function: called as ``function(b, x, beta)`` with b of any values, x in [0, 1], both (N, *shape), and a number
            β ≥ 0; returns in each pixel the u in [0, 1] with the least ½(u − b)² + β|u − x|.
        shape: of one input (default 1 × 5 × 5).
        seed: of b and x (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number, beta in enumerate((0.1, 0.3, 0.0)):
            _least(function, beta, shape, torch.Generator().manual_seed(seed + number))
    except Wrong as wrong:
        raise wrong.shown_as("shrinkage", hints) from None
    print("shrinkage: holds, at the kink, on both of its sides and at the ends of the box")


def _least(function: Shrink, beta: float, shape: tuple[int, ...], generator: torch.Generator) -> None:
    x = torch.rand(8, *shape, generator=generator, dtype=torch.float64)
    b = x + 0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    given, kept = b.clone(), x.clone()
    out = require_answer(function(given, kept, beta), x)
    require_unchanged(kept, x)
    expected = best_of_five(b, x, beta)
    if torch.allclose(out, expected, atol=CLOSE):
        return
    pixels = int(((out - expected).abs() > CLOSE).sum())
    seen = f"{pixels} of {x.numel()} pixels are not where the objective is least"
    blame(seen, _slips(b, x, beta), lambda image: torch.allclose(out, image, atol=CLOSE))
    require_in_box(out, CLOSE, "Clamp each of the two shifted values to [0, 1].")
    raise Wrong(
        f"with β = {beta} a pixel is {float((out - expected).abs().max()):.2g} away from where the objective is least",
        "another function than the minimizer",
        "Look at one pixel: where is b − x larger than β, smaller than −β, and in between?",
        "b − β above, b + β below, both cut at the box, and x in between.",
    )


def best_of_five(b: Tensor, x: Tensor, beta: float) -> Tensor:
    """Of the points where a parabola with a kink may be least on [0, 1], the one where it is."""
    points = torch.stack([x, (b - beta).clamp(0, 1), (b + beta).clamp(0, 1), 0 * x, 0 * x + 1])
    value = 0.5 * (points - b).square() + beta * (points - x).abs()
    return points.gather(0, value.argmin(dim=0, keepdim=True))[0]


def _shrunk(b: Tensor, x: Tensor, beta: float) -> Tensor:
    return x + (b - x).sign() * ((b - x).abs() - beta).clamp_min(0)


def _slips(b: Tensor, x: Tensor, beta: float) -> Iterator[tuple[Any, ...]]:
    """The results of likely slips, each with its cause and hints."""
    yield (
        _shrunk(b, x, beta),
        "no clamp to [0, 1]",
        "b may lie outside of the box, and so may b − β.",
        "(b - beta).clamp(max=1) and (b + beta).clamp(min=0).",
    )
    for zero in (_shrunk(b, 0 * x, beta), _shrunk(b, 0 * x, beta).clamp(0, 1)):
        yield (
            zero,
            "it shrinks toward 0, not toward x",
            "What is to be sparse is the change of the image.",
            "Compare b − x with β, and return x in between.",
        )
    yield (
        torch.where((b - x).abs() > beta, b.clamp(0, 1), x),
        "a hard threshold: what is kept is not shrunk",
        "β|u − x| pulls with the same force however far u is from x.",
        "Where b − x > β, return b − β, not b.",
    )
    for other, said in ((2 * beta, "2β"), (beta / 2, "β/2")):
        yield (
            _shrunk(b, x, other).clamp(0, 1),
            f"the threshold is {said}, not β",
            "Which factor has the square in front of it?",
            "The derivative of ½(u − b)² + β|u − x| to the right of x is u − b + β.",
        )
    yield (
        torch.where((b - x).abs() > beta, b + beta * (b - x).sign(), x).clamp(0, 1),
        "it moves away from x: signs are exchanged",
        "Where b lies above x, shrinking goes down.",
        "b − β where b − x > β, and b + β where b − x < −β.",
    )
    yield (
        x,
        "nothing moves",
        "Where |b − x| > β the new point is not x.",
    )
    yield (
        b.clamp(0, 1),
        "nothing is shrunk",
        "Without β the change has no zeros.",
    )
