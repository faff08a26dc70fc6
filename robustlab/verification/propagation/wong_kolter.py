"""The convex outer polytope of Wong and Kolter, bounded by a feasible point of its dual: a network run backwards.

Replace every ReLU by its triangle. The dual of the resulting linear program is a network with the transposed weights;
at its feasible point with ν = u/(u − l)·ν̂ at the unstable neurons, the dual objective is

    J = −Σ ν_{i+1}ᵀ b_i − xᵀν̂₁ − ε‖ν̂₁‖_q + Σ_i Σ_{j unstable} l_ij·max(ν_ij, 0)

The bounds l, u of one layer need the objective for ±e_j of every neuron j. As the paper does, they are computed all at
once by carrying matrices *forward*: the images of every input coordinate and of every unstable neuron so far, through
the layers with each ReLU replaced by its slope. No use is made of the backward engine, so that the theorem that these
bounds equal Fast-Lin's is a test of both.

Different from the paper: any graph of affine operators and ReLUs is taken (the images are carried along every edge),
and the ball is cut off by the box of valid inputs. In float32 every image carries a bound of its rounding errors, by
which the objective is lowered.

Source: Wong and Kolter, "Provable defenses against adversarial examples via the convex outer adversarial polytope"
(2018), theorem 1, equation 6 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from robustlab.geometry.norms import ProperNorm
from robustlab.graph.forms import Forms
from robustlab.graph.hinge import Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.verification.propagation.backward import slack
from robustlab.verification.propagation.certificate import Interval, certificate
from robustlab.verification.propagation.region import Region


@dataclass(frozen=True, eq=False)
class _Image:
    """A node's value as an affine function: constant + Σ_k x_k·columns_k + Σ_j d_j·columns_j.

    The first columns belong to the input, the others to the unstable neurons so far, whose deviations from their slope
    line are 0 ≤ d_j ≤ −l_j·u_j/(u_j − l_j).
    """

    constant: Tensor  # (N, *shape)
    columns: Tensor  # (N, columns, *shape)
    error: Tensor  # (N, *shape), what rounding may have changed; 0 in float64


def wong_kolter_bound(graph: Graph, region: Region, C: Tensor) -> Tensor:
    """Lower bounds (N, M) of C·output by the dual network."""
    n, hull = len(region), region.hull
    inputs = hull.lower[0].numel() if n else 0
    eye = torch.eye(inputs, dtype=C.dtype, device=C.device).reshape(1, inputs, *graph.input_shape)
    zero = torch.zeros_like(hull.lower)
    images = {0: _Image(zero, eye.expand(n, *eye.shape[1:]), zero)}
    most = C.new_zeros(n, 0)  # largest deviation of each unstable neuron so far
    for node in graph.nodes[1:]:
        before = [images[i] for i in node.inputs]
        if node.op is not None and node.op.affine:
            images[node.index] = _affine(region, node, before, most, inputs)
        elif isinstance(node.op, Hinge) and (node.op.left, node.op.right) == (0.0, 1.0):
            images[node.index], more = _relu(region, before[0], most, inputs)
            most = torch.cat([most, more], dim=1)
        else:
            raise ValueError(f"model: the dual network knows ReLUs alone, got {node.op} at node {node.name!r}")
    output = images[len(graph.nodes) - 1]
    C = C.expand(n, *C.shape[-2:])
    columns = _with(output.columns, most.shape[1] + inputs) @ C.transpose(1, 2)
    error = output.error + slack(_size(region, output, most, inputs))
    asked = _Image((C @ output.constant[..., None])[..., 0], columns, (C.abs() @ error[..., None])[..., 0])
    return _least(region, asked, most, inputs)


def wong_kolter(
    model: nn.Module | Graph,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    box: Interval | None = (0.0, 1.0),
) -> Certificate:
    """Certify by the dual of the convex outer polytope.

        J(ν) = −Σ ν_{i+1}ᵀ b_i − xᵀν̂₁ − ε‖ν̂₁‖_q + Σ l_ij·max(ν_ij, 0)  >  0   for every other class

    Args:
        model, x, y, norm, eps, box: as in :func:`robustlab.verification.certify`; the model's only nonlinear operators
            are ReLUs. Memory grows with inputs times neurons: for small networks.

    Returns:
        A :class:`~robustlab.attacker.results.Certificate`.

    Raises:
        ValueError, TypeError: as :func:`robustlab.verification.certify`; for another nonlinear operator.

    Source: Wong and Kolter (2018), theorem 1 and algorithm 1.
    """
    return certificate(wong_kolter_bound, "wong_kolter", model, x, y, norm=norm, eps=eps, box=box)


def _with(columns: Tensor, count: int) -> Tensor:
    """Columns of zeros added for neurons that came after."""
    missing = count - columns.shape[1]
    return torch.cat([columns, columns.new_zeros(columns.shape[0], missing, *columns.shape[2:])], dim=1)


def _affine(region: Region, node: Node, before: list[_Image], most: Tensor, inputs: int) -> _Image:
    """The operator on the constant, its linear part on each column; the errors add up, and new ones come."""
    assert node.op is not None
    count = most.shape[1] + inputs
    constant = node.op.forward(*(image.constant for image in before))
    grown = [_with(image.columns, count).flatten(0, 1) for image in before]
    offset = node.op.forward(*(torch.zeros_like(part[:1]) for part in grown))
    columns = node.op.forward(*grown) - offset
    columns = columns.reshape(constant.shape[0], count, *columns.shape[1:])
    if constant.dtype == torch.float64:
        return _Image(constant, columns, torch.zeros_like(constant))
    error = node.op.interval(*(Bounds(-image.error, image.error) for image in before)).radius
    terms = node.op.terms(*(_size(region, image, most, inputs) for image in before))
    return _Image(constant, columns, error if terms is None else error + slack(terms))


def _relu(region: Region, z: _Image, most: Tensor, inputs: int) -> tuple[_Image, Tensor]:
    """Scale by the slopes, and give every unstable neuron a column of its own."""
    shape, count = z.constant.shape[1:], inputs + most.shape[1]
    flat = _Image(z.constant.flatten(1), _with(z.columns, count).flatten(2), z.error.flatten(1))
    lower = _least(region, flat, most, inputs)
    upper = -_least(region, _Image(-flat.constant, -flat.columns, flat.error), most, inputs)
    slope = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, upper / (upper - lower)))
    unstable = (lower < 0) & (upper > 0)
    neurons = unstable.any(dim=0).nonzero().flatten()  # a neuron that is stable for some sample deviates by 0 there
    new = torch.zeros(len(neurons), unstable.shape[1], dtype=slope.dtype, device=slope.device)
    new = new.scatter(1, neurons[:, None], 1.0).expand(len(slope), -1, -1)
    columns = torch.cat([flat.columns * slope[:, None], new], dim=1)
    more = torch.where(unstable, -slope * lower, 0.0)[:, neurons]
    constant = (flat.constant * slope).reshape(-1, *shape)
    return _Image(constant, columns.reshape(*columns.shape[:2], *shape), z.error), more


def _least(region: Region, image: _Image, most: Tensor, inputs: int) -> Tensor:
    """The dual objective for every element, (N, D): least over the region and over the deviations."""
    n, _, d = image.columns.shape
    sample = torch.arange(n, device=image.columns.device).repeat_interleave(d)
    coef = image.columns[:, :inputs].transpose(1, 2).reshape(n * d, *region.hull.lower.shape[1:])
    over_input = region.minimum(Forms(coef, sample)).reshape(n, d)
    deviations = (image.columns[:, inputs:].clamp_max(0.0) * most[..., None]).sum(dim=1)
    return image.constant + over_input + deviations - image.error - slack(_size(region, image, most, inputs))


def _size(region: Region, image: _Image, most: Tensor, inputs: int) -> Tensor:
    """The absolute sum of the terms of an image, (N, *shape)."""
    count = image.columns.shape[1]
    factors = torch.cat([region.hull.largest.flatten(1), most[:, : count - inputs]], dim=1)
    return image.constant.abs() + (factors[:, None] @ image.columns.abs().flatten(2)).reshape(image.constant.shape)
