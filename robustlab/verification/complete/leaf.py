"""The end of a search that splits ReLUs: a domain on which none is open, where the network is linear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from robustlab.graph.forms import Forms, units
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import time_left
from robustlab.verification.complete.query import unit
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.layers import Layers
from robustlab.verification.propagation.region import Box


def leaf_minimum(
    graph: Graph, layers: Layers, box: Box, signs: Mapping[int, Tensor], C: Tensor, d: Tensor
) -> tuple[float | None, Tensor | None]:
    """min over x of max over rows of C·f(x) + d, where every assumed sign holds: one linear program in x.

    Args:
        graph: the network.
        layers: bounds and lines on this one domain, on which the lines of all ReLUs are exact.
        box: of one domain.
        signs: node before a ReLU → (1, *shape) of −1, 0, 1: what is assumed.
        C, d: (k, m) and (k,).

    Returns:
        The least margin and where it is taken; +∞ and None if the signs contradict each other; None and None if the
        solver gave up or an operator is not linear on the domain.
    """
    from scipy.optimize import linprog

    last = len(graph.nodes) - 1
    if {node.inputs[0] for node in graph.nonlinear} - set(graph.relus):
        return None, None
    zeros = torch.zeros(len(d), dtype=torch.int64, device=C.device)
    rows, right = [], []
    with torch.no_grad():
        at_input, constant = backward(graph, layers.lines, Forms(C, zeros), last)
        coef = at_input.full(graph.input_shape).coef.flatten(1)
        rows.append(torch.cat([coef, -coef.new_ones(len(d), 1)], dim=1))  # margin − t ≤ 0
        right.append(-(constant + d))
        for node, sign in signs.items():
            place = sign.flatten().nonzero().flatten()
            if len(place):
                chosen = sign.flatten()[place].to(C.dtype)
                forms = units(torch.zeros_like(place), place, graph.nodes[node].shape, chosen)
                at_input, constant = backward(graph, layers.lines, forms, node)
                coef = at_input.full(graph.input_shape).coef.flatten(1)
                scales = coef.new_tensor([unit(size) for size in coef.abs().amax(dim=1).tolist()])
                rows.append(torch.cat([-coef, coef.new_zeros(len(place), 1)], dim=1) / scales[:, None])  # s·z ≥ 0
                right.append(constant / scales)
    n = coef.shape[1]
    ends = np.stack([box.lower.flatten().cpu().numpy(), box.upper.flatten().cpu().numpy()], axis=1)
    answer = linprog(
        np.eye(1, n + 1, n)[0],
        A_ub=torch.cat(rows).cpu().numpy(),
        b_ub=torch.cat(right).cpu().numpy(),
        bounds=[*map(tuple, ends), (None, None)],
        options={"time_limit": time_left()},
    )
    if answer.status == 2:
        return float("inf"), None
    if answer.status != 0:
        return None, None
    return float(answer.fun), torch.from_numpy(answer.x[:n]).to(C)
