"""Curves of robust accuracy against the attacker's budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes


def robust_accuracy_curve(
    curves: Mapping[str, Any],
    eps: Sequence[float],
    *,
    bands: Mapping[str, tuple[Any, Any]] | None = None,
    axes: Axes | None = None,
    xlabel: str = "budget ε",
    chance: float | None = None,
) -> Axes:
    """Draw accuracy against ε, one line per model or attack, each with its spread.

    Args:
        curves: name → accuracies in [0, 1], shape (E,), or (runs, E): then the line is the mean over the
            runs and the band reaches from the lowest to the highest run.
        eps: the E budgets.
        bands: name → (low, high), each of shape (E,), where intervals were computed elsewhere.
        axes: where to draw (default: a new figure).
        xlabel: name of the horizontal axis.
        chance: accuracy of guessing; drawn as a thin dotted line.

    Returns:
        The axes, with a legend.

    Raises:
        ValueError: a curve whose length is not that of ``eps``.

    Source: this book.
    """
    if axes is None:
        axes = plt.subplots()[1]
    for name, values in curves.items():
        runs = np.atleast_2d(np.asarray(values, dtype=float))
        if runs.shape[1] != len(eps):
            raise ValueError(f"curves: {name!r} has {runs.shape[1]} values, want {len(eps)}, one per budget")
        low, high = (bands or {}).get(name, (runs.min(axis=0), runs.max(axis=0)))
        (drawn,) = axes.plot(eps, runs.mean(axis=0), label=name)
        axes.fill_between(eps, low, high, color=drawn.get_color(), alpha=0.18, linewidth=0)
    if chance is not None:
        axes.axhline(chance, color="0.45", linestyle=":", linewidth=1, marker="", label="guessing")
    axes.set(xlabel=xlabel, ylabel="accuracy", ylim=(-0.02, 1.02))
    axes.legend()
    return axes
