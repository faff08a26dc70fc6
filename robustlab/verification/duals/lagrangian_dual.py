"""The Lagrangian dual: every multiplier gives a bound, and the best one is looked for.

Ask for the least value of ⟨c, z_L⟩ over a region and take the network as a list of constraints. The affine layers are
solved for; each nonlinear one, z′ = f(z), is kept with a multiplier μ on its input. For whatever μ,

    min ⟨c, output⟩  ≥  Σ min {⟨a, f(z)⟩ − ⟨μ, z⟩ : l ≤ z ≤ u}  +  min {⟨a₀, x⟩ : x in the region}  +  constants

where the sum is over the nonlinear nodes, a is what arrives at a node's output from those behind it, and a₀ what
arrives at the input (weak duality). Each inner minimum has a closed form. The right side is concave in μ, so ascent
finds the largest bound that duality has: with ReLUs, that of the linear program over triangles. CROWN is one choice of
μ, at which the ascent starts here.

Different from the paper: its multipliers λ of the activations' values are eliminated, λ = a, since a value between f(l)
and f(u) follows from l ≤ z ≤ u; any graph with max-pooling and products is taken, not chains alone; the ascent is
Adam's, with the best bound of each row kept. The bounds l, u of the hidden layers are CROWN's and are not optimized.

Source: Dvijotham, Stanforth, Gowal, Mann and Kohli, "A dual approach to scalable verification of deep networks" (2018),
equations 4 to 6 and section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.geometry.adam import Adam
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.forms import Forms
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Backward
from robustlab.verification.propagation.ascent import bound_by_ascent
from robustlab.verification.propagation.backward import backward, concretize, rounding_terms, slack
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.layers import Layers
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms

__all__ = ["lagrangian_dual"]


class Multipliers:
    """The multipliers of R forms at all nonlinear nodes, as what is free to move in them.

        μ = s·a + σ·ν

    The secants s are CROWN's slopes at the start, where ν = 0; they are held, so that the bound is concave in all ν.
    With them a neuron that is stable needs no search. σ is the largest coefficient at the node: ν has no unit.

    Args:
        graph, layers: the network, and what ``layer_bounds`` gave.
    """

    def __init__(self, graph: Graph, layers: Layers) -> None:
        self.graph, self.layers = graph, layers
        self.secants: dict[int, tuple[Tensor, ...]] = {}
        self.scale: dict[int, Tensor] = {}
        self.free: dict[int, tuple[Tensor, ...]] = {}

    def __call__(self, node: Node, forms: Forms) -> Backward:
        """What a nonlinear node does with the forms on its output."""
        assert node.op is not None
        i, shapes = node.index, [self.graph.nodes[k].shape for k in node.inputs]
        if i not in self.free:  # the first pass
            secants = node.op.secants(forms, self.layers.lines[i])
            self.secants[i] = tuple(s.detach() for s in secants)
            self.scale[i] = forms.coef.detach().abs().flatten(1).amax(dim=1)
            self.free[i] = tuple(torch.zeros_like(s).requires_grad_() for s in secants)
        extra = [nu * self.scale[i].reshape(-1, *[1] * (nu.dim() - 1)) for nu in self.free[i]]
        inputs = [self.layers.bounds[k] for k in node.inputs]
        priced = node.op.priced(forms, shapes, self.secants[i], extra, inputs)
        return priced.forms, priced.least - slack(priced.terms) / 8

    @property
    def variables(self) -> list[Tensor]:
        """All ν."""
        return [nu for some in self.free.values() for nu in some]


def dual_bound(graph: Graph, region: Region, C: Tensor, layers: Layers, *, steps: int = 100, lr: float = 0.1) -> Tensor:
    """Lower bounds (N, M) of C·output by ascent on the multipliers.

    Args:
        graph: the network.
        region: N sets of inputs.
        C: (N, M, K), or (M, K) for all.
        layers: what ``layer_bounds`` gave with the same region.
        steps: of ascent; each is one pass back through the network and one forward. 0 gives the bound at the start.
        lr: size of the first step, in units of each node's largest coefficient; it falls to lr/1000.
    """
    forms, terms = as_forms(C, len(region)), rounding_terms(graph, layers.bounds)
    multipliers, ascent = Multipliers(graph, layers), None
    best = forms.coef.new_full((len(forms.sample),), -torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            at_input, constant = backward(
                graph, layers.lines, forms, len(graph.nodes) - 1, terms=terms, nonlinear=multipliers
            )
            value = concretize(region, at_input, constant)
            loss = -value.sum()
        best = torch.maximum(best, value.detach())
        if step == steps or not multipliers.variables:
            break
        ascent = ascent or Adam(multipliers.variables)
        ascent.step(torch.autograd.grad(loss, multipliers.variables), lr * 0.001 ** (step / steps))
    return best.reshape(len(region), -1)


def lagrangian_dual_bound(
    graph: Graph, region: Region, C: Tensor, *, intersect: bool = True, steps: int = 100, lr: float = 0.1
) -> Tensor:
    """Lower bounds (N, M) of C·output by the best multipliers found; detached."""

    def bound(some: Region, rows: Tensor, layers: Layers) -> Tensor:
        return dual_bound(graph, some, rows, layers, steps=steps, lr=lr)

    return bound_by_ascent(bound, graph, region, C, intersect=intersect, steps=steps, lr=lr)


def lagrangian_dual(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
    steps: int = 100,
    lr: float = 0.1,
    intersect: bool = True,
) -> Certificate:
    """Certify by the Lagrangian dual of the network's layers.

        max over μ of  Σ min {⟨a, f(z)⟩ − ⟨μ, z⟩ : l ≤ z ≤ u}  +  min {⟨a₀, x⟩ : x in the region}  +  constants

    Args:
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`.
        steps: of ascent on the multipliers, at least 0; a proof holds after any number of them.
        lr: size of the first step, above 0, in units of each node's largest coefficient; it falls to a
            thousandth.
        intersect: intersect every bound with interval arithmetic.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for an argument out of its range.

    Source: Dvijotham et al. (2018), equations 4 to 6; for the multipliers on activations see the module's text.
    """

    def bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
        return lagrangian_dual_bound(graph, region, C, intersect=intersect, steps=steps, lr=lr)

    return certificate(bound, "lagrangian_dual", model, x, y, norm=norm, eps=eps, box=box)
