"""SingleProp: training on a deviation that is carried along with the nominal activations.

Boopathy, Weng, Liu, Chen, Zhang and Daniel, "Fast training of provably robust neural networks by SingleProp" (2021):
interval arithmetic carries a center and a radius through the layers, beside the clean pass of the loss. SingleProp
takes the clean pass itself for the center. Beside the nominal values z goes one deviation v, as if the values of the
ball lay in z ± v, evenly to both sides,

    v = ε at the input,   v′ = |W|·v   at an affine layer,   v′ = ½·(range of the relaxed activation over z ± v)

and the worst logits are z_y − v_y and z_j + v_j. So a step costs one propagation more than a plain one. In between, an
activation is relaxed by two lines, and half of what they span is the new deviation; for a ReLU that is v where z ≥ v,
0 where z ≤ −v, and otherwise

    (z + v)/2                          with 0 as the line below (CNN-Cert-Zero), the authors' choice on MNIST
    3v/4 + z/2 − z²/(4v)               with the parallel line (Fast-Lin), their choice on CIFAR-10
    v where z ≥ 0, else (z + v)/2      with the adaptive line (CROWN)

**It is unsound.** The span is not even around the nominal value: a ReLU with z = 0 takes values in [0, v], of which
0 ± v/2 covers half. So these numbers are a surrogate to train on, never a certificate, nor is the loss a bound of any
attack's. The net is certified afterwards by a verifier that knows nothing of it, such as ``crown``.

Different here: activations of all kinds are taken, by the lines that the verifiers have for them; the schedules are
parts of the training, as in :func:`~robustlab.defenses.ibp_training`; of the authors' two weights of the clean loss
there is the scheduled one, not the one that is adapted after each epoch. In the authors' code the branch for CROWN's
lines tests z ≥ 0 twice, so that it never meets z < 0; here it is as its bound says. As there, the deviation at the
input is ε in the ball, not cut off by the box, and the margins are taken from the logits, not merged with their layer.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.training.worst_case import Growth, WorstCase
from robustlab.graph.arithmetic import full_precision
from robustlab.graph.hinge import Elementwise, Lines
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph, Node
from robustlab.graph.operators import Affine, Rule
from robustlab.graph.tracing import trace
from robustlab.models.normalize import Normalize
from robustlab.training.resuming import with_arguments
from robustlab.verification.propagation.region import Ball, Region

__all__ = ["singleprop"]

ReluLine = Literal["zero", "parallel", "adaptive"]
STATELESS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Flatten, nn.Identity, nn.MaxPool2d,
             nn.AvgPool2d, nn.LeakyReLU, nn.Softplus, Normalize)  # fmt: skip


class SingleProp(WorstCase):
    """The objective that :func:`singleprop` returns."""

    def __init__(self, growth: Growth, relu: ReluLine) -> None:
        super().__init__(growth)
        self.relu = relu

    def lower(self, graph: Graph, region: Region, C: Tensor, seed: int) -> Tensor:
        """C·z − |C|·v: no bound of anything, see the module's text."""
        assert isinstance(region, Ball)
        z, v = self.propagate(graph, region)
        return (C @ z[..., None] - C.abs() @ v[..., None])[..., 0]

    def propagate(self, graph: Graph, ball: Ball) -> tuple[Tensor, Tensor]:
        """The output at the centers of the balls, and its deviation, (N, K) each."""
        eps = torch.as_tensor(ball.eps).reshape(-1, *[1] * (ball.x.dim() - 1))
        at = [(ball.x, eps.expand_as(ball.x))]
        for node in graph.nodes[1:]:
            assert node.op is not None
            before = [at[i] for i in node.inputs]
            at.append((node.op.forward(*(z for z, _ in before)), self.deviation(node, before)))
        return at[-1]

    def deviation(self, node: Node, before: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Of a node's value, from the values and deviations of its inputs."""
        op = node.op
        assert op is not None
        if isinstance(op, Affine):
            return op.magnitude(before[0][1])
        ends = [Bounds(z - v, z + v) for z, v in before]
        if isinstance(op, Elementwise) and self.relu != "zero":
            return half_span(op.relax(Rule(relu=self.relu), *ends), ends[0])
        return op.interval(*ends).radius

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean loss of a batch. Where training and evaluation are one, the clean logits are those of the pass."""
        kappa = self.growth.kappa
        if not 0 < kappa < 1 or any(type(part) not in (nn.Sequential, *STATELESS) for part in model.modules()):
            return super().__call__(model, x, y, ids=ids, seed=seed)
        z, v = self.together(model, x)
        moved = torch.where(F.one_hot(y, z.shape[1]).bool(), z - v, z + v)
        return kappa * F.cross_entropy(z, y) + (1 - kappa) * F.cross_entropy(moved, y)

    @full_precision()
    def together(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and their deviations, in one pass."""
        checks.images(x, self.growth.bounds, takes="bounds={}")
        return self.propagate(trace(model, x.shape[1:]), Ball(x, self.growth.eps, "linf", self.growth.bounds))


def half_span(lines: Lines, box: Bounds) -> Tensor:
    """Half the way from the lowest point of the line below to the highest of the line above."""
    above = torch.maximum(lines.upper_slope * box.lower, lines.upper_slope * box.upper) + lines.upper_bias
    below = torch.minimum(lines.lower_slope * box.lower, lines.lower_slope * box.upper)
    return (above - (below if lines.lower_bias is None else below + lines.lower_bias)) / 2


@with_arguments
def singleprop(
    *,
    eps: float,
    kappa: float = 0.5,
    relu: ReluLine = "zero",
    ramp: tuple[float, float] = (0.05, 0.5),
    evaluated_at: float | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> SingleProp:
    """An objective for :func:`robustlab.training.fit.fit`: clean loss and loss of logits moved by a deviation.

        loss = 1/N Σ_i [ κ·CE(z_i, y_i) + (1 − κ)·CE(z_i + s_i·v_i, y_i) ],   s = −1 at the label, 1 elsewhere

    The deviation v is unsound: what this loss says of a ball is no certificate. Certify the trained net by ``crown``.

    Args:
        eps: the radius at the end, in units of x, above 0 and no wider than the box.
        kappa: κ at the end, in [0, 1]; it falls from 1 as ε grows from 0.
        relu: which line stands below a ReLU in the deviation: ``"zero"`` (the authors' on MNIST), ``"parallel"`` (on
            CIFAR-10) or ``"adaptive"``. With ``"zero"``, other activations have half their range, without lines.
        ramp: (start, end), the parts of the training between which ε and κ move, linearly; 0 ≤ start ≤ end < 1.
        evaluated_at: the radius at which the net will be certified; eps must not be below.
        bounds: the box of the inputs; a batch outside it is refused.

    Returns:
        An objective ``(model, x, y, *, ids, seed)`` without randomness. Outside ``fit`` it is as at the end of the
        training.

    Raises:
        ValueError, TypeError: for an argument out of its range; by ``fit`` before any work, for a model with an
            operator without bounds, which is named.

    Source:
        Boopathy et al. (2021); the three deviations as in the authors' code, ``cnn_train.py``.
    """
    checks.one_of("relu", relu, ("zero", "parallel", "adaptive"))
    return SingleProp(Growth(eps, kappa, ramp, evaluated_at, bounds), relu)
