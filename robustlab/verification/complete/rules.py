"""What branch and bound is asked to split, and what that means for a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from robustlab import checks
from robustlab.graph.node import Graph
from robustlab.verification.complete.branching import ReluRule
from robustlab.verification.complete.query import Case
from robustlab.verification.propagation.alpha_crown import AlphaScope

Branching = Literal["auto", "inputs", "sensitivity", "babsr"]
FEW_INPUTS = 16  # up to so many inputs that vary, these are split


def check_branching(branching: Branching, alpha: AlphaScope) -> None:
    """Raise a ValueError for a choice that is none, or two that do not go together."""
    checks.one_of("branching", branching, get_args(Branching))
    checks.one_of("alpha", alpha, get_args(AlphaScope))
    if (branching, alpha) == ("inputs", "joint"):
        raise ValueError("alpha: want 'output' where inputs are split, whose slopes are not optimized; got 'joint'")


def relu_rule(branching: Branching, alpha: AlphaScope, graph: Graph, cases: Sequence[Case]) -> ReluRule | None:
    """The rule by which ReLUs are split; None where inputs are."""
    check_branching(branching, alpha)
    if branching == "inputs" or not graph.relus:
        return None
    if branching != "auto":
        return branching
    varying = max(int((case.low < case.high).sum()) for case in cases)
    return None if varying <= FEW_INPUTS and alpha == "output" else "sensitivity"
