"""Boxes of inputs: linear bounds of margins on them, what these leave of a box, and the side to cut.

A case is unsafe where *all* its margins are at most 0. So on a box with linear bounds g_i(x) ≤ margin_i(x)

    mix    any weights w ≥ 0 that sum to 1 give Σ w_i·g_i ≤ max_i margin_i: if its minimum is positive, the box is safe
    clip   x is safe where some g_i(x) > 0: an input that keeps g_i ≤ 0 only in part of its side keeps that part alone
    side   the one that, halved, would bring the bound up most, by first-order effects on what the relaxations cost

Source: Wang et al., "Efficient formal safety analysis of neural networks" (2018), for splits of inputs by their effect;
Zhou et al., "Clip-and-Verify" (2025), for boxes that shrink by their own linear bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Elementwise, Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Backward
from robustlab.verification.complete.common_boxes import distinct
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.bound_options import BoundOptions, Sides
from robustlab.verification.propagation.forward import MOST, ForwardLines, varying
from robustlab.verification.propagation.layers import Layers, layer_bounds
from robustlab.verification.propagation.region import Box
from robustlab.verification.propagation.specification import as_forms

ROUNDS = 40  # rounds of the search for weights
SIDES: Sides = "deciding"
SLOPE = 0.5  # what the bound's own slope counts
CLIPS = 3  # rounds of clipping


@dataclass(frozen=True, eq=False)
class BoxBounds:
    """Linear bounds on D boxes, U of which are distinct.

    Attributes:
        layers: of the hidden layers, on the distinct boxes.
        carried: the linear bounds that went forward there, or None with many inputs.
        which: (D,), the place of each box among them.
        coef, constant: (D, k, n) and (D, k): margin_i(x) ≥ ⟨coef_i, x⟩ + constant_i on the box.
        paid: (node, coefficients (D, k, *shape)) at each elementwise operator that the bounds went through.
    """

    layers: Layers
    carried: ForwardLines | None
    which: Tensor
    coef: Tensor
    constant: Tensor
    paid: Sequence[tuple[Node, Tensor]]


@torch.no_grad()
def bound_boxes(graph: Graph, box: Box, C: Tensor, d: Tensor, *, refine: bool) -> BoxBounds:
    """Linear bounds of C·f(x) + d, (D, k, m) and (D, k).

    Hidden layers are bounded once for all cases that share a box. With ``refine``, their neurons that are not stable
    are bounded by backward passes; else what goes forward must do, where few inputs vary.
    """
    which, one = distinct(box.lower, box.upper)
    few = len(varying(one.hull)) <= MOST
    carried = ForwardLines(graph, one.hull) if few else None
    options = BoundOptions(intermediate="backward" if refine or not few else "interval", sides=SIDES)
    layers = layer_bounds(graph, one, options, carried=carried)
    paid: list[tuple[Node, Tensor]] = []
    parts = C.shape[1]

    def through(node: Node, forms: Forms) -> Backward:
        assert node.op is not None
        if isinstance(node.op, Elementwise):
            forms = forms.full(node.shape)
            paid.append((node, forms.coef.unflatten(0, (-1, parts))))
        return node.op.backward(forms, [graph.nodes[i].shape for i in node.inputs], layers.lines[node.index])

    last, forms = len(graph.nodes) - 1, as_forms(C, len(box))
    if len(one) < len(box):
        forms = replace(forms, sample=which[forms.sample], group=None)
    at_input, constant = backward(graph, layers.lines, forms, last, nonlinear=through)
    coef = at_input.full(graph.input_shape).coef.reshape(len(box), parts, -1)
    return BoxBounds(layers, carried, which, coef, constant.reshape(-1, parts) + d, paid)


def least(coef: Tensor, constant: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """min of each linear function on its box, (D, k)."""
    center, radius = (low + high) / 2, (high - low) / 2
    return constant + (coef @ center[:, :, None] - coef.abs() @ radius[:, :, None])[:, :, 0]


def mixed(coef: Tensor, constant: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (D, k) whose sum of linear functions has a large minimum, and that minimum, (D,).

    Exponentiated ascent from the best single row, which the result is never below: the minimum is concave in the
    weights, and every weight gives a bound.
    """
    alone, best = least(coef, constant, low, high).max(dim=1)
    weights = torch.nn.functional.one_hot(best, coef.shape[1]).to(coef)
    if coef.shape[1] == 1:
        return weights, alone
    center, radius = (low + high) / 2, (high - low) / 2
    middle = constant + (coef @ center[:, :, None])[:, :, 0]
    reach = coef * radius[:, None]
    found, at = alone, weights
    for step in range(ROUNDS):
        log = at.clamp_min(0.01).log()
        joint = (at[:, :, None] * reach).sum(1)
        slope = middle - (reach * joint.sign()[:, None]).sum(2)
        slope = slope - slope.mean(dim=1, keepdim=True)  # what all rows share moves no weight
        size = slope.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        at = (log + 4.0 * slope / size / (1 + step) ** 0.75).softmax(dim=1)
        value = (at * middle).sum(1) - (at[:, :, None] * reach).sum(1).abs().sum(1)
        better = value > found
        found, weights = torch.where(better, value, found), torch.where(better[:, None], at, weights)
    return weights, found


def clipped(coef: Tensor, constant: Tensor, low: Tensor, high: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The part of each box on which no linear function is above ``wanted`` (D,), or a box around that part.

    Where there is none, low > high in some input.
    """
    steep = coef.abs().clamp_min(torch.finfo(coef.dtype).tiny)
    for _ in range(CLIPS):
        room = (wanted[:, None] - least(coef, constant, low, high))[:, :, None]  # above the least value of the row
        # How far from the end where the function is least; what is no number keeps the box.
        far = room.clamp_min(0.0) / steep
        top = torch.where(coef > 0, low[:, None] + far, torch.inf).amin(dim=1)
        bottom = torch.where(coef < 0, high[:, None] - far, -torch.inf).amax(dim=1)
        low, high = torch.maximum(low, bottom.nan_to_num(-torch.inf)), torch.minimum(high, top.nan_to_num(torch.inf))
        if bool((low > high).any()):
            break
    return low, high


def with_mix(bounds: BoxBounds, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and constants of all rows, and of their sum with these weights as one more."""
    coef = torch.cat([bounds.coef, weights[:, None] @ bounds.coef], dim=1)
    return coef, torch.cat([bounds.constant, (weights * bounds.constant).sum(1, keepdim=True)], dim=1)


def effects(graph: Graph, bounds: BoxBounds, weights: Tensor) -> Tensor:
    """By how much the bound would rise for each input, were its side of the box a little shorter, (D, n), per share.

    A negative coefficient a meets a chord that lies −l·u / (u − l) too high at the bend; it comes down by
    (l² + u²) / (u − l)² of what both ends move, and each input moves them by its spread. A positive coefficient meets a
    line below, which is off by about half of that. The bound's own slope helps one half alone, and counts for half.
    """
    slope = (weights[:, None] @ bounds.coef)[:, 0].abs()
    box, which = bounds.layers.bounds[0], bounds.which
    total = SLOPE * slope * box.radius.flatten(1)[which]
    if bounds.carried is None:
        return total
    at = bounds.carried.varying
    for node, coef in bounds.paid:
        before: Bounds = bounds.layers.bounds[node.inputs[0]]
        a = (weights[:, :, None] * coef.flatten(2)).sum(1)
        l, u = before.lower.flatten(1)[which], before.upper.flatten(1)[which]
        if isinstance(node.op, Hinge):
            steep = (l * l + u * u) / (u - l).clamp_min(torch.finfo(l.dtype).tiny) ** 2
            price = torch.where((l < 0) & (u > 0), torch.where(a < 0, -a * steep, 0.5 * a), 0.0)
        else:
            price = torch.where(l < u, 0.5 * a.abs(), 0.0)
        spread = bounds.carried.spread(node.inputs[0]).flatten(2)[which]
        total[:, at] += (spread @ price[:, :, None])[:, :, 0]
    return total
