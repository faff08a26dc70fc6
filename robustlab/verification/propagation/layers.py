"""Bounds of all nodes, and the relaxations that follow from them: one pass from the input to the output.

Interval arithmetic bounds each node from the nodes before it. Where the options says so, the nodes whose values enter a
nonlinear operator are bounded again, by backward passes from their neurons through the relaxations found so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from robustlab.graph.affine import Pad, Reshape, ScaleShift
from robustlab.graph.conv import Conv
from robustlab.graph.forms import Forms, units
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Backward
from robustlab.graph.time_limit import tick
from robustlab.verification.propagation.backward import backward, concretize, slack, taken_over
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.forward import ForwardLines
from robustlab.verification.propagation.parts import largest_form, parts
from robustlab.verification.propagation.region import Region

BUDGET = 2**20
"""How many coefficients a backward pass may carry at once at a node: its forms are cut into parts of that size."""
IN_CACHE = 2**17
"""The same for the hidden layers of networks without convolutions, whose passes are quick and bound by memory."""


@dataclass(frozen=True, eq=False)
class Layers:
    """What is known of a network on a region.

    Attributes:
        bounds: of every node, (N, *shape of the node).
        lines: nonlinear node → its relaxation.
        terms: what ``rounding_terms`` gives for these bounds, where it is known.
    """

    bounds: list[Bounds]
    lines: dict[int, Any]
    terms: Mapping[int, Tensor] | None = None


class Passes(Protocol):
    """Backward passes from hidden neurons that go their own way at nonlinear nodes."""

    def places(self, index: int, wanted: Tensor) -> Sequence[Tensor]:
        """Sample and place (R,) each of the neurons of a node that are bounded; ``wanted`` (N, n) as ever."""

    def through(
        self, here: tuple[int, int], lines: Mapping[int, Any], bounds: Sequence[Bounds]
    ) -> Callable[[Node, Forms], Backward]:
        """What a pass does at nonlinear nodes, as ``backward`` takes it; ``here`` is its node and which part it is."""


def interval_layers(graph: Graph, region: Region, *, rounding: bool = True) -> list[Bounds]:
    """Interval arithmetic alone: bounds of every node on a region.

    With ``rounding=False`` they are not moved outward in float32, which is no proof, and half the work: for training.
    """
    bounds = [region.hull]
    for node in graph.nodes[1:]:
        tick()
        inputs = [bounds[i] for i in node.inputs]
        assert node.op is not None
        bounds.append(_step(node, inputs)[0] if rounding else node.op.interval(*inputs))
    return bounds


def _step(node: Node, inputs: list[Bounds]) -> tuple[Bounds, Tensor | None]:
    """The interval of a node, in float32 moved outward by ``WIDEN`` units of its terms; and those terms."""
    assert node.op is not None
    here = node.op.interval(*inputs)
    terms = None if here.lower.dtype == torch.float64 else node.op.terms(*(b.largest for b in inputs))
    if terms is None:
        return here, None
    margin = slack(terms)
    return Bounds(here.lower - margin, here.upper + margin), terms


def layer_bounds(
    graph: Graph,
    region: Region,
    options: BoundOptions,
    *,
    splits: Mapping[int, Tensor] | None = None,
    known: Mapping[int, Bounds] | None = None,
    carried: ForwardLines | None = None,
    passes: Passes | None = None,
) -> Layers:
    """Bounds and relaxations of all nodes on a region.

    Args:
        graph: the network.
        region: N sets of inputs.
        options: the method's choices.
        splits: for some nodes, what is assumed of the signs of their values: (N, *shape) of −1 (not positive), 1 (not
            negative) or 0 (nothing). Where that contradicts the bounds, lower > upper: no such input exists.
        known: bounds of some nodes that are known already, (N, *shape): they are intersected with interval arithmetic
            and not computed again.
        carried: linear bounds that go forward along with the intervals, on the same boxes; None for intervals alone.
        passes: how backward passes from hidden neurons go through nonlinear nodes; None for the lines of the samples.

    Returns:
        The bounds and lines of all nodes.
    """
    bounds, lines = [region.hull], dict[int, Any]()
    terms = dict[int, Tensor]()
    targets = set(graph.pre_activations) if options.intermediate == "backward" else set()
    for node in graph.nodes[1:]:
        assert node.op is not None
        tick()
        inputs = [bounds[i] for i in node.inputs]
        here, summed = _step(node, inputs)
        if summed is not None:
            terms = taken_over(graph, node, {**terms, node.index: summed})
        if not node.op.affine:
            lines[node.index] = node.op.relax(options, *inputs)
        if carried is not None:
            here = _meet(here, carried.step(node, lines.get(node.index), here))
        if known is not None and node.index in known:
            here = _meet(here, known[node.index])
        elif node.index in targets and not (region.is_box and _first(graph, node)):
            here = _bounded_again(graph, region, options, node, here, bounds, lines, terms, passes)
        if splits is not None and node.index in splits:
            sign = splits[node.index]
            here = Bounds(
                torch.where(sign > 0, here.lower.clamp_min(0.0), here.lower),
                torch.where(sign < 0, here.upper.clamp_max(0.0), here.upper),
            )
        bounds.append(here)
    return Layers(bounds, lines, terms)


def _bounded_again(
    graph: Graph,
    region: Region,
    options: BoundOptions,
    node: Node,
    here: Bounds,
    bounds: Sequence[Bounds],
    lines: Mapping[int, Any],
    terms: Mapping[int, Tensor],
    passes: Passes | None,
) -> Bounds:
    """``here`` with the neurons that matter bounded by backward passes, two forms a neuron: z and −z."""
    wanted = torch.ones_like(here.lower, dtype=torch.bool)
    if options.intersect:
        wanted = _unstable(graph, node, here)
    wanted = wanted.flatten(1)
    sample, place = wanted.nonzero(as_tuple=True) if passes is None else passes.places(node.index, wanted)
    budget = BUDGET if any(isinstance(node.op, Conv) for node in graph.nodes) else IN_CACHE
    form = largest_form(graph, node)

    def bounded(here: Bounds, sample: Tensor, place: Tensor, signs: Sequence[Tensor]) -> Bounds:
        """``here`` with some neurons bounded by a pass for each sign (R,): from below for 1, from above for −1."""
        found, n = [], len(signs)
        for part, (some, only) in enumerate(parts(sample, len(here.lower), max(1, budget // (n * form)))):
            through = None if passes is None else passes.through((node.index, part), lines, bounds)
            sign = torch.cat([sign[some] for sign in signs])
            forms = units(sample[some].repeat(n), place[some].repeat(n), node.shape, sign, only)
            at_input, constant = backward(graph, lines, forms, node.index, terms=terms, nonlinear=through)
            found.append(concretize(region, at_input, constant, exact=False).reshape(n, -1))
        if not found:
            return here
        lower, upper = here.lower.flatten(1), here.upper.flatten(1)
        for sign, value in zip(signs, torch.cat(found, dim=1), strict=True):
            old_lower, old_upper = lower[sample, place], upper[sample, place]
            low, high = value, -value
            if options.intersect:
                low, high = torch.maximum(old_lower, value), torch.minimum(old_upper, -value)
            lower = lower.index_put((sample, place), torch.where(sign > 0, low, old_lower))
            upper = upper.index_put((sample, place), torch.where(sign > 0, old_upper, high))
        return Bounds(lower.reshape(here.lower.shape), upper.reshape(here.upper.shape))

    below = here.lower.new_ones(len(sample))
    if options.sides == "both" or passes is not None:
        return bounded(here, sample, place, (below, -below))
    nearer = torch.where(here.center.flatten(1)[sample, place] > 0, below, -below)  # the end nearer to 0 decides
    here = bounded(here, sample, place, (nearer,))
    left = _unstable(graph, node, here).flatten(1)[sample, place]
    return bounded(here, sample[left], place[left], (-nearer[left],))


def _meet(one: Bounds, other: Bounds) -> Bounds:
    return Bounds(torch.maximum(one.lower, other.lower), torch.minimum(one.upper, other.upper))


def _first(graph: Graph, node: Node) -> bool:
    """Whether this is the first layer, where interval arithmetic is exact on a box: one layer, before and after it
    scales and padding at most."""
    passed = False
    while node.op is not None:
        if len(node.inputs) > 1:  # both may hold the same input
            return False
        if not isinstance(node.op, (ScaleShift, Reshape, Pad)):
            if passed:
                return False
            passed = True
        node = graph.nodes[node.inputs[0]]
    return True


def _unstable(graph: Graph, node: Node, here: Bounds) -> Tensor:
    """Which neurons some operator after this node cannot treat exactly.

    Where an activation's own value enters another nonlinear operator (max-pooling after a ReLU), its interval matters
    there, and all neurons are wanted.
    """
    wanted = torch.zeros_like(here.lower, dtype=torch.bool)
    again = {i for user in graph.nonlinear for i in user.inputs}
    for user in graph.nonlinear:
        if node.index in user.inputs:
            assert user.op is not None
            alone = len(user.inputs) == 1 and user.index not in again
            wanted |= user.op.unstable(here)[0] if alone else here.lower < here.upper
    return wanted
