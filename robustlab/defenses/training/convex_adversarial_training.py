"""Training on the convex outer polytope, with random projections.

Wong, Schmidt, Metzen and Kolter, "Scaling provable adversarial defenses" (2018), train on the bound of Wong and Kolter,
"Provable defenses against adversarial examples via the convex outer adversarial polytope" (2018),

    minimize_θ  E_(x, y) CE(−J_ε(x, ν_θ(e_y − e_j)), y)

Every activation is a line through its chord and a deviation from it, f(z) = s·z + t + r·d with |d| ≤ 1, so that each
neuron is affine in the input and in the deviations before it. Half the width of its interval is the ℓ1 norm of its
coefficients, of which there are as many as inputs and neurons. They are not computed: for R standard Cauchy,

    ‖a‖₁ = median |Σ_i a_i·R_i|

since such a sum is Cauchy with that scale. So k random columns are carried forward through the layers in place of all,
and the median of their absolute values is an estimate, not a bound: these bounds serve training alone, and the net is
certified by ``wong_kolter`` or ``crown``. The margins themselves take one exact backward pass, as in the paper.

Different from the paper: input and deviations are projected together, since sums of Cauchy numbers are Cauchy numbers,
where the paper has a median for each layer's term; the ball is cut off by the box; any activation of one number is
taken, by the narrowest band along its chord, where the paper has ReLUs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustlab import checks
from robustlab.defenses.training.worst_case import Growth, WorstCase
from robustlab.geometry.keyed import Noise
from robustlab.graph.hinge import Elementwise, Lines
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.training.resuming import with_arguments
from robustlab.verification.propagation.backward import backward
from robustlab.verification.propagation.region import Region
from robustlab.verification.propagation.specification import as_forms

__all__ = ["convex_adversarial_training"]


class ConvexAdversarialTraining(WorstCase):
    """The objective that :func:`convex_adversarial_training` returns."""

    def __init__(self, growth: Growth, projections: int | None) -> None:
        super().__init__(growth)
        self.projections = projections

    def lower(self, graph: Graph, region: Region, C: Tensor, seed: int) -> Tensor:
        """J of each row of C, from bounds of the hidden layers that are estimated."""
        lines, forms = outer_lines(graph, region, self.projections, seed), as_forms(C, len(region))
        at_input, constant = backward(graph, lines, forms, len(graph.nodes) - 1)
        return (region.minimum(at_input) + constant).reshape(len(region), -1)


def outer_lines(graph: Graph, region: Region, projections: int | None, seed: int) -> dict[int, Lines]:
    """The bands of all activations, layer by layer.

    Each node has its value at the centers of input and deviations, (N, *shape), and columns (N, k, *shape): the images
    of random numbers, or, without projections, of each input and each deviation.
    """
    hull, noise = region.hull, Noise(seed, torch.zeros(1, dtype=torch.int64, device=region.hull.lower.device))

    def columns_of(radius: Tensor, draw: int) -> Tensor:
        """(N, k, *shape), what an independent deviation of each element in ±radius sends into the columns."""
        size = radius[0].numel()
        if projections is None:
            directions = torch.eye(size, dtype=radius.dtype, device=radius.device)
        else:
            uniform = noise.uniform(draw, (projections, size), radius.dtype)[0]
            directions = torch.tan(math.pi * (uniform - 0.5))
        return radius[:, None] * directions.reshape(1, -1, *radius.shape[1:])

    images = {0: (hull.center, columns_of(hull.radius, 0))}
    lines: dict[int, Lines] = {}
    for node in graph.nodes[1:]:
        assert node.op is not None
        before = [images[i] for i in node.inputs]
        if node.op.affine:
            count = max(columns.shape[1] for _, columns in before)
            grown = [_with(columns, count).flatten(0, 1) for _, columns in before]
            offset = node.op.forward(*(torch.zeros_like(part[:1]) for part in grown))
            center = node.op.forward(*(value for value, _ in before))
            images[node.index] = center, (node.op.forward(*grown) - offset).unflatten(0, (len(center), count))
        elif isinstance(node.op, Elementwise):
            center, columns = before[0]
            width = columns.abs().sum(dim=1) if projections is None else columns.abs().median(dim=1).values
            band = chord_band(node.op, Bounds(center - width, center + width))
            assert band.lower_bias is not None
            middle, radius = (band.upper_bias + band.lower_bias) / 2, (band.upper_bias - band.lower_bias) / 2
            old, new = columns * band.upper_slope[:, None], columns_of(radius, node.index)
            both = old + new if projections is not None else torch.cat([old, new], dim=1)
            images[node.index], lines[node.index] = (center * band.upper_slope + middle, both), band
        else:
            raise ValueError(f"model: the dual network knows functions of one number, got {node.op} at {node.name!r}")
    return lines


def chord_band(op: Elementwise, box: Bounds) -> Lines:
    """The narrowest band around f between l and u whose slope is the chord's."""
    l, u = box.lower, box.upper
    apart = u > l
    slope = (op.forward(u) - op.forward(l)) / torch.where(apart, u - l, torch.ones_like(l))
    turns = op.turns(torch.ones_like(l), slope.detach(), l, u)
    z = torch.stack([l, u, *(torch.minimum(torch.maximum(point, l), u) for point in turns)])
    over = op.forward(z) - slope * z
    return Lines(slope, slope, over.amax(dim=0), over.amin(dim=0))


def _with(columns: Tensor, count: int) -> Tensor:
    """Columns of zeros added for deviations that came after."""
    missing = count - columns.shape[1]
    return torch.cat([columns, columns.new_zeros(columns.shape[0], missing, *columns.shape[2:])], dim=1)


@with_arguments
def convex_adversarial_training(
    *,
    eps: float,
    kappa: float = 0.0,
    projections: int | None = 50,
    ramp: tuple[float, float] = (0.0, 0.5),
    evaluated_at: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> ConvexAdversarialTraining:
    """An objective for :func:`robustlab.training.fit.fit`: cross-entropy of the worst logits of the outer polytope.

        loss = 1/N Σ_i [ κ·CE(model(x_i), y_i) + (1 − κ)·log(1 + Σ_j exp(−J_ij)) ],   J_ij ≤ z_y − z_j within ε in ℓ∞

    Args:
        eps: the radius at the end, in units of x, above 0 and no wider than the box.
        kappa: κ at the end, in [0, 1]; 0, the default, is the paper's, in whose loss the clean term has no part.
        projections: k, at least 1, the random columns from which the widths of hidden intervals are estimated; the
            authors take 50. With None they are computed, at a cost and a memory of inputs plus neurons: for small nets.
        ramp: (start, end), the parts of the training between which ε and κ move, linearly; 0 ≤ start ≤ end < 1.
        evaluated_at: the radius at which the net will be certified; eps must not be below.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)``; the projections depend on the step's seed and are the same for all
        samples of a batch. With them its loss is no certificate.

    Raises:
        ValueError, TypeError: for an argument out of its range; by ``fit`` before any work, for a model with an
            operator without bounds, which is named.

    Source:
        Wong et al. (2018), section 3.2 and algorithm 2; Wong and Kolter (2018), theorem 1.
    """
    if projections is not None:
        checks.at_least("projections", projections, 1, integer=True)
    return ConvexAdversarialTraining(Growth(eps, kappa, ramp, evaluated_at, bounds), projections)
