"""Affine layers whose weights are known up to ±ε.

For a form a on the output of (W + Δ)·x + b + δ with |Δ_ij| ≤ ε and |δ_i| ≤ ε′, the worst weights are known for each x,

    ⟨a, (W + Δ)x + b + δ⟩  ≥  ⟨Wᵀa, x⟩ + ⟨a, b⟩ − ε·‖a‖₁·Σ_j |x_j| − ε′·‖a‖₁

with equality for some Δ and δ, and |x_j| is bounded from above by its chord on [l_j, u_j]. In a convolution, ‖a‖₁ is
taken over the outputs that see x_j: that its weights are shared between places is not used.

Different from the paper, which bounds the product Δ·x by McCormick's planes: here the weights are minimized exactly.

Source: Xu et al., "Automatic perturbation analysis for scalable certified robustness and beyond" (2020), section 3.4 on
perturbed weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustlab.graph.affine import Linear
from robustlab.graph.conv import Conv
from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Hinge, Lines
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.graph.operators import Backward, Operator, Rule, Shape
from robustlab.graph.tracing import trace

_ABS = Hinge(-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Uncertain(Operator):
    """A dense layer or convolution with weights and biases known up to ±weight_eps and ±bias_eps."""

    affine: ClassVar[bool] = False

    op: Linear | Conv
    weight_eps: float
    bias_eps: float

    def _counts(self) -> Linear | Conv:
        """The layer with ones for weights and no bias: it sums what each output sees."""
        return replace(self.op, weight=torch.ones_like(self.op.weight), bias=None)

    def forward(self, *values: Tensor) -> Tensor:
        """The layer with its own weights."""
        return self.op.forward(*values)

    def interval(self, *inputs: Bounds) -> Bounds:
        """The layer's interval, wider by ε·Σ max |x_j| + ε′."""
        here, more = self.op.interval(*inputs), self._moved(inputs[0].largest)
        return Bounds(here.lower - more, here.upper + more)

    def _moved(self, largest: Tensor) -> Tensor:
        """ε·Σ max |x_j| + ε′."""
        return self.weight_eps * self._counts().forward(largest) + self.bias_eps

    def terms(self, *largest: Tensor) -> Tensor:
        """Those of the layer, and what its weights may add."""
        return self.op.terms(*largest) + self._moved(largest[0])

    def unstable(self, *inputs: Bounds) -> tuple[Tensor, ...]:
        """Where the sign of an input is not known."""
        return _ABS.unstable(*inputs)

    def relax(self, rule: Rule, *inputs: Bounds) -> Lines:
        """The chord above |x|."""
        return _ABS.relax(rule, *inputs)

    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: Lines) -> Backward:
        """As in the module's text."""
        (nominal,), constant = self.op.backward(forms, shapes, None)
        (seen,), _ = self._counts().backward(forms.to(forms.coef.abs()), shapes, None)
        seen = seen.to(-self.weight_eps * seen.coef)
        (lost,), more = _ABS.backward(seen, shapes, lines)
        constant = constant + more - self.bias_eps * forms.coef.abs().flatten(1).sum(dim=1)
        shape = shapes[0]
        whole = nominal.full(shape)
        return (whole.to(whole.coef + lost.full(shape).coef),), constant


def perturbed(graph: Graph, model: nn.Module, weights: Mapping[str, float]) -> Graph:
    """The graph with some of its parameters uncertain.

    Args:
        graph: as ``trace`` read it from the model.
        model: whose parameters are named.
        weights: name of a parameter, as ``model.named_parameters()`` has it → ε ≥ 0, a bound of every element's change.

    Raises:
        TypeError: if weights are named and the model is no module.
        ValueError: if a name is unknown, is no weight or bias of a dense layer or convolution, or an ε is negative.
    """
    if not weights:
        return graph
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want the module whose parameters weights names, got {type(model).__name__}")
    known = dict(model.named_parameters())
    unused = set(weights)
    for name, eps in weights.items():
        if name not in known:
            raise ValueError(f"weights: want names of parameters such as {next(iter(known))!r}, got {name!r}")
        if not 0 <= eps < float("inf"):
            raise ValueError(f"weights: want finite numbers of at least 0, got {eps} for {name!r}")

    def eps_of(tensor: Tensor | None) -> float:
        for name, eps in weights.items():
            if known[name] is tensor:
                unused.discard(name)
                return float(eps)
        return 0.0

    nodes = []
    for node in graph.nodes:
        if isinstance(node.op, (Linear, Conv)):
            both = eps_of(node.op.weight), eps_of(node.op.bias)
            if any(both):
                node = replace(node, op=Uncertain(node.op, *both))
        nodes.append(node)
    if unused:
        raise ValueError(f"weights: want weights and biases of dense layers and convolutions, got {sorted(unused)}")
    _used_once(graph, model, weights)
    return Graph(tuple(nodes))


def _used_once(graph: Graph, model: nn.Module, weights: Mapping[str, float]) -> None:
    """Change a copy's parameters, and see which other constants of the graph change with them."""
    for name in weights:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter(name).add_(1.0)
        own = model.get_parameter(name)
        for old, new in zip(graph.nodes, trace(other, graph.input_shape).nodes, strict=True):
            for key, value in vars(old.op).items() if old.op is not None else ():
                if not isinstance(value, Tensor) or torch.equal(value, getattr(new.op, key)):
                    continue
                if value is not own or not isinstance(old.op, (Linear, Conv)):
                    raise ValueError(
                        f"weights: {name!r} also enters node {old.name!r} in another way; want a parameter that dense "
                        "layers and convolutions use as it is"
                    )
