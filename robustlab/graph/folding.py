"""Affine layers that follow each other as one: bounds then lose nothing between them, and have fewer steps.

Networks from files have their biases, scales and the sums of a lattice in layers of their own, and batch norm at rest
is a scale after a convolution. Of W₂(W₁x + b₁) + b₂ an interval takes |W₂|·|W₁|·r, of the product |W₂W₁|·r, which is
never more. But what W₁ and b₁ round in a model that computes one layer after the other is no longer seen where large
terms cancel in the product: what is proved of the folded graph is proved in exact arithmetic.
"""

from __future__ import annotations

from dataclasses import replace

from robustlab.graph.affine import Linear, ScaleShift
from robustlab.graph.conv import Conv
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Operator

LARGER = 1.5  # a product may have so many times the numbers of its factors


def folded(graph: Graph) -> Graph:
    """The same function up to rounding: a layer whose value has one user, which is affine too, is multiplied into it.

    That is dense layers, scales and shifts of vectors, and scales and shifts of the channels of a convolution.
    """
    nodes: list[Node] = []
    place: dict[int, int] = {}
    for node in graph.nodes:
        inputs = tuple(place[i] for i in node.inputs)
        joint = None
        if len(inputs) == 1 and graph.uses[node.inputs[0]] == 1:
            joint = _product(nodes[inputs[0]], node)
        if joint is not None:
            place[node.index] = inputs[0]
            nodes[inputs[0]] = replace(nodes[inputs[0]], op=joint, shape=node.shape, name=node.name)
        else:
            place[node.index] = len(nodes)
            nodes.append(replace(node, index=len(nodes), inputs=inputs))
    return Graph(tuple(nodes))


def _product(before: Node, node: Node) -> Operator | None:
    """``node``'s operator after ``before``'s; None where that is none of these layers, or larger than the two."""
    first, second = before.op, node.op
    vectors = len(before.shape) == len(node.shape) == 1
    if isinstance(first, Conv) and isinstance(second, ScaleShift):
        return first.scaled(second) if len(before.shape) == first.weight.dim() - 1 else None
    if not vectors:
        return None
    if isinstance(second, ScaleShift):
        scale, shift = (number.reshape(-1).expand(node.shape[0]) for number in (second.scale, second.shift))
        if isinstance(first, Linear):
            return Linear(scale[:, None] * first.weight, shift if first.bias is None else scale * first.bias + shift)
        if isinstance(first, ScaleShift):
            return ScaleShift(scale * first.scale.reshape(-1), scale * first.shift.reshape(-1) + shift)
    if isinstance(second, Linear):
        bias = second.weight.new_zeros(second.weight.shape[0]) if second.bias is None else second.bias
        if isinstance(first, ScaleShift):
            scale, shift = (number.reshape(-1).expand(before.shape[0]) for number in (first.scale, first.shift))
            return Linear(second.weight * scale, second.weight @ shift + bias)
        if isinstance(first, Linear):
            numbers = second.weight.shape[0] * first.weight.shape[1]
            if numbers <= LARGER * (first.weight.numel() + second.weight.numel()):
                moved = bias if first.bias is None else second.weight @ first.bias + bias
                return Linear(second.weight @ first.weight, moved)
    return None
