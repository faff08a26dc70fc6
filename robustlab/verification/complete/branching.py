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

import torch
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Hinge
from robustlab.graph.node import Graph
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.layers import Layers

Domains = dict[str, Tensor]


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


def costly_relu(
    graph: Graph, domains: Domains, layers: Layers, slopes: dict[int, Tensor], C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The open ReLU whose relaxation costs the bound most.

    A negative coefficient meets the line above, which lies up to −l·u / (u − l) too high; a positive one the line
    below, whose distance at the ends is min(α·(−l), (1 − α)·u).

    Args:
        graph: the network.
        domains: D of them.
        layers: bounds and lines on them.
        slopes: ReLU → its lower slopes in the row that decides, (D, *shape).
        C: (D, m), that row.

    Returns:
        The node before the ReLU and the place in it, (D,) each, and the cost, −1 where no ReLU is open.
    """
    rows = torch.arange(len(C), device=C.device)
    lines, biases = dict(layers.lines), {}
    for node in graph.nonlinear:
        if isinstance(node.op, Hinge):
            gap = torch.zeros_like(slopes[node.index]).requires_grad_()
            chord = lines[node.index].upper_bias.detach().clone().requires_grad_()
            biases[node.index] = (node.inputs[0], chord, gap)
            lines[node.index] = replace(
                lines[node.index], lower_slope=slopes[node.index], upper_bias=chord, lower_bias=gap
            )
    with torch.enable_grad():
        _, constant = backward(graph, lines, Forms(C, rows), len(graph.nodes) - 1)
        wanted = [part for _, chord, gap in biases.values() for part in (chord, gap)]
        grads = torch.autograd.grad(constant.sum(), wanted, allow_unused=True)
    costs, places, nodes = [], [], []
    for (index, (before, chord, _)), above, below in zip(biases.items(), grads[::2], grads[1::2], strict=True):
        if graph.relus.get(before) != index:
            continue
        b, slope, zero = layers.bounds[before], slopes[index], torch.zeros_like(chord)
        negative, positive = (zero if part is None else part.abs() for part in (above, below))
        cost = negative * chord.detach() + positive * torch.minimum(slope * -b.lower, (1 - slope) * b.upper)
        cost = cost + 1e-9 * torch.minimum(-b.lower, b.upper)  # to choose among those that cost nothing
        unstable = (b.lower < 0) & (b.upper > 0) & (domains[f"sign:{before}"] == 0)
        best, place = torch.where(unstable, cost, -1.0).flatten(1).max(dim=1)
        costs.append(best)
        places.append(place)
        nodes.append(before)
    cost, which = torch.stack(costs).max(dim=0)
    return torch.tensor(nodes, device=C.device)[which], torch.stack(places)[which, rows], cost


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
