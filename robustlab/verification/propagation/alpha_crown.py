"""α-CROWN: the slopes below the ReLUs are found by gradient ascent on the bound itself.

Any 0 ≤ α ≤ 1 gives a sound line α·z below an unstable ReLU, so the bound is a function of all α that may be maximized:

    max over α of  min {⟨a₀(α), x⟩ + c(α) : x in the region}

Each row of C has slopes of its own. They start at CROWN's, and the best bound seen is kept, so the result is never
below CROWN's from the same layer bounds. For branch and bound, what is assumed of the sign of a neuron, s·z ≥ 0, enters
with a multiplier β ≥ 0: min f ≥ min f − β·s·z for every such β, which is maximized along with α (β-CROWN).

The bounds of the hidden layers are CROWN's (or given), or come from slopes of their own, which are optimized together
with those of the output (:mod:`~robustlab.verification.propagation.joint`).

Source: Xu et al., "Fast and complete: Enabling complete verification with rapid and massively parallel incomplete
verifiers" (2021); the multipliers: Wang et al., "Beta-CROWN" (2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.geometry.adam import Adam
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.hinge import Hinge
from robustlab.graph.node import Graph
from robustlab.verification.propagation.ascent import bound_by_ascent
from robustlab.verification.propagation.backward import backward, concretize, rounding_terms
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.joint import Slopes, together
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms

AlphaScope = Literal["output", "joint"]
"""Whose slopes are optimized: those of the pass from the output, or those of hidden layers together with them."""


@dataclass(frozen=True, eq=False)
class Optimized:
    """What the ascent found.

    Attributes:
        lower: (N, M), the best bound seen of each row.
        slopes: node of a ReLU → its slopes at the last step, (N, M, *shape).
        multipliers: split node → its multipliers at the last step, (N, M, *shape).
        coef: (N, M, *input shape), the linear bound's coefficients on the input at the last step.
    """

    lower: Tensor
    slopes: dict[int, Tensor]
    multipliers: dict[int, Tensor]
    coef: Tensor


def optimized_bound(
    graph: Graph,
    region: Region,
    C: Tensor,
    layers: Layers,
    *,
    steps: int = 20,
    lr: float = 0.1,
    decay: float = 0.98,
    splits: Mapping[int, Tensor] | None = None,
    slopes: Mapping[int, Tensor] | None = None,
    multipliers: Mapping[int, Tensor] | None = None,
    joint: BoundOptions | None = None,
) -> Optimized:
    """Maximize the lower bounds of C·output over the slopes (and multipliers).

    Args:
        graph: the network.
        region: N sets of inputs.
        C: (N, M, K), or (M, K) for all.
        layers: what ``layer_bounds`` gave with the same region and splits.
        steps: ascent steps (Adam); 0 gives the bound at the start.
        lr, decay: the step size of the slopes in units of their range, and its factor after each step.
        splits: as in ``layer_bounds``; each gets a multiplier.
        slopes, multipliers: where to start, as a previous call gave them; None starts at CROWN's slopes and at 0.
        joint: the choices by which ``layers`` were bounded, to optimize the slopes of hidden layers too; the rows of a
            sample share them, for the sum of their bounds. None takes ``layers`` as they are.

    Returns:
        An :class:`Optimized`; detached.
    """
    forms = as_forms(C, len(region))
    rows, parts = len(forms.sample), C.shape[-2]
    layers = _detached(layers)
    terms = rounding_terms(graph, layers.bounds)
    hidden = None if joint is None else Slopes(graph, layers)
    alpha = {}
    for node in graph.nonlinear:
        if isinstance(node.op, Hinge):
            start = forms.pick(layers.lines[node.index].lower_slope)
            if slopes is not None and node.index in slopes:
                start = slopes[node.index].reshape(rows, *node.shape)
            alpha[node.index] = start.expand(rows, *node.shape).clone().requires_grad_()
    signs = {i: forms.pick(sign).to(forms.coef.dtype) for i, sign in (splits or {}).items()}
    given = multipliers or {}
    beta = {
        i: (given[i].reshape(rows, *graph.nodes[i].shape) if i in given else torch.zeros_like(sign))
        .expand(rows, *graph.nodes[i].shape).clone().requires_grad_()
        for i, sign in signs.items()
    }  # fmt: skip
    ascent, now = None, layers
    best, at_input = forms.coef.new_full((rows,), -torch.inf), forms
    for step in range(steps + 1):
        with torch.enable_grad():
            if hidden is not None and joint is not None:
                now = layer_bounds(graph, region, joint, splits=splits, passes=hidden)
            lines = dict(now.lines)
            for i, slope in alpha.items():
                op, before = graph.nodes[i].op, now.bounds[graph.nodes[i].inputs[0]]
                assert op is not None
                free, fixed = forms.pick(op.unstable(before)[0]), forms.pick(lines[i].lower_slope)
                lines[i] = replace(lines[i], lower_slope=torch.where(free, slope, fixed), per_form=True)
            extra = {i: -beta[i] * sign for i, sign in signs.items()}
            at_input, constant = backward(graph, lines, forms, len(graph.nodes) - 1, extra, terms)
            value = concretize(region, at_input, constant)
            loss = -value.sum()
        best = torch.maximum(best, value.detach())
        variables = [*alpha.values(), *beta.values(), *(hidden.variables if hidden is not None else ())]
        if step == steps or not variables or not value.requires_grad:
            break
        ascent = ascent or Adam(variables)
        ascent.step(torch.autograd.grad(loss, variables, allow_unused=True), lr * decay**step)
        with torch.no_grad():
            for i, slope in alpha.items():
                op = graph.nodes[i].op
                assert isinstance(op, Hinge)
                slope.clamp_(op.left, op.right)
            for multiplier in beta.values():
                multiplier.clamp_min_(0.0)
            if hidden is not None:
                hidden.clamp()

    def apart(values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {i: v.detach().reshape(len(region), parts, *v.shape[1:]) for i, v in values.items()}

    coef = at_input.full(graph.input_shape).coef.detach()
    return Optimized(best.reshape(-1, parts), apart(alpha), apart(beta), coef.reshape(-1, parts, *graph.input_shape))


def alpha_crown_bound(
    graph: Graph, region: Region, C: Tensor, *, intersect: bool = True, steps: int = 20, lr: float = 0.1,
    alpha: AlphaScope = "output",
) -> Tensor:  # fmt: skip
    """Lower bounds (N, M) of C·output with optimized slopes; detached."""
    checks.one_of("alpha", alpha, ("output", "joint"))

    def bound(some: Region, rows: Tensor, layers: Layers) -> Tensor:
        joint = BoundOptions(intersect=intersect) if alpha == "joint" else None
        return optimized_bound(graph, some, rows, layers, steps=steps, lr=lr, joint=joint).lower

    most = together(graph) if alpha == "joint" else None
    return bound_by_ascent(bound, graph, region, C, intersect=intersect, steps=steps, lr=lr, most=most)


def alpha_crown(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
    steps: int = 20,
    lr: float = 0.1,
    alpha: AlphaScope = "output",
    intersect: bool = True,
) -> Certificate:
    """Certify by α-CROWN.

        max over 0 ≤ α ≤ 1 of  min {⟨a₀(α), x⟩ + c(α) : x in the region}

    Args:
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`.
        steps: ascent steps, at least 0.
        lr: their size, above 0, in units of the slopes' range.
        alpha: ``"output"`` (default) optimizes the slopes of the pass from the output, with CROWN's bounds of hidden
            layers; ``"joint"`` those of hidden layers together with them, in about ten times the time.
        intersect: intersect every bound with interval arithmetic.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for an argument out of its range.

    Source: Xu et al. (2021), section 3.1.
    """

    def bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
        return alpha_crown_bound(graph, region, C, intersect=intersect, steps=steps, lr=lr, alpha=alpha)

    return certificate(bound, "alpha_crown", model, x, y, norm=norm, eps=eps, box=box)


def _detached(layers: Layers) -> Layers:
    """The same numbers, cut off from what they were computed from."""

    def cut(lines: object) -> object:
        if isinstance(lines, tuple):
            return tuple(cut(part) for part in lines)
        parts = {k: v.detach() for k, v in vars(lines).items() if isinstance(v, Tensor)}
        return replace(lines, **parts)  # type: ignore[type-var]

    bounds = [cut(b) for b in layers.bounds]
    return Layers(bounds, {i: cut(lines) for i, lines in layers.lines.items()})  # type: ignore[arg-type]
