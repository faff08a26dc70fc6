"""A model that is read at every step of its training, and hardly ever changes in anything but its parameters.

Operators hold the model's own parameters, so a graph follows them. What else it holds was computed when it was read:
scales from the statistics of batch norm, constants from attributes. So it is read again unless

    the modules, their parameters and their plain attributes are the same, and no buffer and no frozen parameter moved
    no tensor of it was computed from a parameter that is trained (it would have a gradient's history)
    a second reading, after training had moved the parameters, found the same tensors
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.graph.node import Graph
from robustlab.graph.tracing import trace

_PLAIN = (int, float, str, tuple, type(None))  # bool is an int


class ReadAgain:
    """Reads a model for :func:`~robustlab.graph.tracing.trace`, as often as it must."""

    def __init__(self) -> None:
        self.graph: Graph | None = None
        self.state: list[Any] = []
        self.moved: list[int] = []
        self.sure = False

    def __call__(self, model: nn.Module, shape: Sequence[int]) -> Graph:
        """The graph of a model with inputs of ``shape``."""
        state, moved = _state(model, shape), [p._version for p in model.parameters() if p.requires_grad]
        same = self.graph is not None and _equal(state, self.state)
        if same and self.sure and torch.is_grad_enabled():
            assert self.graph is not None
            return self.graph
        graph = trace(model, shape)
        if not same or self.graph is None:
            self.sure = False
        elif all(a != b for a, b in zip(moved, self.moved, strict=True)) and torch.is_grad_enabled():
            self.sure = _same_constants(model, self.graph, graph)
        self.graph, self.state, self.moved = graph, state, moved
        return graph


def _state(model: nn.Module, shape: Sequence[int]) -> list[Any]:
    """What a graph depends on, besides the numbers of parameters that are trained."""
    found: list[Any] = [tuple(shape)]
    for module in model.modules():
        found += [module, type(module), len(module._forward_hooks) + len(module._forward_pre_hooks)]
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN) and name != "training":
                found += [name, value]
        for part in (*module._parameters.values(), *module._buffers.values()):
            trained = isinstance(part, nn.Parameter) and part.requires_grad
            found += [part, 0 if part is None or trained else part._version]
    return found


def _equal(one: list[Any], other: list[Any]) -> bool:
    """Whether both hold the same objects, or plain values that are equal."""
    return len(one) == len(other) and all(
        a is b or (isinstance(a, _PLAIN) and isinstance(b, _PLAIN) and a == b) for a, b in zip(one, other, strict=True)
    )


def _same_constants(model: nn.Module, one: Graph, other: Graph) -> bool:
    """Whether two readings agree in all that is no parameter of the model."""
    own = {id(p) for p in model.parameters()}
    pairs = zip(_values(one), _values(other), strict=False)
    alike = [n.inputs for n in one.nodes] == [n.inputs for n in other.nodes]
    return alike and all(a is b if id(a) in own else _constant(a, b) for a, b in pairs)


def _constant(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.grad_fn is None and b.grad_fn is None and torch.equal(a, b)
    return bool(a == b) and type(a) is type(b)


def _values(graph: Graph) -> Iterator[Any]:
    for node in graph.nodes:
        yield type(node.op)
        yield from vars(node.op).values() if node.op is not None else ()
