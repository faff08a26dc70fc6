"""The one backward pass behind all linear-relaxation methods.

Forms ⟨a, z⟩ on the value of a node are carried to the input, node by node in reverse topological order; at each node
its operator's backward rule turns them into forms on its inputs, never larger, and a constant. Where a value is used
more than once, its coefficients add up. What arrives at the input is a linear lower bound,

    ⟨a, z(x)⟩  ≥  ⟨a₀, x⟩ + c      for all x in the region,

whose least value on the region is known in closed form.

Source: Zhang et al., "Efficient neural network robustness certification with general activation functions" (2018),
theorem 3.2; Xu et al., "Automatic perturbation analysis for scalable certified robustness and beyond" (2020), algorithm
1, for graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustlab.graph.affine import Add, Linear, ScaleShift
from robustlab.graph.conv import Conv
from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Elementwise
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Backward, Operator
from robustlab.graph.time_limit import tick
from robustlab.verification.propagation.region import Region, box_minimum

WIDEN = 32.0
"""Float32 bounds are moved outward by this many units of rounding of the sum of the absolute values of their terms.

The terms count, not the result: large terms that cancel leave a small result and a large error. Going forward, each
layer's interval is widened by its own terms. Going backward, what is lost at a layer with the coefficients a is at most
the same multiple of ⟨|a|, terms of the layer⟩.
"""


def backward(
    graph: Graph,
    lines: Mapping[int, Any],
    forms: Forms,
    start: int,
    extra: Mapping[int, Tensor] | None = None,
    terms: Mapping[int, Tensor] | None = None,
    nonlinear: Callable[[Node, Forms], Backward] | None = None,
) -> tuple[Forms, Tensor]:
    """Carry forms on the node ``start`` to the input.

    Args:
        graph: the network.
        lines: for every nonlinear node before ``start``, its relaxation.
        forms: R forms on the value of ``start``.
        start: index of a node.
        extra: for some nodes, coefficients (R, *shape) that are added to those that arrive there (the multipliers of
            constraints, in branch and bound).
        terms: what ``rounding_terms`` gave for the nodes; the constant is lowered by what rounding may lose there.
        nonlinear: what a nonlinear node does with the forms on it, in place of its operator's rule and its relaxation.

    Returns:
        Forms on the input, and the constant (R,).
    """
    pending: dict[int, Forms] = {start: forms}
    constant = forms.coef.new_zeros(forms.coef.shape[0])
    for node in reversed(graph.nodes[1 : start + 1]):
        here = pending.pop(node.index, None)
        if here is None:
            continue
        tick()
        if not isinstance(node.op, Elementwise):
            here = here.inside(node.shape)
        if extra is not None and node.index in extra:
            here = here.full(node.shape)
            here = here.to(here.coef + extra[node.index])
        if terms and node.index in terms:
            with torch.no_grad():  # slopes and multipliers climb by the derivatives of the exact bound
                lost = slack(_weighted(here, terms[node.index]))
            constant = constant - lost
        assert node.op is not None
        op, inputs = _with_scale(graph, node, terms, extra) if node.index in graph.scaled else (node.op, node.inputs)
        if nonlinear is not None and not op.affine:
            arriving, left = nonlinear(node, here)
        else:
            shapes = [graph.nodes[i].shape for i in inputs]
            arriving, left = op.backward(here, shapes, lines.get(node.index))
        constant = constant + left
        for i, part in zip(inputs, arriving, strict=True):
            pending[i] = pending[i].plus(part, graph.nodes[i].shape) if i in pending else part
    return pending[0].inside(graph.input_shape), constant


def _with_scale(
    graph: Graph, node: Node, terms: Mapping[int, Tensor] | None, extra: Mapping[int, Tensor] | None
) -> tuple[Operator, tuple[int, ...]]:
    """A scale and the convolution before it as one operator, and its inputs: its weights are far fewer than the
    coefficients. What either rounds is taken off where the forms stand, as ever."""
    before = graph.nodes[node.inputs[0]]
    assert isinstance(node.op, ScaleShift) and isinstance(before.op, Conv)
    alone = before.index not in (terms or {}) and before.index not in (extra or {})
    op = before.op.scaled(node.op) if alone else None
    return (node.op, node.inputs) if op is None else (op, before.inputs)


def concretize(region: Region, forms: Forms, constant: Tensor, *, exact: bool = True) -> Tensor:
    """The least value of ⟨a₀, x⟩ + c on the region, (R,), widened where rounding matters."""
    value = region.minimum(forms, exact=exact) + constant
    if value.dtype == torch.float64:
        return value
    with torch.no_grad():  # see ``backward``
        lost = slack(forms.to(forms.coef.abs()).against(region.hull.largest) + constant.abs())
    return value - lost


def rounding_terms(graph: Graph, bounds: Sequence[Bounds]) -> dict[int, Tensor]:
    """For every node that sums, the absolute sum of its terms, (N, *shape), from bounds of all nodes; {} in float64."""
    if bounds[0].lower.dtype == torch.float64:
        return {}
    found = dict[int, Tensor]()
    for node in graph.nodes[1 : len(bounds)]:
        assert node.op is not None
        terms = node.op.terms(*(bounds[i].largest for i in node.inputs))
        if terms is not None:
            found = taken_over(graph, node, {**found, node.index: terms})
    return found


def taken_over(graph: Graph, node: Node, terms: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The same terms, those of inputs that only a sum, a scale or a shift uses counted at that node.

    There the coefficients are a, and a or s·a at its inputs: ⟨|a|, t + |s|·t′⟩ is one product where ⟨|a|, t⟩ and
    ⟨|s·a|, t′⟩ are two. So batch norm, and the branches that meet in a residual network, cost nothing of their own.
    """
    found = dict(terms)
    if node.index in found and isinstance(node.op, (Add, ScaleShift)):
        for i in node.inputs:
            if i in found and graph.uses[i] == 1:
                part = found.pop(i)
                found[node.index] = found[node.index] + (part if isinstance(node.op, Add) else node.op.magnitude(part))
    return found


def _weighted(forms: Forms, terms: Tensor) -> Tensor:
    """⟨|a|, terms⟩, (R,); from above for windows, where each channel's largest terms stand for all its places."""
    if forms.window is None:
        return forms.to(forms.coef.abs()).against(terms)
    most = terms.flatten(2).amax(dim=2).index_select(0, forms.sample)
    return torch.linalg.vecdot(forms.coef.abs().sum(dim=(2, 3)), most)


def slack(scale: Tensor) -> Tensor:
    """How far a bound is moved outward that was summed from terms of this absolute sum: WIDEN units; 0 in float64."""
    return scale * (0.0 if scale.dtype == torch.float64 else WIDEN * torch.finfo(scale.dtype).eps)


def interval_bound(graph: Graph, layers: list[Bounds], forms: Forms, *, rounding: bool = True) -> Tensor:
    """Lower bounds of forms on the output from interval bounds of the last hidden layer, (R,).

    The last affine layer is merged into the forms ("elided"): one backward step, then the least value on the box of the
    node before. This is never looser than the intervals of the logits. With ``rounding=False``, as of
    ``interval_layers``, nothing is taken off in float32.

    Source: Gowal et al., "Scalable verified training for provably robust image classification" (2019), section 3.
    """
    node, constant = graph.nodes[-1], forms.coef.new_zeros(forms.coef.shape[0])
    done, rough = False, rounding and forms.coef.dtype != torch.float64
    while node.op is not None and node.op.affine and len(node.inputs) == 1 and not done:
        terms = node.op.terms(layers[node.inputs[0]].largest) if rough else None
        if terms is not None:
            constant = constant - slack(_weighted(forms, terms))
        (forms,), left = node.op.backward(forms, [graph.nodes[node.inputs[0]].shape], None)
        constant, done = constant + left, isinstance(node.op, (Linear, Conv))
        node = graph.nodes[node.inputs[0]]
    box = layers[node.index]
    value = box_minimum(box, forms) + constant
    if not rounding:
        return value
    return value - slack(forms.to(forms.coef.abs()).against(box.largest) + constant.abs())
