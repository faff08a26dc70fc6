"""The front of the incomplete verifiers: bounds, certificates at a radius, and the largest radius that is certified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.graph.tracing import trace
from robustlab.verification.duals.lagrangian_dual import lagrangian_dual_bound
from robustlab.verification.propagation.alpha_crown import alpha_crown_bound
from robustlab.verification.propagation.certificate import Interval, certificate, positive, prepare, stated
from robustlab.verification.propagation.cnn_cert import cnn_cert_bound
from robustlab.verification.propagation.crown import crown_bound, crown_ibp_bound
from robustlab.verification.propagation.fast_lin import fast_lin_bound
from robustlab.verification.propagation.fast_lip import fast_lip_bound
from robustlab.verification.propagation.ibp import ibp_bound
from robustlab.verification.propagation.lirpa import lirpa_bound
from robustlab.verification.propagation.region import Ball, Region
from robustlab.verification.propagation.specification import margins
from robustlab.verification.propagation.wong_kolter import wong_kolter_bound

__all__ = ["bounds", "certified_radius", "certify"]

BoundName = Literal[
    "ibp",
    "fast_lin",
    "fast_lip",
    "crown",
    "crown_ibp",
    "alpha_crown",
    "wong_kolter",
    "cnn_cert",
    "lirpa",
    "lagrangian_dual",
]
METHODS: dict[BoundName, Callable[..., Tensor]] = {
    "ibp": ibp_bound,
    "fast_lin": fast_lin_bound,
    "fast_lip": fast_lip_bound,
    "crown": crown_bound,
    "crown_ibp": crown_ibp_bound,
    "alpha_crown": alpha_crown_bound,
    "wong_kolter": wong_kolter_bound,
    "cnn_cert": cnn_cert_bound,
    "lirpa": lirpa_bound,
    "lagrangian_dual": lagrangian_dual_bound,
}
"""Catalogue key → function (graph, region, C, **options) → lower bounds of C·output, (N, M)."""


@full_precision()
def bounds(
    model: nn.Module | Graph, region: Region, C: Tensor | None = None, *, method: BoundName = "crown", **options: object
) -> Bounds:
    """Bounds of C·f(x) that hold for all x in a region.

    Args:
        model: a module from (N, ...) to (N, K), read in evaluation mode, or its graph.
        region: N sets of inputs, a :class:`~robustlab.verification.propagation.region.Box` or ``Ball``.
        C: (N, M, K), or (M, K) for all; None for the outputs themselves.
        method: one of ``METHODS``.
        options: the method's own, such as ``intersect=False``.

    Returns:
        :class:`~robustlab.graph.interval.Bounds` of shape (N, M), differentiable in the model's parameters
        and in the region where autograd is on (but for those of α-CROWN and of the Lagrangian dual).

    Raises:
        ValueError, TypeError: naming the argument, or the node that cannot be bounded.
    """
    checks.one_of("method", method, METHODS)
    checks.at_home(model, region.hull.lower, "region")
    graph = trace(model, region.hull.lower)
    if region.hull.lower.shape[1:] != graph.input_shape:
        raise ValueError(f"region: want inputs of shape {graph.input_shape}, got {tuple(region.hull.lower.shape[1:])}")
    if len(graph.output_shape) != 1:
        raise ValueError(f"model: want output of shape (N, K), got (N, *{graph.output_shape})")
    classes = graph.output_shape[0]
    if C is None:
        C = torch.eye(classes, dtype=region.hull.lower.dtype, device=region.hull.lower.device)
    if C.dim() not in (2, 3) or C.shape[-1] != classes or (C.dim() == 3 and len(C) != len(region)):
        raise ValueError(f"C: want shape ({len(region)}, M, {classes}) or (M, {classes}), got {tuple(C.shape)}")
    if C.dtype != region.hull.lower.dtype:
        raise TypeError(f"C: want the region's dtype {region.hull.lower.dtype}, got {C.dtype}")
    if not len(region):
        return Bounds(C.new_empty(0, C.shape[-2]), C.new_empty(0, C.shape[-2]))
    both = METHODS[method](graph, region, torch.cat([C, -C], dim=-2), **options)
    lower, negated = both.chunk(2, dim=1)
    return Bounds(lower, -negated)


def certify(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    method: BoundName = "crown",
    box: Interval | None = (0.0, 1.0),
    **options: object,
) -> Certificate:
    """Which predictions provably cannot change within ‖x′ − x‖ ≤ ε.

    Args:
        model: a module from (N, ...) to (N, K), read in evaluation mode; or its graph.
        x: (N, ...), inside the box, of the model's dtype.
        y: (N,) labels; None takes the model's predictions.
        norm: ``"l1"``, ``"l2"`` or ``"linf"``; for other p ask :func:`bounds` on a ``Ball``.
        eps: radius of the ball, above 0, or one per sample (N,), in the units of x.
        method: one of ``robustlab.verification.propagation.certify.METHODS``.
        box: the range of valid inputs, which cuts off the ball; None for no limits.
        options: the method's own.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`: verified with radius ε where every margin has a positive
        lower bound, falsified where x itself is not classified as y.

    Raises:
        ValueError, TypeError: naming the argument that is wrong, or the node that cannot be bounded.
    """
    checks.one_of("method", method, METHODS)

    def bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
        return METHODS[method](graph, region, C, **options)

    return certificate(bound, method, model, x, y, norm=norm, eps=eps, box=box)


@full_precision()
@torch.no_grad()
def certified_radius(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    method: BoundName = "crown",
    box: Interval | None = (0.0, 1.0),
    start: float = 1e-3,
    largest: float = 1e3,
    steps: int = 12,
    **options: object,
) -> Certificate:
    """The largest radius that a method certifies, for each sample, by doubling and bisection.

    Args:
        model, x, y, norm, method, box, options: as in :func:`certify`.
        start: first radius tried; it is doubled while it is certified.
        largest: radius at which doubling ends.
        steps: bisections of the last factor of 2, in which the radius is then known to 2^−steps.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate` whose radius was certified as it stands, 0 where x is
        misclassified.

    Raises:
        ValueError, TypeError: as :func:`certify`.
    """
    checks.one_of("method", method, METHODS)
    checks.positive("start", start)
    checks.positive("largest", largest)
    checks.at_least("steps", steps, 0, integer=True)
    graph, logits, y, first = prepare(model, x, y, norm, box, start)
    right = logits.argmax(dim=1) == y
    low, high = x.new_zeros(len(x)), first.clone()

    def proven(rows: Tensor, radius: Tensor) -> Tensor:
        C = margins(y[rows], logits.shape[1], x.dtype)
        return positive(METHODS[method](graph, Ball(x[rows], radius, norm, box), C, **options))

    growing = right.nonzero().flatten()
    while len(growing):
        won = growing[proven(growing, high[growing])]
        low[won] = high[won]
        growing = won[high[won] < largest]
        high[growing] = high[growing] * 2
    rows = (right & (low < high)).nonzero().flatten()
    for _ in range(steps if len(rows) else 0):
        middle = (low[rows] + high[rows]) / 2
        good = proven(rows, middle)
        low[rows], high[rows] = torch.where(good, middle, low[rows]), torch.where(good, high[rows], middle)
    return stated(low > 0, right, low, x, norm, method)
