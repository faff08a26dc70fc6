"""Boxes, arrows and panels from which the book's diagrams are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from robustlab.teaching.plot.theme import COLORS, WIDTH

Point = tuple[float, float]

_UNITS_PER_POINT = 100 / (72 * WIDTH)
_DASHES = (0, (4, 2.5))


@dataclass(frozen=True)
class Box:
    """A placed rectangle; its anchors are where arrows start and end."""

    left: float
    bottom: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def top(self) -> float:
        return self.bottom + self.height

    @property
    def middle(self) -> Point:
        return self.left + self.width / 2, self.bottom + self.height / 2

    def on_left(self) -> Point:
        return self.left, self.middle[1]

    def on_right(self) -> Point:
        return self.right, self.middle[1]


def canvas(units_high: float) -> tuple[Figure, Axes]:
    """A blank figure, 100 units wide and ``units_high`` units high, the same scale both ways.

    Args:
        units_high: height of the drawing area; 100 units are the width of a page's column.
    """
    figure = plt.figure(figsize=(WIDTH, WIDTH * units_high / 100), layout="none", facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100), ylim=(0, units_high))
    axes.axis("off")
    return figure, axes


def panel(axes: Axes, box: Box, title: str = "") -> None:
    """A tinted area with its title at the top left."""
    axes.add_patch(_rounded(box, facecolor=COLORS["panel"], edgecolor=COLORS["line"], linewidth=0.9))
    words(axes, (box.left + 2, box.top - 3.6), title, size=10, bold=True, across="left")


def node(
    axes: Axes,
    box: Box,
    title: str = "",
    note: str = "",
    *,
    color: str = COLORS["ink"],
    filled: bool = False,
    dashed: bool = False,
    size: float = 8.6,
) -> Box:
    """A box with a bold title and, under it, a note in plain type; returns the box.

    Args:
        axes: where to draw.
        box: where it stands, in units.
        title: bold line or lines.
        note: further lines under the title.
        color: of the edge, or of the whole box where ``filled``.
        filled: draw white type on a box of that color.
        dashed: draw a dashed edge (for what lies outside the book).
        size: type size of the title, points; the note is a little smaller.
    """
    face, ink = (color, "white") if filled else ("white", COLORS["ink"])
    dash = _DASHES if dashed else "solid"
    axes.add_patch(_rounded(box, facecolor=face, edgecolor=color, linewidth=1.2, linestyle=dash))
    lines = [(text, size, True) for text in title.split("\n") if text]
    lines += [(text, size - 0.8, False) for text in note.split("\n") if text]
    # Each line gets its own baseline, so that the text of boxes in a row stands level.
    leading = [1.5 * points * _UNITS_PER_POINT for _, points, _ in lines]
    baseline = box.middle[1] + sum(leading) / 2 + 0.3 * size * _UNITS_PER_POINT
    for (text, points, bold), step in zip(lines, leading, strict=True):
        baseline -= step
        words(axes, (box.middle[0], baseline), text, size=points, color=ink, bold=bold, along="baseline")
    return box


def arrow(axes: Axes, start: Point, end: Point, *, color: str = COLORS["muted"], width: float = 1.4) -> None:
    """A straight arrow between two points."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            shrinkA=1.5,
            shrinkB=1.5,
            color=color,
            linewidth=width,
            zorder=3,
        )
    )


def line(axes: Axes, points: list[Point], *, color: str = COLORS["muted"], width: float = 2.0) -> None:
    """A line through several points, without a head: the path that an arrow then ends."""
    across, along = zip(*points, strict=True)
    axes.plot(across, along, color=color, linewidth=width, linestyle="-", marker="", solid_capstyle="round")


def words(
    axes: Axes,
    at: Point,
    text: str,
    *,
    size: float = 7.9,
    color: str = COLORS["ink"],
    across: Literal["left", "center", "right"] = "center",
    along: Literal["baseline", "center"] = "center",
    bold: bool = False,
    italic: bool = False,
) -> None:
    """A line or several of text at a point; ``across`` and ``along`` say which side is held there."""
    axes.text(
        *at,
        text,
        ha=across,
        va="center_baseline" if along == "center" and "\n" not in text else along,
        fontsize=size,
        color=color,
        linespacing=1.3,
        weight="bold" if bold else "normal",
        style="italic" if italic else "normal",
    )


def _rounded(box: Box, **look: Any) -> FancyBboxPatch:
    shape = "round,pad=0,rounding_size=1.2"
    return FancyBboxPatch((box.left, box.bottom), box.width, box.height, boxstyle=shape, **look)
