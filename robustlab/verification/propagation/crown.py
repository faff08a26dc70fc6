"""CROWN: linear bounds with any activation, and a slope below each ReLU that adapts to its interval.

    α·z  ≤  max(z, 0)  ≤  u/(u − l)·(z − l),   α = 1 if u ≥ −l, else 0   (l < 0 < u)

which makes the area between the two lines smallest. Smooth activations get tangents and chords. The bounds of every
layer come from a backward pass of its own through the layers before it. CROWN-IBP takes them from interval arithmetic
instead and makes one backward pass alone, from the output.

Source: Zhang et al., "Efficient neural network robustness certification with general activation functions" (2018);
CROWN-IBP: Zhang et al., "Towards stable and efficient training of verifiably robust neural networks" (2020).
"""

from __future__ import annotations

from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.node import Graph
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.lower_bound import lower_bound
from robustlab.verification.propagation.region import Region


def crown_bound(graph: Graph, region: Region, C: Tensor, *, intersect: bool = True) -> Tensor:
    """Lower bounds (N, M) of C·output with adaptive slopes."""
    return lower_bound(graph, region, C, BoundOptions(relu="adaptive", intersect=intersect))


def crown_ibp_bound(graph: Graph, region: Region, C: Tensor, *, intersect: bool = True) -> Tensor:
    """The same with interval bounds of the hidden layers."""
    return lower_bound(graph, region, C, BoundOptions(relu="adaptive", intermediate="interval", intersect=intersect))


def crown(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
    intersect: bool = True,
) -> Certificate:
    """Certify by CROWN.

        C·f(x)  ≥  min {⟨a₀, x⟩ + c : x in the region}

    Args:
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`.
        intersect: intersect every bound with interval arithmetic; False is the paper's letter.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`.

    Source: Zhang et al. (2018), theorem 3.2 and corollary 3.3, tables 1 and 2.
    """

    def bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
        return crown_bound(graph, region, C, intersect=intersect)

    return certificate(bound, "crown", model, x, y, norm=norm, eps=eps, box=box)
