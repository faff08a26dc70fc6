"""The graph that every verifier works on: operators in topological order, read from a model once.

Readers (``trace`` for PyTorch, another for ONNX) add operators to a ``Builder``, which finds the shapes by running each
operator on one sample of zeros; what would take gigabytes is refused before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from robustlab.graph.affine import Concat, Linear, Pad, Reshape, ScaleShift
from robustlab.graph.conv import Conv
from robustlab.graph.hinge import Hinge
from robustlab.graph.operators import Operator
from robustlab.graph.transposed import Along, ConvTranspose

LARGEST = 2**26
"""How many numbers all values of a graph may have for one sample."""
GROWING = (Along, Concat, Conv, ConvTranspose, Linear, Pad)
"""Operators whose output may have many more numbers than they and their inputs have."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the graph.

    Attributes:
        index: its place in the graph.
        name: for messages.
        op: its operator; None for the input.
        inputs: the places of the operator's inputs.
        shape: of one sample, without the batch.
    """

    index: int
    name: str
    op: Operator | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """A directed acyclic graph of operators. Node 0 is the input, the last node the output.

    Attributes:
        nodes: in topological order.
    """

    nodes: tuple[Node, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """The output (N, ...) for inputs (N, ...)."""
        return self.values(x)[-1]

    def values(self, x: Tensor) -> list[Tensor]:
        """The value of every node for inputs (N, ...)."""
        found = [x]
        for node in self.nodes[1:]:
            assert node.op is not None
            found.append(node.op.forward(*(found[i] for i in node.inputs)))
        return found

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.nodes[-1].shape

    @cached_property
    def nonlinear(self) -> tuple[Node, ...]:
        """The nodes that have to be relaxed."""
        return tuple(node for node in self.nodes if node.op is not None and not node.op.affine)

    @cached_property
    def pre_activations(self) -> tuple[int, ...]:
        """Nodes whose value enters a nonlinear operator and whose interval a backward pass can improve."""

        def simple(node: Node) -> bool:
            return node.op is None or node.op.elementwise

        return tuple(sorted({i for node in self.nonlinear for i in node.inputs if not simple(self.nodes[i])}))

    @cached_property
    def relus(self) -> dict[int, int]:
        """The node before a ReLU → the ReLU."""
        return {
            node.inputs[0]: node.index
            for node in self.nonlinear
            if isinstance(node.op, Hinge) and (node.op.left, node.op.right) == (0.0, 1.0)
        }

    @cached_property
    def uses(self) -> Counter[int]:
        """How many inputs of nodes the value of each node is."""
        return Counter(i for node in self.nodes for i in node.inputs)

    @cached_property
    def scaled(self) -> frozenset[int]:
        """Scales and shifts of a convolution that nothing else uses: batch norm at rest."""
        return frozenset(
            node.index
            for node in self.nodes
            if isinstance(node.op, ScaleShift)
            and isinstance(self.nodes[node.inputs[0]].op, Conv)
            and self.uses[node.inputs[0]] == 1
        )

    @cached_property
    def widest(self) -> int:
        """How many numbers the largest node has."""
        return max(torch.Size(node.shape).numel() for node in self.nodes)

    def tensors(self) -> Iterator[Tensor]:
        """All that the operators hold: weights, shifts, places."""
        for node in self.nodes:
            held = vars(node.op).values() if node.op is not None else ()
            yield from (value for value in held if isinstance(value, Tensor))

    def require_finite(self) -> None:
        """Raise a ValueError that names the node, where weights are NaN or infinite: nothing follows from them."""
        for node in self.nodes:
            for name, value in vars(node.op).items() if node.op is not None else ():
                if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
                    found = "NaN" if bool(value.isnan().any()) else "infinite numbers"
                    raise ValueError(f"model: want finite weights, got {found} in the {name} of node {node.name!r}")

    def to(self, *args: torch.device | torch.dtype | str) -> Graph:
        """The same graph with its tensors moved or converted, as ``Tensor.to``; the model's own are left alone."""
        return Graph(tuple(replace(node, op=node.op and _moved(node.op, *args)) for node in self.nodes))


def _moved(op: Operator, *args: torch.device | torch.dtype | str) -> Operator:
    """An operator with its floats moved or converted."""
    found = {f.name: getattr(op, f.name) for f in fields(op)}  # type: ignore[arg-type]
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return replace(op, **{k: v.to(*args) for k, v in tensors.items()})  # type: ignore[call-overload, type-var]


def _shape_alone(op: Operator, samples: Sequence[Tensor]) -> torch.Size:
    """The shape of the output, found without numbers.

    That of what networks are made of is known: for a product or a convolution without numbers, torch would import its
    compiler and an algebra system, which takes longer than most networks do.
    """
    shape = list(samples[0].shape)
    if isinstance(op, Concat):
        shape[op.dim] = sum(sample.shape[op.dim] for sample in samples)
    elif isinstance(op, Linear):
        shape[-1] = op.weight.shape[0]
    elif isinstance(op, (Conv, ConvTranspose)) and len(shape) == op.weight.dim():
        shape[1:] = (max(n, 0) for n in op.output_shape(tuple(shape[1:])))
    else:
        return _moved(op, "meta").forward(*(sample.to("meta") for sample in samples)).shape[1:]
    return torch.Size(shape[1:])


class Builder:
    """Makes a graph, operator by operator.

    Args:
        shape: of one input, without the batch.
        dtype, device: of the numbers.
    """

    def __init__(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
    ) -> None:
        self.like = torch.empty(0, dtype=dtype, device=device)
        self.nodes = [Node(0, "input", None, (), tuple(shape))]
        self.numbers = 0
        self.room("input", shape)

    def add(self, op: Operator, *inputs: int, name: str = "") -> int:
        """Add a node; returns its place.

        Raises:
            ValueError: if the operator cannot take inputs of these shapes.
        """
        samples = [self.like.new_zeros(()).expand(1, *self.nodes[i].shape) for i in inputs]
        try:
            with torch.no_grad():
                if isinstance(op, GROWING):
                    self.room(name, _shape_alone(op, samples))
                value = op.forward(*samples)
        except (RuntimeError, IndexError) as error:
            shapes = [self.nodes[i].shape for i in inputs]
            raise ValueError(f"model: node {name!r} cannot take inputs of shapes {shapes}: {error}") from error
        if value.shape[0] != 1:
            raise ValueError(f"model: node {name!r} mixes samples; want the batch as dimension 0, got {value.shape}")
        self.room(name, value.shape[1:])
        self.numbers += value.numel()
        index = len(self.nodes)
        self.nodes.append(Node(index, name or type(op).__name__.lower(), op, inputs, tuple(value.shape[1:])))
        return index

    def room(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a node of this shape where all values together would have more than ``LARGEST`` numbers."""
        if self.numbers + prod(shape) > LARGEST:
            raise ValueError(
                f"model: want values of at most {LARGEST:,} numbers in all, got {tuple(shape)} at node {name!r}"
            )

    def finish(self, output: int) -> Graph:
        """The graph of all that the node ``output`` needs."""
        if output == 0:
            output = self.add(Reshape(self.nodes[0].shape), 0, name="identity")
        needed, todo = {0, output}, [output]
        while todo:
            for i in self.nodes[todo.pop()].inputs:
                if i not in needed:
                    needed.add(i)
                    todo.append(i)
        kept = [node for node in self.nodes if node.index in needed]
        place = {node.index: i for i, node in enumerate(kept)}
        return Graph(tuple(replace(n, index=place[n.index], inputs=tuple(place[i] for i in n.inputs)) for n in kept))
