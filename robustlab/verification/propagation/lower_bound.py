"""Lower bounds of C·output under a options: layer bounds first, then one backward pass from the output."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.node import Graph
from robustlab.verification.propagation.backward import backward, concretize, interval_bound, rounding_terms
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import BUDGET, Layers, layer_bounds
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms


def lower_bound(
    graph: Graph, region: Region, C: Tensor, options: BoundOptions, *, layers: Layers | None = None
) -> Tensor:
    """Lower bounds of C·z for the output z of the graph on a region.

    Args:
        graph: the network, with an output of shape (K,).
        region: N sets of inputs.
        C: (N, M, K), or (M, K) for all.
        options: the method's choices.
        layers: what ``layer_bounds`` gave, if it is known.

    Returns:
        (N, M); with ``options.intersect`` never below interval arithmetic from the same layer bounds.
    """
    layers = layers if layers is not None else layer_bounds(graph, region, options)
    whole, each, most = as_forms(C, len(region)), C.shape[-2], max(1, BUDGET // graph.widest)
    terms = rounding_terms(graph, layers.bounds) if layers.terms is None else layers.terms
    found, first = [], 0
    together = 0 < each <= most
    most = most - most % each if together else most
    for coef, sample in zip(whole.coef.split(most), whole.sample.split(most), strict=True):
        group = (first // each, each) if together else None
        forms, first = Forms(coef, sample, group=group), first + len(sample)
        at_input, constant = backward(graph, layers.lines, forms, len(graph.nodes) - 1, terms=terms)
        value = concretize(region, at_input, constant)
        if options.intersect:
            value = torch.maximum(value, interval_bound(graph, layers.bounds, forms))
        found.append(value)
    return torch.cat(found).reshape(len(region), -1) if found else C.new_zeros(len(region), C.shape[-2])
