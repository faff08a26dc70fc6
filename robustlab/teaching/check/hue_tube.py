"""Lines around pixels whose hue turns, held to the curves that Python's ``colorsys`` draws.

Every channel of a turning color is piecewise linear and may bend only where the hue passes a sixth of the circle. So
the distance from a line is largest at one of these turns or at an end, and that many colors tell all of it.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, of_the_batch, require_unchanged

Tube = Callable[[Tensor, float, float], Any]
"""(x (N, 3, H, W), low, high) → slope, below, above, each like x."""
Parts = tuple[Tensor, Tensor, Tensor]
SLACK = 1e-9
PARTS = ((-0.1, 0.15), (0.0, 0.5), (-0.5, 0.5), (0.3, 0.35))
COUNT, SIDE = 5, 4


def hue_tube(function: Tube, *, seed: int = 0, hints: int = 1) -> None:
    """Check the lines around every pixel of images whose hue turns: prints one line where all holds.

        slope·φ + below  ≤  x(φ)  ≤  slope·φ + above    for all turns φ between low and high

    Args:
        function: called as ``function(x, low, high)`` with images x (N, 3, H, W) in [0, 1] and two turns of the hue, in
            turns of the color circle and at most one apart; returns slope, below and above, each like x: the slope of
            the line through the pixel at both ends, and the offsets of the lowest and the highest parallel that the
            pixel touches in between.
        seed: of the colors (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    x = colorful(seed)
    try:
        for low, high in PARTS:
            _on_part(function, x, low, high)
        _alone(function, x)
    except Wrong as wrong:
        raise wrong.shown_as("hue_tube", hints) from None
    print(f"hue_tube: holds, for {x[:, 0].numel()} colors on {len(PARTS)} parts of the circle, against colorsys")


def colorful(seed: int) -> Tensor:
    """Images of random colors; of the first one a pixel is gray, one black, one pure red."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(COUNT, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.5, 0.0
    x[0, :, 0, 2] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    return x


def by_colorsys(x: Tensor, low: float, high: float, *, only: tuple[float, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Turns of every pixel and its colors there, (T, N, 3, H, W) each: both ends first, then where it may bend.

    With ``only`` the turns after the ends are these shares of the way from low to high.
    """
    turns, colors = [], []
    for color in x.movedim(1, -1).reshape(-1, 3).tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        bends = [(k / 6 - hue - low) % 1.0 + low for k in range(6)]
        inner = [min(phi, high) for phi in bends]
        if only is not None:
            inner = [low + share * (high - low) for share in only]
        at = [low, high, *inner]
        turns.append([[phi] * 3 for phi in at])
        colors.append([colorsys.hsv_to_rgb((hue + phi) % 1.0, saturation, value) for phi in at])

    def like(rows: Any) -> Tensor:
        shape = x.movedim(1, -1).shape[:-1]
        return torch.tensor(rows, dtype=x.dtype).movedim(0, 1).reshape(-1, *shape, 3).movedim(-1, 2)

    return like(turns), like(colors)


def lines(turns: Tensor, colors: Tensor) -> Parts:
    """The line through both ends, and the offsets of its parallels through what is farthest below and above."""
    slope = (colors[1] - colors[0]) / (turns[1] - turns[0])
    left = colors - slope * turns
    return slope, left.amin(dim=0), left.amax(dim=0)


def _asked(function: Tube, x: Tensor, low: float, high: float) -> Parts:
    given = x.clone()
    out = function(given, low, high)
    require_unchanged(given, x)
    good = isinstance(out, tuple | list) and len(out) == 3 and all(isinstance(t, Tensor) for t in out)
    if not good or any(t.shape != x.shape for t in out):
        raise Wrong(
            "the function returned no triple of tensors like x",
            "wrong shape",
            "Slope, lower and upper offset, each (N, 3, H, W).",
            "return slope, left.amin(0), left.amax(0), where left is (places, N, 3, H, W).",
        )
    slope, below, above = (t.detach().to(x) for t in out)
    if not all(bool(t.isfinite().all()) for t in (slope, below, above)):
        raise Wrong(
            "a slope or an offset is not finite",
            "a division by zero",
            "A gray pixel has no hue of its own, a black one no saturation.",
            "Of them chroma is 0, and nothing moves: take 0 for the hue.",
        )
    return slope, below, above


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.allclose(p, q, atol=SLACK) for p, q in zip(one, other, strict=True))


def _on_part(function: Tube, x: Tensor, low: float, high: float) -> None:
    out = _asked(function, x, low, high)
    turns, colors = by_colorsys(x, low, high)
    right = lines(turns, colors)
    if _same(out, right):
        return
    left = colors - out[0] * turns
    outside = float(torch.maximum(out[1] - left, left - out[2]).max())
    where = f"between {low} and {high}"
    seen = f"{where} a pixel leaves its tube by {outside:.2g}" if outside > SLACK else f"{where} the tube is too wide"
    if not torch.allclose(out[0], right[0], atol=SLACK):
        blame(seen, _slopes(x, low, high, right[0]), lambda slope: torch.allclose(out[0], slope, atol=SLACK))
        raise Wrong(
            seen,
            "the slope is not that of the line through both ends",
            "Put low and high into the formula of the color: are these the colors at both ends?",
            "p = (m + 6 * (hue + phi)) % 6, V - C * max(0, min(p, 4 - p, 1)), and (last - first) / (high - low).",
        )
    blame(seen, _offsets(x, low, high, turns, colors, right), lambda ends: _same(out[1:], ends))
    if outside > SLACK:
        raise Wrong(
            seen,
            "a place where the pixel bends is left out",
            "Between two places where it bends a channel is straight; so these places and the ends tell all.",
            "Bends are at p = 0, 1, 3, 4, p = (m + 6·(hue + φ)) % 6; the first after low is (bend − p_low) % 6 / 6.",
        )
    raise Wrong(
        seen,
        "right, and wider than it has to be",
        "The offsets are those of the nearest parallels: each is touched somewhere between low and high.",
        "A bend beyond high does not count: phi.clamp(low, high).",
    )


def _slopes(x: Tensor, low: float, high: float, right: Tensor) -> Iterator[tuple[Any, ...]]:
    """The slopes of likely slips, each with its cause and hints."""
    yield (
        right * (high - low),
        "the slope is not divided by the length of the part",
        "A slope is a rise per turn.",
        "(value at high - value at low) / (high - low).",
    )
    yield (
        torch.zeros_like(right),
        "all slopes are 0: a box, not a tube",
        "It is right, and a verifier that gets it has forgotten that pixels move together.",
        "The slope of the line through both ends.",
    )
    yield (
        right[:, [2, 1, 0]],
        "red and blue are exchanged",
        "Which channel stands where on the circle?",
        "m is 5, 3, 1 for red, green, blue.",
    )
    turns, colors = by_colorsys(x, -high, -low)
    yield (
        lines(-turns, colors)[0],
        "the circle is gone round the other way",
        "Red turns to green, then to blue.",
        "hue + phi.",
    )
    turns, colors = by_colorsys(x, low / 6, high / 6)
    yield (
        lines(6 * turns, colors)[0],
        "the turn is not in turns of the circle",
        "p counts sixths, φ whole turns.",
        "m + 6 * (hue + phi).",
    )


def _offsets(
    x: Tensor, low: float, high: float, turns: Tensor, colors: Tensor, right: Parts
) -> Iterator[tuple[Any, ...]]:
    """The offsets of likely slips, each with its cause and hints."""
    yield (
        lines(turns[:2], colors[:2])[1:],
        "the bends are left out",
        "Both ends lie on the line itself; what lies apart from it is in between.",
        "A channel bends at p = 0, 1, 3, 4.",
    )
    yield (
        lines(*by_colorsys(x, low, high, only=(0.5,)))[1:],
        "the middle in place of the bends",
        "A bend a quarter into the part is met by neither the ends nor the middle.",
        "Go to the bends: phi = low + ((knot - p_low) % 6) / 6.",
    )
    yield (right[2], right[1]), "below and above are exchanged", "The lower offset is the least of value − slope·φ."
    yield (
        (colors.amin(dim=0), colors.amax(dim=0)),
        "offsets are values, not what is left of them",
        "An offset is where the line stands at φ = 0, not at the pixel.",
        "value - slope * phi.",
    )


def _alone(function: Tube, x: Tensor) -> None:
    together = _asked(function, x, *PARTS[0])
    each = [_asked(function, x[i : i + 1], *PARTS[0]) for i in range(len(x))]
    alone = [torch.cat(parts) for parts in zip(*each, strict=True)]
    if not _same(together, alone):
        raise of_the_batch(
            "Every pixel has its own slope and its own offsets.",
            "amin(0) over the places, not over the images.",
            who="images",
            seen="an image gets other lines in a batch than alone",
        )
