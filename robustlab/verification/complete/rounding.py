"""How far the numbers of a model that runs in float32 may be from those that a solver reasons on.

A solver proves something of the function; what runs is a program that rounds. With weights of 2²⁴ and a difference that
float32 cannot hold, the function keeps a label and the program does not. So errors are carried forward beside
intervals: each sum adds ``WIDEN`` units of its terms, as the bounds of ``robustlab.verification.propagation`` do,
and each operator passes on what its input has, times its slope at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.pool import MaxPool
from robustlab.graph.product import Product
from robustlab.graph.smooth import Smooth
from robustlab.verification.propagation.backward import WIDEN

_STEEPEST = 1.13  # slope of the steepest smooth activation, GELU


def rounding_error(graph: Graph, layers: list[Bounds], dtype: torch.dtype) -> Tensor:
    """For each output, (N, *shape), the largest difference between the model in ``dtype`` and the exact function.

    Args:
        graph: in float64.
        layers: bounds of all nodes on the inputs in question, as ``interval_layers`` gives them.
        dtype: of the model.
    """
    unit = WIDEN * torch.finfo(dtype).eps
    errors = [torch.zeros_like(layers[0].lower)]
    for node in graph.nodes[1:]:
        assert node.op is not None
        bounds, given = [layers[i] for i in node.inputs], [errors[i] for i in node.inputs]
        largest = [b.largest + e for b, e in zip(bounds, given, strict=True)]
        error, terms = _passed_on(node, bounds, given), node.op.terms(*largest)
        if isinstance(node.op, Smooth):
            terms = (1 + largest[0]) / 4
        errors.append(error if terms is None else error + unit * terms)
    return errors[-1]


def _passed_on(node: Node, bounds: list[Bounds], errors: list[Tensor]) -> Tensor:
    """The error of an operator's exact value on inputs that have errors."""
    op = node.op
    assert op is not None
    if op.affine:
        return op.interval(*(Bounds(-e, e) for e in errors)).radius
    if isinstance(op, Product):
        (x, y), (of_x, of_y) = bounds, errors
        return x.largest * of_y + y.largest * of_x + of_x * of_y
    (x,), (error,) = bounds, errors
    if isinstance(op, Hinge):
        left, right = abs(op.left), abs(op.right)
        steepest = torch.full_like(error, max(left, right))
        steepest = torch.where(x.upper < -error, left, torch.where(x.lower > error, right, steepest))
        return steepest * error
    if isinstance(op, MaxPool):
        return op.forward(error)
    if isinstance(op, Clamp):
        return error
    if isinstance(op, Smooth):
        return _STEEPEST * error
    return error.new_full((error.shape[0], *node.shape), torch.inf)
