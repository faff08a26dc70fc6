"""What tells the bound-propagation methods apart: one engine, a handful of choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustlab.graph.operators import Rule

HiddenBounds = Literal["backward", "interval"]
Sides = Literal["both", "deciding"]


@dataclass(frozen=True, kw_only=True)
class BoundOptions(Rule):
    """The choices of a method; see also :class:`~robustlab.graph.operators.Rule`.

    Attributes:
        intermediate: where the bounds of hidden layers come from: ``"backward"`` (a backward pass from each of them, as
            in Fast-Lin and CROWN) or ``"interval"`` (interval arithmetic, as in CROWN-IBP).
        intersect: with True, every bound is intersected with what interval arithmetic says of it, and only neurons that
            interval arithmetic leaves unstable are bounded by a backward pass. This is tighter and much cheaper; with
            False, all neurons are, which is the letter of the papers.
        sides: which ends of a neuron's interval passes bound: ``"both"``, or with ``"deciding"`` first the one nearer
            to 0, and the other only where the neuron is not stable by then. That spares up to half of the passes; what
            they do not bound is what no relaxation of the neuron needs.
    """

    intermediate: HiddenBounds = "backward"
    intersect: bool = True
    sides: Sides = "both"
