"""Domains of branch and bound: which side or which ReLU to split, and the halves.

A batch of domains is a dict of tensors with one row a domain:

    low, high              (D, *shape), the boxes
    case, bound, row       which case it belongs to, its best bound, and the row of the case that has it
    sign:i                 (D, *shape of node i) of −1, 0, 1: what is assumed of the inputs of ReLUs
    slope:i, multiplier:i  where the ascent of α-CROWN starts, from the parent
    side | node, place     what to split next

Source: Bunel et al., "A unified view of piecewise linear neural network verification" (2018), section 4, for splits
that follow the bound; the estimates used here are first-order effects on the present bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Backward
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.layers import Layers

Domains = dict[str, Tensor]
ReluRule = Literal["sensitivity", "babsr"]


def whole(graph: Graph, low: Tensor, high: Tensor, *, signs: bool) -> Domains:
    """The domains to begin with, the boxes of the cases (n, d); ``signs``: with the sign of no ReLU assumed yet."""
    n = len(low)
    domains = {"low": low.reshape(n, *graph.input_shape), "high": high.reshape(n, *graph.input_shape)}
    domains["case"] = torch.arange(n, device=low.device)
    for i in graph.relus if signs else ():
        domains[f"sign:{i}"] = low.new_zeros(n, *graph.nodes[i].shape, dtype=torch.int8)
    return domains


def empty(domains: Domains, graph: Graph, layers: Layers) -> Tensor:
    """(D,) bool: domains in which no point has the signs that are assumed."""
    crossed = torch.zeros_like(domains["case"], dtype=torch.bool)
    for i in graph.pre_activations:
        crossed |= (layers.bounds[i].lower > layers.bounds[i].upper).flatten(1).any(dim=1)
    return crossed


def closed(domains: Domains, graph: Graph, layers: Layers, bound: Tensor, wanted: Tensor | float) -> Tensor:
    """(D,) bool: domains that are empty or whose margin is above what is wanted.

    Nothing follows from bounds that are not finite, those of hidden layers included: such domains stay open.
    """
    return (empty(domains, graph, layers) | (bound > wanted)) & bound.isfinite() & finite(layers)


def finite(layers: Layers) -> Tensor:
    """(D,) bool: domains on which all bounds are finite."""
    numbers = [end.flatten(1).isfinite().all(dim=1) for b in layers.bounds for end in (b.lower, b.upper)]
    return torch.stack(numbers).all(dim=0)


def relu_to_split(
    graph: Graph, domains: Domains, layers: Layers, slopes: dict[int, Tensor], C: Tensor, rule: ReluRule
) -> tuple[Tensor, Tensor, Tensor]:
    """The open ReLU that a rule ranks first.

    Args:
        graph: the network.
        domains: D of them.
        layers: bounds and lines on them.
        slopes: ReLU → its lower slopes in the row that decides, (D, *shape).
        C: (D, m), that row.
        rule: ``"sensitivity"`` or ``"babsr"``.

    Returns:
        The node before the ReLU and the place in it, (D,) each, and its score, −1 where no ReLU is open.
    """
    rows = torch.arange(len(C), device=C.device)
    scores, places, nodes = [], [], []
    constants = affine_constants(graph, C) if rule == "babsr" else {}
    for before, a in coefficients(graph, layers, slopes, C).items():
        b = layers.bounds[before]
        if rule == "babsr":
            score = babsr(a, b, constants[before])
        else:
            score = sensitivity(a, b, slopes[graph.relus[before]])
        score = score + 1e-9 * torch.minimum(-b.lower, b.upper)  # a choice among those that cost nothing
        unstable = (b.lower < 0) & (b.upper > 0) & (domains[f"sign:{before}"] == 0)
        best, place = torch.where(unstable, score, -1.0).flatten(1).max(dim=1)
        scores.append(best)
        places.append(place)
        nodes.append(before)
    score, which = torch.stack(scores).max(dim=0)
    return torch.tensor(nodes, device=C.device)[which], torch.stack(places)[which, rows], score


def sensitivity(a: Tensor, b: Bounds, slope: Tensor) -> Tensor:
    """What the relaxation of a ReLU costs the bound, to first order.

    A negative coefficient a meets the line above, which lies up to −l·u / (u − l) too high; a positive one the line
    below, whose distance at the ends is min(α·(−l), (1 − α)·u).
    """
    below = torch.minimum(slope * -b.lower, (1 - slope) * b.upper)
    return -a.clamp_max(0.0) * _lift(b) + a.clamp_min(0.0) * below


def babsr(a: Tensor, b: Bounds, constant: Tensor) -> Tensor:
    """By how much the bound is estimated to move where the ReLU is made linear, as far as its own constant tells.

    With the coefficient a on the ReLU, the slope s = u / (u − l) of the line above and the constant c of the affine
    layer before, the better side moves the bound by

        abs( max((s − 1)·a·c, s·a·c) + min(a, 0)·(−l·u / (u − l)) )

    Source: Bunel, Lu, Turkaslan, Torr, Kohli and Kumar, "Branch and bound for piecewise linear neural network
    verification" (2020), section 4, "BaBSR", with the improvement of a layer estimated from its constant alone.
    """
    s, moved = b.upper / (b.upper - b.lower).clamp_min(torch.finfo(a.dtype).tiny), a * constant
    return (torch.maximum((s - 1) * moved, s * moved) + a.clamp_max(0.0) * _lift(b)).abs()


def _lift(b: Bounds) -> Tensor:
    """How high the line above a ReLU lies at the bend, −l·u / (u − l)."""
    return -b.lower * b.upper / (b.upper - b.lower).clamp_min(torch.finfo(b.lower.dtype).tiny)


def coefficients(graph: Graph, layers: Layers, slopes: dict[int, Tensor], C: Tensor) -> dict[int, Tensor]:
    """The node before a ReLU → the coefficient that the bound of C·output has on the ReLU, (D, *shape)."""
    found = {}

    def through(node: Node, forms: Forms) -> Backward:
        assert node.op is not None
        lines = layers.lines[node.index]
        if isinstance(node.op, Hinge):
            forms, lines = forms.full(node.shape), replace(lines, lower_slope=slopes[node.index])
            if graph.relus.get(node.inputs[0]) == node.index:
                found[node.inputs[0]] = forms.coef
        return node.op.backward(forms, [graph.nodes[i].shape for i in node.inputs], lines)

    with torch.no_grad():
        forms = Forms(C, torch.arange(len(C), device=C.device))
        backward(graph, layers.lines, forms, len(graph.nodes) - 1, nonlinear=through)
    none = C.new_zeros(())  # the output of such a ReLU is not used
    return {i: found.get(i, none.expand(len(C), *graph.nodes[i].shape)) for i in graph.relus}


def affine_constants(graph: Graph, like: Tensor) -> dict[int, Tensor]:
    """The node before a ReLU → its value where all that the affine layers before it take in is 0, (1, *shape)."""
    values: list[Tensor] = []
    for node in graph.nodes:
        if node.op is None or not node.op.affine:
            values.append(like.new_zeros(1, *node.shape))
        else:
            values.append(node.op.forward(*(values[i] for i in node.inputs)))
    return {i: values[i] for i in graph.relus}


def halves(graph: Graph, domains: Domains) -> Domains:
    """Both halves of every domain, along ``side`` or at the ReLU (``node``, ``place``)."""
    parts = []
    for upper in (False, True):
        half = dict(domains)
        if "side" in half:
            rows, side = torch.arange(len(half["side"]), device=half["side"].device), half["side"]
            low, high = half["low"].flatten(1).clone(), half["high"].flatten(1).clone()
            (low if upper else high)[rows, side] = ((low + high) / 2)[rows, side]
            half["low"], half["high"] = low.reshape(half["low"].shape), high.reshape(half["high"].shape)
        else:
            for i in graph.relus:
                sign, rows = half[f"sign:{i}"].clone(), (half["node"] == i).nonzero().flatten()
                sign.flatten(1)[rows, half["place"][rows]] = 1 if upper else -1
                half[f"sign:{i}"] = sign
        parts.append(half)
    return joined(parts)


def select(domains: Domains, rows: Tensor) -> Domains:
    """Some of the domains."""
    return {key: value[rows] for key, value in domains.items()}


def joined(parts: list[Domains]) -> Domains:
    """All domains of several batches."""
    full = [part for part in parts if len(part["case"])]
    return {key: torch.cat([part[key] for part in full]) for key in full[0]} if full else parts[0]


def numbered(domains: Domains, name: str) -> dict[int, Tensor]:
    """The entries ``name:i`` by node."""
    return {int(key.split(":")[1]): value for key, value in domains.items() if key.startswith(name + ":")}


def known_of(layers: Layers, rows: Tensor) -> Layers:
    """What is known of some domains."""
    bounds = [replace(b, lower=b.lower[rows], upper=b.upper[rows]) for b in layers.bounds]

    def part(lines: object) -> object:
        tensors = {key: value[rows] for key, value in vars(lines).items() if isinstance(value, Tensor)}
        return replace(lines, **tensors)  # type: ignore[type-var]

    return Layers(bounds, {i: part(lines) for i, lines in layers.lines.items()})
