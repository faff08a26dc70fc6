"""How far the program that runs may be from the function that a solver reasons on.

A solver proves something of the function; what runs is a program that rounds. With weights of 2²⁴ and a difference that
float32 cannot hold, the function keeps a label and the program does not. So errors are carried forward beside
intervals, once per ball: each sum adds ``WIDEN`` units of its terms, by which float32 bounds are widened too, and each
operator passes on what its input has, times its slope at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.pool import MaxPool
from robustlab.graph.product import Product
from robustlab.graph.smooth import CURVES, Smooth
from robustlab.verification.propagation.backward import WIDEN


def rounding_error(graph: Graph, layers: list[Bounds], dtype: torch.dtype) -> Tensor:
    """The largest difference between a model in ``dtype`` and the exact function, for each output: (N, *shape).

    Args:
        graph: of the model, in float64.
        layers: bounds of all nodes on the inputs in question, as ``interval_layers`` gives them.
        dtype: of the model.
    """
    unit = WIDEN * torch.finfo(dtype).eps
    errors = [torch.zeros_like(layers[0].lower)]
    for node in graph.nodes[1:]:
        bounds, given = [layers[i] for i in node.inputs], [errors[i] for i in node.inputs]
        errors.append(_passed_on(node, bounds, given) + unit * _terms(node, bounds, given))
    return errors[-1]


def _terms(node: Node, bounds: list[Bounds], errors: list[Tensor]) -> Tensor | float:
    """What an operator's own rounding is relative to."""
    op = node.op
    assert op is not None
    largest = [b.largest + e for b, e in zip(bounds, errors, strict=True)]
    if isinstance(op, Smooth):
        return (1 + largest[0]) / 4
    if isinstance(op, Hinge) and (op.left, op.right) != (0.0, 1.0):
        return largest[0] / 8
    terms = op.terms(*largest)
    return 0.0 if terms is None else terms


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
        return error * steepest.where(x.upper >= -error, left).where(x.lower <= error, right)
    if isinstance(op, MaxPool):
        return op.forward(error)
    if isinstance(op, (Clamp, Smooth)):
        return error * (1.0 if isinstance(op, Clamp) else CURVES[op.name].steepest)
    return error.new_full((error.shape[0], *node.shape), torch.inf)
