"""Fast-Lip: a certified local Lipschitz constant from intervals of the Jacobian.

Weng et al., "Towards fast computation of certified robustness for ReLU networks" (2018), section 3.4 and algorithm 2.
Where a ReLU net is differentiable, its Jacobian is a product of weights and slopes,

    ∇(C·z)(x) = C·W_m·Λ_{m−1}(x)·W_{m−1} ⋯ Λ_1(x)·W_1,

with the slopes 1 and 0 of the active and inactive neurons on the diagonals Λ. Sound bounds of the pre-activations over
the ball tell which neurons are always active, or never; the slopes of all others lie in [0, 1]. Interval arithmetic on
the product then encloses every entry of the Jacobian over the whole ball, and with q dual to p

    L_j = ‖ max |∇(z_y − z_j)| ‖_q,    z_y − z_j > 0 for all ‖δ‖_p ≤ ε   if   ε·L_j < z_y(x) − z_j(x)

Different here: the paper multiplies from the input on; we go backward from the margins, so that only K − 1 rows a
sample are carried, and a convolution is met as a transposed convolution. Both orders are sound, and neither is always
the tighter one. Any graph of affine operators and ReLUs (leaky ReLUs, absolute values) is taken, residual ones
included. Intervals are kept as center and radius; in float32 the radius grows at every operator by 32·2⁻²³ of the
absolute terms, so that rounding does not undo the bound.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm, get_norm
from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.verification.propagation.backward import interval_bound, slack
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.certificate import Interval, certificate, prepare
from robustlab.verification.propagation.layers import BUDGET, interval_layers, layer_bounds
from robustlab.verification.propagation.region import Ball, Box, Region
from robustlab.verification.propagation.specification import as_forms, margins

__all__ = ["fast_lip", "lipschitz_bound"]


def fast_lip(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
) -> Certificate:
    """Certify by an upper bound of the margins' Lipschitz constants on the ball.

        verified  if  ε·‖max |∇(z_y − z_j)|‖_q < z_y − z_j  for all j ≠ y,   1/p + 1/q = 1

    The bound holds, and is exact on affine models without a box in reach. It falls apart faster than Fast-Lin as ε or
    the depth grows: interval arithmetic lets every unstable neuron choose its slope anew for every path through it.

    Args:
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`; the model's only nonlinear operators
            are ReLUs, leaky ReLUs or absolute values.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`. For the largest radius see
        :func:`robustlab.verification.certified_radius`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for another nonlinear operator.

    Source: Weng et al. (2018), section 3.4 and algorithm 2.
    """
    return certificate(fast_lip_bound, "fast_lip", model, x, y, norm=norm, eps=eps, box=box)


@torch.no_grad()
def lipschitz_bound(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
) -> Tensor:
    """Upper bounds of the Lipschitz constants of all margins z_y − z_j on the balls of radius ε around x.

    Args:
        model, x, y, norm, eps, box: as in :func:`fast_lip`.

    Returns:
        (N, K − 1), the other classes in ascending order: no slope on the ball is larger, in the dual of ``norm``.

    Raises:
        ValueError, TypeError: as :func:`fast_lip`.

    Source: Weng et al. (2018), section 3.4.
    """
    graph, logits, y, radius = prepare(model, x, y, norm, box, eps)
    C = margins(y, logits.shape[1], x.dtype)
    if not len(x):
        return C.new_zeros(C.shape[:2])
    most = largest_slopes(graph, Ball(x, radius, norm, box), C)
    return get_norm(norm).dual.length(most.flatten(0, 1)).reshape(C.shape[:2])


def fast_lip_bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
    """Lower bounds (N, M) of C·output: its value at the center less the largest slope times the farthest way."""
    C = C.expand(len(region), *C.shape[-2:])
    most = largest_slopes(graph, region, C)
    if isinstance(region, Ball) and isinstance(region.norm, str):
        center = region.x
        steepest = get_norm(region.norm).dual.length(most.flatten(0, 1)).reshape(C.shape[:2])
        way = steepest * torch.as_tensor(region.eps, dtype=C.dtype, device=C.device).reshape(-1, 1)
    else:
        center = region.hull.center
        way = (most * region.hull.radius[:, None]).flatten(2).sum(dim=2)
    point = interval_layers(graph, Box(center, center))  # the value, and in float32 what rounding may have made of it
    value = interval_bound(graph, point, as_forms(C, len(region))).reshape(way.shape)
    return value - way - slack(way)


def largest_slopes(graph: Graph, region: Region, C: Tensor) -> Tensor:
    """max |∇(C·z)| over the region, entry by entry and from above, (N, M, *input shape)."""
    for node in graph.nonlinear:
        if not isinstance(node.op, Hinge):
            raise ValueError(
                f"model: Fast-Lip needs the slopes of every operator, got {node.op} at node {node.name!r}; "
                "want affine layers and ReLUs, or use 'crown'"
            )
    layers = layer_bounds(graph, region, BoundOptions(relu="parallel")).bounds
    found = []
    for rows in torch.arange(len(C), device=C.device).split(max(1, BUDGET // (C.shape[1] * graph.widest))):
        center, radius = jacobian_bounds(graph, [part.select(rows) for part in layers], C[rows])
        found.append(center.abs() + radius)
    return torch.cat(found)


def jacobian_bounds(graph: Graph, layers: Sequence[Bounds], C: Tensor) -> tuple[Tensor, Tensor]:
    """Center and radius of intervals that hold ∇(C·z) wherever ``layers`` holds.

    Args:
        graph: of affine operators and hinges.
        layers: bounds of every node, (N, *shape).
        C: (N, M, K).

    Returns:
        Two tensors (N, M, *input shape).
    """
    start = as_forms(C, len(C))
    waiting = {len(graph.nodes) - 1: (start, start.to(torch.zeros_like(start.coef)))}
    for node in reversed(graph.nodes[1:]):
        center, radius = waiting.pop(node.index)
        shapes = [graph.nodes[i].shape for i in node.inputs]
        assert node.op is not None
        if isinstance(node.op, Hinge):
            parts = [_through_hinge(node.op, center, radius, layers[node.inputs[0]])]
        else:
            wider = radius.to(radius.coef + slack(radius.coef + center.coef.abs()))
            centers, _ = node.op.backward(center, shapes, None)
            radii, _ = node.op.absolute().backward(wider, shapes, None)
            parts = list(zip(centers, radii, strict=True))
        for i, part in zip(node.inputs, parts, strict=True):
            before = waiting.get(i)
            shape = graph.nodes[i].shape
            waiting[i] = part if before is None else (before[0].plus(part[0], shape), before[1].plus(part[1], shape))
    shape = (*C.shape[:2], *graph.input_shape)
    center, radius = (part.full(graph.input_shape) for part in waiting[0])
    return center.coef.reshape(shape), radius.coef.reshape(shape)


def _through_hinge(op: Hinge, center: Forms, radius: Forms, before: Bounds) -> tuple[Forms, Forms]:
    """The product of the interval with the slopes that occur between the bounds."""
    active = before.lower >= 0
    never = (before.upper <= 0) & ~active
    left, right = (before.lower.new_tensor(slope) for slope in (op.left, op.right))
    low, high = center.pick(torch.where(active, right, left)), center.pick(torch.where(never, left, right))
    ends = (center.coef - radius.coef, center.coef + radius.coef)
    products = torch.stack([slope * end for slope in (low, high) for end in ends])
    bottom, top = products.amin(dim=0), products.amax(dim=0)
    return center.to((bottom + top) / 2), radius.to((top - bottom) / 2)
