"""Bounds of hidden layers with slopes of their own, optimized together for the bound of the output.

The interval of a hidden neuron comes from a backward pass too, and any 0 ≤ α ≤ 1 will do in it. So the bound of the
output is a function of the slopes of *all* passes: of those from the output, and of those from each neuron that is not
stable, which act through the chords that the neuron's interval fixes,

    max over α_out and α_hidden of  min {⟨a₀, x⟩ + c : x in the region},   a₀, c depending on all of them

Whatever the slopes, every interval on the way holds. The bound of the output rests on the intervals of the same step
alone: with tighter ones from elsewhere it need not be better, as the pass goes on to the input without them.

Source: Xu et al., "Fast and complete: Enabling complete verification with rapid and massively parallel incomplete
verifiers" (2021), section 3.1, where slopes of intermediate bounds are optimized jointly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Backward
from robustlab.verification.propagation.layers import BUDGET, Layers


def together(graph: Graph) -> int:
    """How many samples are optimized at once, since all passes of a step are in memory together."""
    neurons = sum(torch.Size(graph.nodes[i].shape).numel() for i in graph.pre_activations)
    return max(1, 16 * BUDGET // (graph.widest * max(1, neurons)))


@dataclass(eq=False)
class Slopes:
    """One slope for each form at each ReLU, made when a pass first arrives there.

    Attributes:
        graph, layers: as at the beginning; slopes start at their lines.
        found: (node and part of the pass, ReLU) → slopes as the forms stand there, in windows or in full.
        neurons: node → the neurons that its passes begin at, those of the first step.
    """

    graph: Graph
    layers: Layers
    found: dict[tuple[tuple[int, int], int], Tensor] = field(default_factory=dict)
    neurons: dict[int, Sequence[Tensor]] = field(default_factory=dict)

    def places(self, index: int, wanted: Tensor) -> Sequence[Tensor]:
        """As in the first step."""
        return self.neurons.setdefault(index, wanted.nonzero(as_tuple=True))

    def through(
        self, here: tuple[int, int], lines: Mapping[int, Any], bounds: Sequence[Bounds]
    ) -> Callable[[Node, Forms], Backward]:
        """The lines of the samples, but below each ReLU that is not stable the slope of the form."""

        def nonlinear(node: Node, forms: Forms) -> Backward:
            assert node.op is not None
            own, key = lines[node.index], (here, node.index)
            if isinstance(node.op, Hinge):
                if key not in self.found:
                    start = forms.pick(self.layers.lines[node.index].lower_slope)
                    self.found[key] = start.detach().expand_as(forms.coef).clone().requires_grad_()
                free = node.op.unstable(bounds[node.inputs[0]])[0].to(forms.coef.dtype)
                slope = torch.where(forms.pick(free) > 0, self.found[key], forms.pick(own.lower_slope))
                own = replace(own, lower_slope=slope, per_form=True)
            return node.op.backward(forms, [self.graph.nodes[i].shape for i in node.inputs], own)

        return nonlinear

    @property
    def variables(self) -> list[Tensor]:
        """All slopes."""
        return list(self.found.values())

    def clamp(self) -> None:
        """Back into their range."""
        with torch.no_grad():
            for (_, node), slope in self.found.items():
                op = self.graph.nodes[node].op
                assert isinstance(op, Hinge)
                slope.clamp_(op.left, op.right)
