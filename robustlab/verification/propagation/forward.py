"""Linear bounds carried forward from the input: cheap where few inputs vary.

Each value of the network lies between two linear functions of the inputs that vary, in units of the box's sides,

    L₀ + ⟨L, t⟩  ≤  z(x(t))  ≤  U₀ + ⟨U, t⟩,   t in [−1, 1]^v

An affine operator takes them on by W·(L + U)/2 ∓ |W|·(U − L)/2; a nonlinear one by its lines. That is 2·(1 + v) values
for each neuron, where a backward pass has two forms for each neuron that is not stable.

Source: Zhang et al., "Efficient neural network robustness certification with general activation functions" (2018), for
the lines; Xu et al., "Automatic perturbation analysis for scalable certified robustness and beyond" (2020), section
3.1, for linear bounds that go forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustlab.graph.affine import Sub
from robustlab.graph.hinge import Lines
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Affine, Operator

MOST = 24  # inputs that may vary


class ForwardLines:
    """Linear bounds of every node so far, for boxes in float64, whose rounding is not taken off.

    Args:
        graph: the network.
        box: (N, *shape).

    Attributes:
        varying: (v,), the flat places of the inputs that vary in some box.
        lower, upper: of each node so far, (N, 1 + v, *shape): the constant, then the slopes; the two are one tensor
            where the value is a linear function.
    """

    def __init__(self, graph: Graph, box: Bounds) -> None:
        self.graph = graph
        self.varying = varying(box)
        center, radius = box.center.flatten(1), box.radius.flatten(1)
        slopes = center.new_zeros(len(center), len(self.varying), center.shape[1])
        slopes[:, torch.arange(len(self.varying)), self.varying] = radius[:, self.varying]
        start = torch.cat([center[:, None], slopes], dim=1).reshape(len(center), -1, *graph.input_shape)
        self.lower, self.upper = [start], [start]

    def step(self, node: Node, lines: Any, here: Bounds) -> Bounds:
        """Go on to ``node``, relaxed by ``lines`` if it is not affine; ``here`` are bounds that are known of it.

        Returns:
            Bounds of the node's value.
        """
        assert node.op is not None
        lower, upper = [self.lower[i] for i in node.inputs], [self.upper[i] for i in node.inputs]
        if node.op.affine:
            low, high = _affine(node.op, lower, upper)
        elif isinstance(lines, Lines):
            low, high = _between(lines, lower[0], upper[0])
        else:  # the box is all that is known
            low, high = (end.new_zeros(len(end), lower[0].shape[1], *node.shape) for end in (here.lower, here.upper))
            low[:, 0], high[:, 0] = here.lower, here.upper
        self.lower.append(low)
        self.upper.append(high)
        return Bounds(low[:, 0] - low[:, 1:].abs().sum(1), high[:, 0] + high[:, 1:].abs().sum(1))

    def spread(self, index: int) -> Tensor:
        """How far each varying input moves the value of a node, (N, v, *shape): |slope|, the mean of both lines."""
        return (self.lower[index][:, 1:].abs() + self.upper[index][:, 1:].abs()) / 2


def varying(box: Bounds) -> Tensor:
    """The flat places of the inputs that vary in some box, (v,)."""
    return (box.lower < box.upper).flatten(1).any(dim=0).nonzero().flatten()


def _affine(op: Operator, lower: Sequence[Tensor], upper: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    shape = lower[0].shape[:2]
    zero = op.forward(*(torch.zeros_like(part[:1, 0]) for part in lower))

    def linear(parts: Sequence[Tensor]) -> Tensor:
        """The operator on constants and slopes, each without its own constant; which is then added to the first."""
        found = (op.forward(*(part.flatten(0, 1) for part in parts)) - zero).unflatten(0, shape)
        found[:, 0] += zero
        return found

    if all(low is high for low, high in zip(lower, upper, strict=True)):
        same = linear(lower)
        return same, same
    if isinstance(op, Affine):
        center = linear([(lower[0] + upper[0]) / 2])
        radius = op.magnitude(((upper[0] - lower[0]) / 2).flatten(0, 1)).unflatten(0, shape)
        return center - radius, center + radius
    if isinstance(op, Sub):
        return linear([lower[0], upper[1]]), linear([upper[0], lower[1]])
    return linear(lower), linear(upper)  # sums, and what only moves numbers


def _between(lines: Lines, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    below, above = lines.lower_slope[:, None], lines.upper_slope[:, None]
    low = below * lower if bool((below >= 0).all()) else below.clamp_min(0) * lower + below.clamp_max(0) * upper
    high = above * upper if bool((above >= 0).all()) else above.clamp_min(0) * upper + above.clamp_max(0) * lower
    if lines.lower_bias is not None:
        low[:, 0] += lines.lower_bias
    high[:, 0] += lines.upper_bias
    return low, high
