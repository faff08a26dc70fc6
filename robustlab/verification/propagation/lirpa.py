"""Linear bounds on any graph of operators, for changes of the input, of the weights, or of both.

The engine of this library is LiRPA's: the network is a directed acyclic graph, each operator brings its own rules, and
where a value is used several times the coefficients that come back add up. This file adds what the paper adds to CROWN:
weights may change as well, every element of the named parameters by at most ε, while the input moves in its ball,

    min {C·f(x′; θ′) : ‖x′ − x‖ ≤ ε, |θ′ − θ| ≤ ε_θ}

Source: Xu et al., "Automatic perturbation analysis for scalable certified robustness and beyond" (2020), theorems 1
and 2 and section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.node import Graph
from robustlab.graph.uncertain import perturbed
from robustlab.verification.propagation.bound_options import BoundOptions, HiddenBounds
from robustlab.verification.propagation.certificate import Interval, positive, prepare, stated
from robustlab.verification.propagation.lower_bound import lower_bound
from robustlab.verification.propagation.region import Ball, Region
from robustlab.verification.propagation.specification import margins


def lirpa_bound(
    graph: Graph, region: Region, C: Tensor, *, hidden: HiddenBounds = "backward", intersect: bool = True
) -> Tensor:
    """Lower bounds (N, M) of C·output on a graph, whose operators may be uncertain."""
    checks.one_of("hidden", hidden, ("backward", "interval"))
    return lower_bound(graph, region, C, BoundOptions(intermediate=hidden, intersect=intersect))


@full_precision()
@torch.no_grad()
def lirpa(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
    weights: Mapping[str, float] | None = None,
    hidden: HiddenBounds = "backward",
    intersect: bool = True,
) -> Certificate:
    """Certify against changes of the input and of the weights.

        min {z_y − z_j : ‖x′ − x‖ ≤ ε, |θ′ − θ| ≤ ε_θ}  >  0   for every other class j

    Args:
        model, x, y, norm, box: as in :func:`robustlab.verification.certify`.
        eps: as there; 0 is allowed with ``weights``.
        weights: name of a parameter of a dense layer or convolution → bound of the change of each of its elements, in
            the units of the parameter; None for weights that stay.
        hidden: where the bounds of hidden layers come from, ``"backward"`` (CROWN) or ``"interval"`` (CROWN-IBP).
        intersect: intersect every bound with interval arithmetic.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`; its radius is that of the input.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for weights that are unknown or not finite.

    Source: Xu et al. (2020), theorem 2 and section 3.4.
    """
    checks.one_of("hidden", hidden, ("backward", "interval"))
    still = bool(weights) and isinstance(eps, (int, float)) and eps == 0
    graph, logits, y, radius = prepare(model, x, y, norm, box, None if still else eps)
    graph = perturbed(graph, model, weights or {})
    right = logits.argmax(dim=1) == y
    proven = torch.zeros_like(right)
    rows = right.nonzero().flatten()
    if len(rows):
        C = margins(y[rows], logits.shape[1], x.dtype)
        region = Ball(x[rows], radius[rows], norm, box)
        proven[rows] = positive(lirpa_bound(graph, region, C, hidden=hidden, intersect=intersect))
    return stated(proven, right, torch.where(proven, radius, 0.0), x, norm, "lirpa")
