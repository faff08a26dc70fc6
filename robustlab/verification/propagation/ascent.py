"""Bounds that are maximized, over slopes or over multipliers, so many rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlab import checks
from robustlab.graph.node import Graph
from robustlab.verification.propagation.backward import interval_bound
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import BUDGET, Layers, layer_bounds
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms


def bound_by_ascent(
    bound: Callable[[Region, Tensor, Layers], Tensor], graph: Graph, region: Region, C: Tensor, *, intersect: bool,
    steps: int, lr: float, most: int | None = None,
) -> Tensor:  # fmt: skip
    """Lower bounds (N, M) of C·output, as many samples at a time as memory bears; detached.

    Args:
        bound: (some of the region, their rows of C, bounds of the layers there) → lower bounds, by ``steps`` of size
            ``lr``.
        graph, region, C: as in ``certify``'s methods; C (N, M, K), or (M, K) for all.
        intersect: intersect every bound with interval arithmetic.
        steps, lr: checked here; at least 0, and above 0.
        most: samples at a time, if what memory bears is less than their rows of C would say.
    """
    checks.at_least("steps", steps, 0, integer=True)
    checks.positive("lr", lr)
    options, n = BoundOptions(relu="adaptive", intersect=intersect), len(region)
    found, C = [], C.detach().expand(n, *C.shape[-2:])
    size = max(1, BUDGET // (C.shape[-2] * graph.widest))
    for rows in torch.arange(n, device=C.device).split(size if most is None else min(size, most)):
        some, rows_C = region.select(rows), C[rows]
        with torch.no_grad():
            layers = layer_bounds(graph, some, options)
        lower = bound(some, rows_C, layers)
        if intersect:
            with torch.no_grad():
                other = interval_bound(graph, layers.bounds, as_forms(rows_C, len(rows)))
            lower = torch.maximum(lower, other.reshape(lower.shape))
        found.append(lower)
    return torch.cat(found) if found else C.new_zeros(0, C.shape[-2])
