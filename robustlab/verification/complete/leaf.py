"""The end of a search that splits ReLUs: a domain on which none is open, where the network is linear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from robustlab.graph.forms import Forms, units
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import time_left
from robustlab.verification.complete.linear_program import proved_minimum
from robustlab.verification.complete.query import unit
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.layers import Layers
from robustlab.verification.propagation.region import Box


def leaf_minimum(
    graph: Graph, layers: Layers, box: Box, signs: Mapping[int, Tensor], C: Tensor, d: Tensor
) -> tuple[float | None, Tensor | None]:
    """min over x of max over rows of C·f(x) + d, where every assumed sign holds: one linear program in x.

    The program is in units of the box's sides, so that the solver's tolerances do not depend on those of the inputs.

    Args:
        graph: the network.
        layers: bounds and lines on this one domain, on which the lines of all ReLUs are exact.
        box: of one domain.
        signs: node before a ReLU → (1, *shape) of −1, 0, 1: what is assumed.
        C, d: (k, m) and (k,).

    Returns:
        The least margin, proved, and where it is taken; +∞ and None if the signs are proved to contradict each other;
        None and None if the solver gave up or an operator is not linear on the domain.
    """
    last = len(graph.nodes) - 1
    if {node.inputs[0] for node in graph.nonlinear} - set(graph.relus):
        return None, None
    zeros = torch.zeros(len(d), dtype=torch.int64, device=C.device)
    center, radius = box.hull.center.flatten(), box.hull.radius.flatten()
    rows, right = [], []
    with torch.no_grad():
        at_input, constant = backward(graph, layers.lines, Forms(C, zeros), last)
        coef = at_input.full(graph.input_shape).coef.flatten(1)
        constant, coef = constant + d + coef @ center, coef * radius
        rows.append(torch.cat([coef, -coef.new_ones(len(d), 1)], dim=1))  # margin − t ≤ 0
        right.append(-constant)
        most = 1.0 + 2.0 * float((constant.abs() + coef.abs().sum(dim=1)).max())  # larger than any margin
        for node, sign in signs.items():
            place = sign.flatten().nonzero().flatten()
            if len(place):
                chosen = sign.flatten()[place].to(C.dtype)
                forms = units(torch.zeros_like(place), place, graph.nodes[node].shape, chosen)
                at_input, constant = backward(graph, layers.lines, forms, node)
                coef = at_input.full(graph.input_shape).coef.flatten(1)
                constant, coef = constant + coef @ center, coef * radius
                scales = coef.new_tensor([unit(size) for size in coef.abs().amax(dim=1).tolist()])
                rows.append(torch.cat([-coef, coef.new_zeros(len(place), 1)], dim=1) / scales[:, None])  # s·z ≥ 0
                right.append(constant / scales)
    one = np.ones(1 + coef.shape[1])
    one[-1] = most
    cost = np.zeros_like(one)
    cost[-1] = 1.0
    A, b = torch.cat(rows).cpu().numpy(), torch.cat(right).cpu().numpy()
    value, point = proved_minimum(cost, A, b, -one, one, time_left())
    return value, None if point is None else center + radius * torch.from_numpy(point[:-1]).to(C)
