"""One look for all figures: readable in grey, on a white panel, at the width of a book page."""

from __future__ import annotations

import matplotlib as mpl
from cycler import cycler

WIDTH = 7.2
"""Width in inches of a figure that fills the text column of a page."""

COLORS = {
    "ink": "#1b2a41",
    "muted": "#5b6575",
    "panel": "#f3f5f8",
    "line": "#c3cad5",
    "blue": "#1f4e8c",
    "orange": "#b85c00",
    "teal": "#1b7f79",
    "plum": "#7a2a6b",
    "gold": "#b8860b",
    "red": "#b3261e",
}
"""Named colors of the book; each has at least 3:1 contrast on white."""

# Each line differs from its neighbors in dash and marker too, so that color carries nothing alone.
_CYCLE = (
    cycler(color=[COLORS[name] for name in ("blue", "orange", "teal", "plum", "gold", "ink")])
    + cycler(linestyle=["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2))])
    + cycler(marker=["o", "s", "^", "D", "v", "x"])
)


def style() -> None:
    """Set matplotlib's defaults for the book, in place.

    White figure background (a light panel in dark mode too), 9-point type at column width,
    lines that differ in dash and marker, few spines, 130 dots per inch.

    Source: this book.
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.dpi": 130,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.dpi": 130,
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",
            "font.size": 9.0,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9.0,
            "axes.labelcolor": COLORS["ink"],
            "axes.edgecolor": COLORS["muted"],
            "axes.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": _CYCLE,
            "grid.color": "#e4e8ee",
            "grid.linewidth": 0.7,
            "text.color": COLORS["ink"],
            "xtick.color": COLORS["muted"],
            "ytick.color": COLORS["muted"],
            "xtick.labelcolor": COLORS["ink"],
            "ytick.labelcolor": COLORS["ink"],
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "lines.linewidth": 1.7,
            "lines.markersize": 4.5,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )
