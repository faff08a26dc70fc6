"""A network with one hidden layer as matrices, and the quadratic form that bounds how far its output can move.

The derivation of the form stands in :mod:`~robustlab.verification.duals.sdp_certificate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab.graph.hinge import Clamp, Hinge
from robustlab.graph.node import Graph
from robustlab.graph.smooth import Smooth

SLOPES = {
    "tanh": (0.0, 1.0), "sigmoid": (0.0, 0.25), "softplus": (0.0, 1.0), "elu": (0.0, 1.0), "selu": (0.0, 1.7582),
    "gelu": (-0.13, 1.13), "gelu_by_tanh": (-0.13, 1.13), "silu": (-0.1, 1.1), "hardswish": (-0.5, 1.5),
}  # fmt: skip
"""Between what the derivatives of smooth activations lie."""


@dataclass(frozen=True, eq=False)
class Parts:
    """A network with one hidden layer: output = direct·x + outer·σ(inner·x + …) + …

    Attributes:
        inner: W, (m, d).
        outer: (K, m).
        direct: (K, d), what goes past the hidden layer.
        slopes: α and β.
    """

    inner: Tensor
    outer: Tensor
    direct: Tensor
    slopes: tuple[float, float]

    def coupling(self, C: Tensor) -> Tensor:
        """The matrices M (R, D, D) of R forms C (R, K) on the output, D = 1 + d + m, differentiable."""
        low, high = self.slopes
        v = C @ self.outer
        p = C @ self.direct + (v * ((low + high) / 2)) @ self.inner
        Q = self.inner.T * (v * ((high - low) / 2))[:, None]
        d = p.shape[1]
        half = torch.cat([p[:, :, None], p.new_zeros(len(p), d, d), Q], dim=2)  # the rows of t
        zero = half.new_zeros(len(p), 1, half.shape[2])
        upper = torch.cat([zero, half, half.new_zeros(len(p), Q.shape[2], half.shape[2])], dim=1)
        return upper + upper.mT


def parts_of(graph: Graph) -> Parts:
    """The matrices of a network with at most one nonlinear node.

    Raises:
        ValueError: naming a second nonlinear node, or one that is no function of one number.
    """
    hidden = graph.nonlinear[0] if graph.nonlinear else None
    if len(graph.nonlinear) > 1:
        second = graph.nonlinear[1]
        raise ValueError(f"model: want one hidden layer, got a second one, {second.op} at node {second.name!r}")
    weights = [v for n in graph.nodes if n.op for v in vars(n.op).values() if isinstance(v, Tensor)]
    like = next((w for w in weights if w.is_floating_point()), torch.zeros(()))
    d = torch.Size(graph.input_shape).numel()
    m = torch.Size(hidden.shape).numel() if hidden else 0

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the hidden layer, and the output, where the layer's own values are h."""
        values = [x.reshape(-1, *graph.input_shape)]
        for node in graph.nodes[1:]:
            assert node.op is not None
            before = [values[i] for i in node.inputs]
            values.append(h.reshape(-1, *node.shape) if node is hidden else node.op.forward(*before))
        return values[hidden.inputs[0] if hidden else 0].flatten(1)[:, :m], values[-1].flatten(1)

    zero, none = like.new_zeros(1, d), like.new_zeros(1, m)
    at_zero = run(zero, none)
    by_x = [found - first for found, first in zip(run(_eye(d, like), none.expand(d, m)), at_zero, strict=True)]
    by_h = run(zero.expand(m, d), _eye(m, like))[1] - at_zero[1] if m else like.new_zeros(0, at_zero[1].shape[1])
    return Parts(by_x[0].T, by_h.T, by_x[1].T, slopes_of(hidden.op, hidden.name) if hidden else (0.0, 1.0))


def slopes_of(op: object, name: str) -> tuple[float, float]:
    """Between what the derivative of an activation lies."""
    if isinstance(op, Hinge):
        return op.left, op.right
    if isinstance(op, Clamp):
        return 0.0, 1.0
    if isinstance(op, Smooth) and op.name in SLOPES:
        return SLOPES[op.name]
    raise ValueError(f"model: want a function of one number in the hidden layer, got {op} at node {name!r}")


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)
