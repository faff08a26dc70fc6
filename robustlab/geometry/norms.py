"""The four measures of survey Table 3 as geometry: length, ball, projection, dual and steepest step.

For a batch of perturbations ``delta`` of shape (N, ...), everything works on the flattened rows.
All projections are exact Euclidean projections (:mod:`robustlab.geometry.projections`):

    project(δ, ε)                    = argmin_u ‖u − δ‖₂  subject to ‖u‖_p ≤ ε
    project_box(δ, ε, low, high)     = the same, subject to low ≤ u ≤ high as well (low ≤ 0 ≤ high)

``eps`` is a number or one value per sample, (N,). For ℓ0 it is a number of elements.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from robustlab.geometry.keyed import Draw, Noise
from robustlab.geometry.projections import (
    clip,
    clip_,
    keep_largest,
    l2_filling,
    l2_length,
    onto_l1,
    onto_l1_box,
    onto_l2_box,
    room_of,
)

NormName = Literal["l0", "l1", "l2", "linf"]
ProperNorm = Literal["l1", "l2", "linf"]
"""All but ℓ0, which is a count: what has a dual."""
Eps = float | Tensor


def get_norm(norm: NormName | Norm) -> Norm:
    """The norm called ``"l0"``, ``"l1"``, ``"l2"`` or ``"linf"``; raises ValueError for another name."""
    if isinstance(norm, Norm):
        return norm
    if norm not in NORMS:
        raise ValueError(f"norm: want one of {sorted(NORMS)}, got {norm!r}")
    return NORMS[norm]


def _column(eps: Eps, rows: Tensor) -> Tensor:
    """``eps`` as (N, 1) beside ``rows`` (N, d)."""
    eps = torch.as_tensor(eps, dtype=rows.dtype, device=rows.device)
    return eps.reshape(-1, 1).expand(rows.shape[0], 1)


class Norm(ABC):
    """A measure of size of a perturbation."""

    name: NormName
    dual_name: NormName

    @property
    def dual(self) -> Norm:
        """The dual norm, ‖w‖_* = max {⟨w, v⟩ : ‖v‖ ≤ 1}."""
        return get_norm(self.dual_name)

    def length(self, delta: Tensor) -> Tensor:
        """‖δ‖ of each sample, (N,)."""
        return self._length(delta.flatten(1))

    def project(self, delta: Tensor, eps: Eps) -> Tensor:
        """The nearest point of the ball of radius ``eps``."""
        rows = delta.flatten(1)
        return self._project(rows, _column(eps, rows)).reshape(delta.shape)

    def project_box(self, delta: Tensor, eps: Eps, low: Tensor, high: Tensor) -> Tensor:
        """The nearest point of ball ∩ box, where ``low`` ≤ 0 ≤ ``high`` bound δ element by element."""
        rows = delta.flatten(1)
        low, high = low.expand_as(delta).flatten(1), high.expand_as(delta).flatten(1)
        return self._project_box(rows, _column(eps, rows), low, high).reshape(delta.shape)

    def linear_max(self, grad: Tensor, eps: Eps, low: Tensor, high: Tensor) -> Tensor:
        """argmax {⟨grad, v⟩ : ‖v‖ ≤ eps, low ≤ v ≤ high}, exactly; 0 where the gradient is 0."""
        rows = grad.flatten(1)
        low, high = low.expand_as(grad).flatten(1), high.expand_as(grad).flatten(1)
        best = self._linear_max(rows.abs(), room_of(rows, low, high), _column(eps, rows))
        return (best * rows.sign()).reshape(grad.shape)

    def steepest(self, grad: Tensor) -> Tensor:
        """argmax {⟨grad, v⟩ : ‖v‖ ≤ 1}; zero where the gradient is zero (for ℓ0: one unit element)."""
        return self._steepest(grad.flatten(1)).reshape(grad.shape)

    def uniform(self, noise: Noise, draw: Draw, like: Tensor, eps: Eps) -> Tensor:
        """A point drawn uniformly from the ball (ℓ0: ``eps`` random elements, each uniform on [−1, 1])."""
        rows = like.flatten(1)
        point = self._uniform(noise, draw, rows.shape[1]).to(rows.dtype)
        return self._scale_uniform(point, _column(eps, rows), noise, draw).reshape(like.shape)

    def _scale_uniform(self, unit: Tensor, eps: Tensor, noise: Noise, draw: Draw) -> Tensor:
        return unit * eps

    @abstractmethod
    def _length(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def _project(self, rows: Tensor, eps: Tensor) -> Tensor: ...

    @abstractmethod
    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor: ...

    @abstractmethod
    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        """argmax {⟨size, v⟩ : ‖v‖ ≤ eps, 0 ≤ v ≤ room}; size and room are not negative."""

    @abstractmethod
    def _steepest(self, rows: Tensor) -> Tensor: ...

    @abstractmethod
    def _uniform(self, noise: Noise, draw: Draw, d: int) -> Tensor:
        """Uniform in the unit ball, (N, d), float64."""

    def __repr__(self) -> str:
        return self.name


class _Linf(Norm):
    name, dual_name = "linf", "l1"

    def _length(self, rows: Tensor) -> Tensor:
        return rows.abs().amax(dim=1)

    def _project(self, rows: Tensor, eps: Tensor) -> Tensor:
        return torch.minimum(rows, eps).clamp_min_(-eps)

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return clip_(clip(rows, low, high), -eps, eps)  # both hold 0

    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        return torch.minimum(room, eps)

    def _steepest(self, rows: Tensor) -> Tensor:
        return rows.sign()

    def _uniform(self, noise: Noise, draw: Draw, d: int) -> Tensor:
        return noise.uniform(draw, (d,), torch.float64, -1.0, 1.0)


class _L2(Norm):
    name, dual_name = "l2", "l2"

    def _length(self, rows: Tensor) -> Tensor:
        return l2_length(rows)

    def _project(self, rows: Tensor, eps: Tensor) -> Tensor:
        length = self._length(rows).unsqueeze(1)
        return rows * (eps / length.clamp_min(torch.finfo(rows.dtype).tiny)).clamp_max(1.0)

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return onto_l2_box(rows, eps, low, high)

    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        return torch.minimum(l2_filling(size, room, eps) * size, room)

    def _steepest(self, rows: Tensor) -> Tensor:
        return rows / self._length(rows).unsqueeze(1).clamp_min(torch.finfo(rows.dtype).tiny)

    def _uniform(self, noise: Noise, draw: Draw, d: int) -> Tensor:
        # The first d coordinates of a uniform point on the sphere of R^(d+2) are uniform in the ball of R^d.
        point = noise.normal(draw, (d + 2,), torch.float64)
        return (point / torch.linalg.vector_norm(point, dim=1, keepdim=True))[:, :d]


class _L1(Norm):
    name, dual_name = "l1", "linf"

    def _length(self, rows: Tensor) -> Tensor:
        return rows.abs().sum(dim=1)

    def _project(self, rows: Tensor, eps: Tensor) -> Tensor:
        return onto_l1(rows, eps)

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return onto_l1_box(rows, eps, low, high)

    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        """Fill elements in the order of their gradients until ε is spent."""
        order = size.argsort(dim=1, descending=True, stable=True)
        ordered = room.gather(1, order)
        spent = torch.nn.functional.pad(ordered.cumsum(1)[:, :-1], (1, 0))
        part = torch.minimum((eps - spent).clamp_min(0), ordered)
        return torch.zeros_like(size).scatter_(1, order, part)

    def _steepest(self, rows: Tensor) -> Tensor:
        top = rows.abs().argmax(dim=1, keepdim=True)
        return torch.zeros_like(rows).scatter_(1, top, rows.gather(1, top).sign())

    def _uniform(self, noise: Noise, draw: Draw, d: int) -> Tensor:
        # d of d + 1 exponentials over their sum are uniform in the simplex; random signs spread it over the ball.
        keys = (draw,) if isinstance(draw, int) else tuple(draw)
        size = noise.exponential((*keys, 0), (d + 1,), torch.float64)
        return (size / size.sum(1, keepdim=True))[:, :d] * noise.sign((*keys, 1), (d,), torch.float64)


class _L0(Norm):
    name, dual_name = "l0", "l0"

    @property
    def dual(self) -> Norm:
        """ℓ0 is not a norm and has no dual."""
        raise ValueError("norm: l0 is a count, not a norm, and has no dual; want 'l1', 'l2' or 'linf'")

    def _length(self, rows: Tensor) -> Tensor:
        # As numbers 0 and 1, which a CPU counts ten times as fast as bools.
        return torch.ne(rows, 0, out=torch.empty_like(rows)).sum(dim=1)

    def _project(self, rows: Tensor, eps: Tensor) -> Tensor:
        return keep_largest(rows, rows.square(), eps)

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Keeping element i at its clipped value u saves δ² − (δ − u)²: keep those that save most."""
        clipped = torch.maximum(torch.minimum(rows, high), low)
        return keep_largest(clipped, rows.square() - (rows - clipped).square(), eps)

    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        return keep_largest(room, size * room, eps)

    def _steepest(self, rows: Tensor) -> Tensor:
        return NORMS["l1"]._steepest(rows)

    def _uniform(self, noise: Noise, draw: Draw, d: int) -> Tensor:
        return noise.uniform(draw, (d,), torch.float64, -1.0, 1.0)

    def _scale_uniform(self, unit: Tensor, eps: Tensor, noise: Noise, draw: Draw) -> Tensor:
        keys = (draw,) if isinstance(draw, int) else tuple(draw)
        return keep_largest(unit, noise.uniform((*keys, 1), (unit.shape[1],), unit.dtype), eps)


NORMS: dict[NormName, Norm] = {norm.name: norm for norm in (_L0(), _L1(), _L2(), _Linf())}


def measure(delta: Tensor) -> dict[str, Tensor]:
    """All four lengths of each sample."""
    return {name: norm.length(delta) for name, norm in NORMS.items()}


def linear_distance(margin: Tensor, weight: Tensor, norm: ProperNorm | Norm) -> Tensor:
    """Distance from a point to the hyperplane where an affine ``margin`` with slope ``weight`` is zero.

        |margin| / ‖weight‖_q,   q dual to p

    Args:
        margin: (N,).
        weight: (N, ...), the margin's gradient.
        norm: in which the distance is measured; any but ℓ0.
    """
    length = get_norm(norm).dual.length(weight)
    return torch.where(length > 0, margin.abs() / length.clamp_min(torch.finfo(weight.dtype).tiny), math.inf)
