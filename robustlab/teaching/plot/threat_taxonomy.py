"""What an evasion attacker sees: our own drawing of the survey's figure 2."""

from __future__ import annotations

from itertools import pairwise, product
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from robustlab.teaching.plot.diagram import Box, arrow, canvas, node, panel, words
from robustlab.teaching.plot.theme import COLORS


class _Attacker(NamedTuple):
    name: str
    picture: str
    sees: str
    follows: str
    pays: str
    examples: str
    color: str


_ATTACKERS = (
    _Attacker(
        "White box", "net", "the whole\nmodel", "the input\ngradient",
        "one backward\npass a step", "FGSM, PGD,\nDeepFool, C&W", "blue",
    ),
    _Attacker(
        "Soft-label\nblack box", "bars", "all class\nscores", "an estimated\ngradient",
        "many\nqueries", "ZOO and its\nrelatives", "teal",
    ),
    _Attacker(
        "Hard-label\nblack box", "label", "the top-1\nlabel", "the distance to\nthe boundary",
        "most\nqueries", "boundary and\nsign attacks", "plum",
    ),
    _Attacker(
        "Transfer", "dashed net", "a surrogate\nmodel", "the gradient of\nthe surrogate",
        "few or no\nqueries", "adversarial\nexamples reused", "orange",
    ),
)  # fmt: skip
_COLUMNS = ((2.5, "Attacker"), (22.5, "sees"), (48.5, "follows"), (69.5, "pays"), (83.5, "examples"))
_ROW, _GAP = 12.4, 1.6


def taxonomy() -> Figure:
    """Draw the four kinds of evasion attack side by side.

    Each row is an attacker: what it sees of the target, the signal that it turns this into, what the
    signal costs, and examples. Rows go from most to least knowledge of the target; the transfer
    attacker borrows its gradient from a model of its own.

    Returns:
        A matplotlib figure, 7.2 inches wide.

    Source: Chen and Liu, figure 2 and section 2.2, redrawn.
    """
    high = len(_ATTACKERS) * (_ROW + _GAP) + 5.5
    figure, axes = canvas(high)
    for left, title in _COLUMNS:
        head = (left, high - 3.6)
        words(axes, head, title, size=9, bold=True, across="left", along="baseline", color=COLORS["muted"])
    for place, attacker in enumerate(_ATTACKERS):
        _row(axes, Box(1, high - 5.5 - _ROW - place * (_ROW + _GAP), 98, _ROW), attacker)
    return figure


def _row(axes: Axes, area: Box, attacker: _Attacker) -> None:
    panel(axes, area)
    color, low, high = COLORS[attacker.color], area.bottom + 1.7, area.height - 3.4
    who = node(axes, Box(2.5, low, 15.5, high), attacker.name, color=color, filled=True)
    target = node(axes, Box(22.5, low, 21.5, high), color=color)
    _picture(axes, Box(24, low + 1.8, 6.5, high - 3.6), attacker.picture, color)
    words(axes, (32.5, target.middle[1]), attacker.sees, across="left")
    signal = node(axes, Box(48.5, low, 17.5, high), note=attacker.follows, color=color)
    arrow(axes, who.on_right(), target.on_left(), color=color)
    arrow(axes, target.on_right(), signal.on_left(), color=color)
    words(axes, (69.5, area.middle[1]), attacker.pays, across="left")
    words(axes, (83.5, area.middle[1]), attacker.examples, across="left")


def _picture(axes: Axes, box: Box, kind: str, color: str) -> None:
    """A small picture of what the target shows: a network, a row of scores, or one label."""
    if kind == "bars":
        for place, share in enumerate((0.25, 0.95, 0.45, 0.15)):
            corner = (box.left + place * box.width / 4, box.bottom)
            axes.add_patch(Rectangle(corner, box.width / 5.5, share * box.height, color=color))
    elif kind == "label":
        node(axes, Box(box.left + 0.6, box.bottom + 0.2, 5.2, box.height - 0.4), "7", color=color, size=10)
    else:
        _network(axes, box, color, "--" if kind == "dashed net" else "-")


def _network(axes: Axes, box: Box, color: str, dash: str) -> None:
    layers = [
        [(box.left + share * box.width, box.bottom + height * box.height) for height in heights]
        for share, heights in ((0.1, (0.1, 0.5, 0.9)), (0.5, (0.25, 0.75)), (0.9, (0.1, 0.5, 0.9)))
    ]
    for one, next_one in pairwise(layers):
        for start, end in product(one, next_one):
            across, along = zip(start, end, strict=True)
            axes.plot(across, along, color=color, linewidth=0.7, linestyle=dash, marker="")
    for point in (point for layer in layers for point in layer):
        axes.add_patch(Circle(point, 0.62, facecolor="white", edgecolor=color, linewidth=1.1, zorder=4))
