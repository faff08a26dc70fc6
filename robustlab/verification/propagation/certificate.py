"""From a bound to a certificate: what all incomplete verifiers share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.parts import beside
from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.node import Graph
from robustlab.graph.tracing import trace
from robustlab.verification.propagation.region import Ball, Region
from robustlab.verification.propagation.specification import margins

Bound = Callable[[Graph, Region, Tensor], Tensor]
"""(graph, region, C (N, M, K)) → lower bounds of C·output, (N, M)."""
Interval = tuple[float, float]


def prepare(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None,
    norm: ProperNorm,
    box: Interval | None,
    eps: float | Tensor | None,
) -> tuple[Graph, Tensor, Tensor, Tensor]:
    """Check the arguments that all verifiers share and read the model.

    Returns:
        The graph, its logits at x (N, K), the labels (N,), and the radii (N,), 0 where ``eps`` is None; for an empty
        batch, empty tensors.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.images(x, box if box is not None else (-torch.inf, torch.inf), strict=True, takes="box={}")
    radius = x.new_zeros(len(x)) if eps is None else checks.per_sample("eps", eps, x)
    if eps is not None and box is not None:
        checks.radius(eps, x, norm, box)  # tells of a ball wider than the box
    if y is not None:
        y = checks.labels("y", y, x)
    checks.at_home(model, x)
    graph = trace(model, x)
    graph.require_finite()
    if tuple(x.shape[1:]) != graph.input_shape:
        raise ValueError(f"x: want shape (N, {graph.input_shape}), got {tuple(x.shape)}")
    if len(graph.output_shape) != 1 or graph.output_shape[0] < 2:
        raise ValueError(f"model: want output of shape (N, K) with K ≥ 2, got (N, *{graph.output_shape})")
    classes = graph.output_shape[0]
    if y is not None:
        checks.in_classes("y", y, classes)
    if not len(x):
        return graph, x.new_empty(0, classes), torch.empty(0, dtype=torch.int64, device=x.device), radius
    logits = graph(x)
    if bool(logits.isnan().any()):
        raise ValueError("model: want numbers at x, got NaN")
    return graph, logits, logits.argmax(dim=1) if y is None else y, radius


@full_precision()
@torch.no_grad()
def certificate(
    bound: Bound,
    method: str,
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
) -> Certificate:
    """Verified where ``bound`` shows that all margins z_y − z_j are positive on the ball around x, cut off by the box.

    Args:
        bound: lower bounds of C·output.
        method: the catalogue key that the certificate carries.
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`.

    Returns:
        The certificate: falsified where x itself is not classified as y.
    """
    graph, logits, y, radius = prepare(model, x, y, norm, box, eps)
    right = logits.argmax(dim=1) == y
    proven = torch.zeros_like(right)
    rows = right.nonzero().flatten()
    if len(rows):
        C = margins(y[rows], logits.shape[1], x.dtype)
        proven[rows] = positive(bound(graph, Ball(x[rows], radius[rows], norm, box), C))
    return stated(proven, right, torch.where(proven, radius, 0.0), x, norm, method)


def positive(lower: Tensor) -> Tensor:
    """(N,) bool from lower bounds (N, M): all positive, and finite: what overflowed proves nothing."""
    return ((lower > 0) & lower.isfinite()).all(dim=1)


def stated(proven: Tensor, right: Tensor, radius: Tensor, x: Tensor, norm: ProperNorm, method: str) -> Certificate:
    """The certificate from what was proven; a sample that is misclassified is its own counterexample."""
    wrong = beside(~right, x)
    counterexample = torch.where(wrong, x, torch.nan) if bool(wrong.any()) else None
    return Certificate(proven, ~right, radius, norm, method, counterexample=counterexample)
