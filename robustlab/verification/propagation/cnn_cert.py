"""CNN-Cert: linear bounds that stay convolutions.

A linear bound on a convolutional layer, carried back through convolution, batch norm, activation, pooling and residual
block, is itself a convolution with another kernel for each place. So no layer is ever unrolled into a matrix: the
backward rules of this library's convolutions are transposed convolutions, and early layers carry receptive fields
alone. What is CNN-Cert's own are the rules of its tables: general activations by tangents, both slopes of a ReLU from
Fast-Lin or from CROWN, and for max-pooling a plane above and its parallel below,

    γ + Σ a_i (z_i − l_i)  ≥  max z_i  ≥  Σ a_i (z_i − η) + η,   a_i = max(u_i − γ, 0)/(u_i − l_i)

Different from the paper: γ and η are chosen so that windows without a common point are covered too, and η is the
largest lower bound instead of the smallest where Σ a_i < 1.

Source: Boopathy et al., "CNN-Cert: An efficient framework for certifying robustness of convolutional neural networks"
(2019), theorem 3.1 and its tables of rules.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.node import Graph
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.lower_bound import lower_bound
from robustlab.verification.propagation.region import Region


def cnn_cert_bound(
    graph: Graph,
    region: Region,
    C: Tensor,
    *,
    relu: Literal["adaptive", "parallel"] = "adaptive",
    intersect: bool = True,
) -> Tensor:
    """Lower bounds (N, M) of C·output by CNN-Cert's rules."""
    checks.one_of("relu", relu, ("adaptive", "parallel"))
    return lower_bound(graph, region, C, BoundOptions(relu=relu, pool="parallel", intersect=intersect))


def cnn_cert(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
    relu: Literal["adaptive", "parallel"] = "adaptive",
    intersect: bool = True,
) -> Certificate:
    """Certify a convolutional network by CNN-Cert.

        A_L * x + B_L  ≤  f(x)  ≤  A_U * x + B_U,   with convolutions * of different kernels at different places

    Args:
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`.
        relu: slopes below the ReLU, ``"adaptive"`` (CNN-Cert-Ada) or ``"parallel"`` (CNN-Cert-Relu).
        intersect: intersect every bound with interval arithmetic; False is the paper's letter.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`.

    Source: Boopathy et al. (2019), theorem 3.1.
    """
    checks.one_of("relu", relu, ("adaptive", "parallel"))

    def bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
        return cnn_cert_bound(graph, region, C, relu=relu, intersect=intersect)

    return certificate(bound, "cnn_cert", model, x, y, norm=norm, eps=eps, box=box)
