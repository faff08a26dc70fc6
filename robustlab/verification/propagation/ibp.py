"""Interval bound propagation: every neuron gets an interval, layer by layer.

    center′ = W·center + b,   radius′ = |W|·radius   for an affine layer, the values at the ends for a monotone one

The last layer is merged with the specification ("elided"): C(W·z + b) is bounded from the box of z, and keeps what the
margins' rows have in common.

Source: Gowal et al., "Scalable verified training for provably robust image classification" (2019), sections 3.1, 3.2.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.graph.node import Graph
from robustlab.verification.propagation.backward import interval_bound
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.layers import interval_layers
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms


def ibp_bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
    """Lower bounds (N, M) of C·output by intervals; of a ball, its hull is used."""
    return interval_bound(graph, interval_layers(graph, region), as_forms(C, len(region))).reshape(len(region), -1)


def ibp(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["linf"] = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
) -> Certificate:
    """Certify by interval bound propagation.

        z̲ = W·(l + u)/2 + b − |W|·(u − l)/2

    Args:
        model, x, y, eps, box: as in :func:`robustlab.verification.certify`.
        norm: ``"linf"`` alone: an interval is a box.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for another norm.

    Source: Gowal et al. (2019), equations 6 to 8.
    """
    if norm != "linf":
        raise ValueError(f"norm: want 'linf', got {norm!r}; intervals know boxes only")
    return certificate(ibp_bound, "ibp", model, x, y, norm=norm, eps=eps, box=box)
