"""What tells the bound-propagation methods apart: one engine, a handful of choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustlab.graph.operator import Rule

HiddenBounds = Literal["backward", "interval"]


@dataclass(frozen=True, kw_only=True)
class BoundOptions(Rule):
    """The choices of a method; see also :class:`~robustlab.graph.operator.Rule`.

    Attributes:
        intermediate: where the bounds of hidden layers come from: ``"backward"`` (a backward pass from each of them, as
            in Fast-Lin and CROWN) or ``"interval"`` (interval arithmetic, as in CROWN-IBP).
        intersect: with True, every bound is intersected with what interval arithmetic says of it, and only neurons that
            interval arithmetic leaves unstable are bounded by a backward pass. This is tighter and much cheaper; with
            False, all neurons are, which is the letter of the papers.
    """

    intermediate: HiddenBounds = "backward"
    intersect: bool = True
