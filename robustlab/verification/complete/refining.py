"""What backward passes for hidden layers cost on boxes, and whether they pay.

Linear bounds that go forward take as long as a few runs of the network; backward passes, as two for each neuron that is
not stable. So they are taken where they are cheap, or where they save so many splits that they are worth their price.
"""

from __future__ import annotations

from math import inf, log, log2, prod

import torch
from torch import Tensor

from robustlab.graph.node import Graph
from robustlab.verification.complete.boxes import bound_boxes, least
from robustlab.verification.complete.branching import Domains, halves, select
from robustlab.verification.complete.common_boxes import distinct
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.forward import ForwardLines
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.region import Box

PROBES = 8  # domains on which the price is found


def costs(graph: Graph) -> list[float]:
    """Multiplications of each node for one sample, and an addition for each of its numbers."""
    found = [0.0]
    for node in graph.nodes[1:]:
        weights = [value for value in vars(node.op).values() if isinstance(value, Tensor) and value.dim() > 1]
        spots = prod(node.shape[1:])
        found.append(prod(node.shape) + sum(spots * float(weight.numel()) for weight in weights))
    return found


def backward_cost(graph: Graph, layers: Layers) -> Tensor:
    """The cost of backward passes for the hidden neurons that are not stable, (D,), in runs of the network.

    Two forms a neuron, each through all that lies below it.
    """
    sizes, cost = costs(graph), torch.zeros_like(layers.bounds[0].lower.flatten(1)[:, 0])
    for i in graph.pre_activations:
        bounds, below = layers.bounds[i], sum(sizes[: i + 1]) / sum(sizes)
        cost = cost + 2 * below * ((bounds.lower < 0) & (bounds.upper > 0)).flatten(1).sum(dim=1)
    return cost


def refining_costs(graph: Graph, domains: Domains) -> float:
    """The price of backward passes for hidden layers too, on the first few domains, in times of linear bounds alone."""
    some = select(domains, torch.arange(min(PROBES, len(domains["case"]))))
    one = distinct(some["low"], some["high"])[1]
    carried = ForwardLines(graph, one.hull)
    layers = layer_bounds(graph, one, BoundOptions(intermediate="interval"), carried=carried)
    return 1 + float(backward_cost(graph, layers).mean()) / (2 * (1 + len(carried.varying)))


def refining_pays(graph: Graph, domains: Domains, C: Tensor, d: Tensor, price: float) -> bool:
    """Whether to bound hidden layers by backward passes too, at this price, judged on the first domain.

    They must bring the bound up by at least half as many splits as would cost as much, k splits making 2^k domains;
    half, since a split helps less the more have gone before. What a split leaves is a share of what is missing: through
    deep networks linear bounds grow so fast with the box that its first halving gains more than backward passes do,
    and many of them do not get as far.
    """

    def missing(some: Domains, refine: bool) -> float:
        case, box = some["case"], Box(some["low"], some["high"])
        found = bound_boxes(graph, box, C[case], d[case], refine=refine)
        value = least(found.coef, found.constant, box.lower.flatten(1), box.upper.flatten(1))
        return -float(value.amax(dim=1).mean())

    first = select(domains, torch.arange(1))
    known = "refined" in first and bool(first["refined"])
    whole, split = missing(first, False), missing(halves(graph, first), False)
    refined = -float(first["bound"]) if known else missing(first, True)
    return splits_saved(whole, split, refined) >= 0.5 * log2(price)


def splits_saved(whole: float, split: float, refined: float) -> float:
    """How many splits leave as little missing of a bound as ``refined``, where one leaves ``split`` of ``whole``."""
    if refined >= whole or whole <= 0:
        return 0.0
    if refined <= 0 or split >= whole:
        return inf
    return log(refined / whole) / log(max(split / whole, 1e-3))
