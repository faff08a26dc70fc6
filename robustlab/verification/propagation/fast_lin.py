"""Fast-Lin: linear bounds whose two lines at each ReLU are parallel.

On l < 0 < u both lines have the slope of the chord, u/(u − l):

    u/(u − l)·z  ≤  max(z, 0)  ≤  u/(u − l)·(z − l)

so one matrix serves for the lower and the upper bound of a layer, and the bounds of all layers follow one after the
other. In this library that is a options of the one backward engine.

Source: Weng et al., "Towards fast computation of certified robustness for ReLU networks" (2018), section 3.3 and
algorithm 1.
"""

from __future__ import annotations

from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.hinge import Hinge
from robustlab.graph.node import Graph
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.lower_bound import lower_bound
from robustlab.verification.propagation.region import Region


def fast_lin_bound(graph: Graph, region: Region, C: Tensor, *, intersect: bool = True) -> Tensor:
    """Lower bounds (N, M) of C·output with parallel lines."""
    for node in graph.nonlinear:
        if not isinstance(node.op, Hinge):
            raise ValueError(f"model: Fast-Lin relaxes ReLUs alone, got {node.op} at node {node.name!r}; use 'crown'")
    return lower_bound(graph, region, C, BoundOptions(relu="parallel", intersect=intersect))


def fast_lin(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
    intersect: bool = True,
) -> Certificate:
    """Certify by Fast-Lin.

        u/(u − l)·z  ≤  max(z, 0)  ≤  u/(u − l)·(z − l)   for l < 0 < u

    Args:
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`; the model's only nonlinear operators
            are ReLUs, leaky ReLUs or absolute values.
        intersect: intersect every bound with interval arithmetic; False is the paper's letter.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for another nonlinear operator.

    Source: Weng et al. (2018), theorem 3.5 and algorithm 1.
    """

    def bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
        return fast_lin_bound(graph, region, C, intersect=intersect)

    return certificate(bound, "fast_lin", model, x, y, norm=norm, eps=eps, box=box)
