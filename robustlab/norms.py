"""The four measures of survey Table 3 as geometry: length, ball, projection, dual and steepest step.

For a batch of perturbations ``delta`` of shape (N, ...), everything works on the flattened rows.
All projections are exact Euclidean projections, found by sorting breakpoints, or by Newton's method on a function that
is piecewise linear, where it ends:

    project(δ, ε)                    = argmin_u ‖u − δ‖₂  subject to ‖u‖_p ≤ ε
    project_box(δ, ε, low, high)     = the same, subject to low ≤ u ≤ high as well (low ≤ 0 ≤ high)

``eps`` is a number or one value a sample, (N,). For ℓ0 it is a number of elements.

Source: Michelot, "A finite algorithm for finding the projection of a point onto the canonical simplex of Rⁿ" (1986)
for ℓ1 without the box; the versions with the box are worked out beside the code.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from robustlab.noise import Draw, Noise

Eps = float | Tensor


def get_norm(norm: str | Norm) -> Norm:
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

    name: str
    dual_name: str

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
        best = self._linear_max(rows.abs(), _room(rows, low, high), _column(eps, rows))
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
        return torch.maximum(torch.minimum(rows, eps), -eps)

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(rows, torch.minimum(eps, high)), torch.maximum(-eps, low))

    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        return torch.minimum(room, eps)

    def _steepest(self, rows: Tensor) -> Tensor:
        return rows.sign()

    def _uniform(self, noise: Noise, draw: Draw, d: int) -> Tensor:
        return noise.uniform(draw, (d,), torch.float64, -1.0, 1.0)


class _L2(Norm):
    name, dual_name = "l2", "l2"

    def _length(self, rows: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows, dim=1)
        if _squares_hold(length):
            return length
        top = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        return torch.linalg.vector_norm(rows / top, dim=1) * top.squeeze(1)

    def _project(self, rows: Tensor, eps: Tensor) -> Tensor:
        length = self._length(rows).unsqueeze(1)
        return rows * (eps / length.clamp_min(torch.finfo(rows.dtype).tiny)).clamp_max(1.0)

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """u_i = clip(s·δ_i, low, high) for the one s in [0, 1] at which ‖u‖₂ = ε."""
        clipped = rows.clamp(low, high)
        outside = self._length(clipped).unsqueeze(1) > eps
        if not bool(outside.any()):
            return clipped
        # As s ≤ 1, the room of an element is no more than what clipping leaves of it.
        scale = self._scale(rows.abs(), clipped.abs_(), eps).clamp_max_(1.0)
        return (rows * torch.where(outside, scale, 1.0)).clamp_(low, high)

    def _scale(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        """The s at which ‖min(s·size, room)‖₂ = ε; where room alone is shorter than ε, an s that fills it.

        ‖·‖² is concave and piecewise linear in s², so Newton's method, started where no element is full, climbs to the
        solution without passing it and ends there: each step but the last fills more elements (a handful of steps in
        practice). Masks are numbers 0 and 1, since selecting is ten times slower than a product.
        """
        info = torch.finfo(size.dtype)
        top = size.amax(dim=1, keepdim=True).clamp_min_(info.tiny)
        if _squares_hold(top):
            top = torch.ones_like(top)
        else:
            size = size / top
        square, goal, free = size.square(), eps.square(), torch.empty_like(size)

        def reached(spent: Tensor | float, rest: Tensor) -> Tensor:
            return ((goal - spent).clamp_min_(0) / rest).sqrt_().nan_to_num_(0.0, info.max)

        rest = torch.linalg.vecdot(torch.gt(room, 0.0, out=free), square).unsqueeze(1)
        scale = reached(0.0, rest)
        while True:
            before, rest = rest, torch.linalg.vecdot(torch.gt(room, scale * size, out=free), square).unsqueeze(1)
            if bool((rest == before).all()):
                break
            further = reached(torch.linalg.vecdot(free.neg_().add_(1), room.square()).unsqueeze(1), rest)
            if not bool((further > scale).any()):
                break
            scale = torch.maximum(scale, further)
        return (scale / top).clamp_max_(info.max)

    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        return torch.minimum(self._scale(size, room, eps) * size, room)

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
        """Soft-thresholding |u_i| = max(|δ_i| − λ, 0) at the λ that gives Σ|u_i| = ε.

        Σ|u_i| is convex and piecewise linear in λ, so Newton's method from 0 climbs to the solution without passing
        it: each step but the last sends more elements to 0, and a handful of steps is cheaper than a sort.
        """
        size = rows.abs()
        total = size.sum(dim=1, keepdim=True)
        inside = total <= eps
        threshold, left = torch.zeros_like(eps), torch.empty_like(size)
        count = torch.full_like(total, size.shape[1])
        while True:
            further = ((total - eps) / count).nan_to_num_(0.0)
            if not bool((further > threshold).any()):
                break
            threshold = torch.maximum(threshold, further)
            torch.gt(size, threshold, out=left)
            total = torch.linalg.vecdot(left, size).unsqueeze(1)
            count = left.sum(dim=1, keepdim=True)
        shrunk = (size - threshold).clamp_min_(0)
        return torch.where(inside, rows, _within(shrunk, eps).mul_(rows.sign()))

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """|u_i| = clip(|δ_i| − λ, 0, c_i) at the λ ≥ 0 that gives Σ|u_i| = ε.

        As λ falls from the largest |δ_i| to 0, element i starts to grow at |δ_i| and stops at |δ_i| − c_i. Between two
        of these 2d breakpoints Σ|u_i| is linear with a known slope, so its value at each is a cumulative sum.
        """
        size = rows.abs()
        room = _room(rows, low, high)
        clipped = torch.minimum(size, room)
        knots = torch.cat([size, (size - room).clamp_min(0)], dim=1)
        change = torch.cat([torch.ones_like(size), -torch.ones_like(size)], dim=1)
        knots, order = knots.sort(dim=1, descending=True)
        slope = change.gather(1, order).cumsum(1)  # elements growing just below each knot
        fall = knots[:, :-1] - knots[:, 1:]
        total = torch.nn.functional.pad((slope[:, :-1] * fall).cumsum(1), (1, 0))  # Σ|u_i| at each knot
        last = (total <= eps).sum(dim=1, keepdim=True) - 1  # the knot just before ε is reached
        gap = (eps - total.gather(1, last)) / slope.gather(1, last).clamp_min(1)
        threshold = (knots.gather(1, last) - gap).clamp_min(0)
        shrunk = torch.minimum((size - threshold).clamp_min(0), room)
        return torch.where(clipped.sum(1, keepdim=True) <= eps, clipped, _within(shrunk, eps)) * rows.sign()

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
        return (rows != 0).sum(dim=1).to(rows.dtype)

    def _project(self, rows: Tensor, eps: Tensor) -> Tensor:
        return _keep_largest(rows, rows.square(), eps)

    def _project_box(self, rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Keeping element i at its clipped value u saves δ² − (δ − u)²: keep those that save most."""
        clipped = torch.maximum(torch.minimum(rows, high), low)
        return _keep_largest(clipped, rows.square() - (rows - clipped).square(), eps)

    def _linear_max(self, size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
        return _keep_largest(room, size * room, eps)

    def _steepest(self, rows: Tensor) -> Tensor:
        return NORMS["l1"]._steepest(rows)

    def _uniform(self, noise: Noise, draw: Draw, d: int) -> Tensor:
        return noise.uniform(draw, (d,), torch.float64, -1.0, 1.0)

    def _scale_uniform(self, unit: Tensor, eps: Tensor, noise: Noise, draw: Draw) -> Tensor:
        keys = (draw,) if isinstance(draw, int) else tuple(draw)
        return _keep_largest(unit, noise.uniform((*keys, 1), (unit.shape[1],), unit.dtype), eps)


def _squares_hold(size: Tensor) -> bool:
    """Whether sums of squares of this size neither overflow nor lose what matters to underflow."""
    info = torch.finfo(size.dtype)
    low, high = torch.aminmax(size) if size.numel() else (size.new_ones(()), size.new_ones(()))
    return bool((low > (info.tiny / info.eps) ** 0.5) & (high < info.max**0.5 / 1e4))


def _room(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far each element may go in the direction of its sign: high, −low, or 0 for an element that is 0."""
    return (rows.sign() * torch.finfo(rows.dtype).max).clamp(low, high).abs()


def _within(size: Tensor, eps: Tensor) -> Tensor:
    """Rounding of a threshold moves every element the same way, so a sum of many can pass ε: scale it back."""
    return size * (eps / size.sum(dim=1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)).clamp(max=1.0)


def _keep_largest(rows: Tensor, score: Tensor, k: Tensor) -> Tensor:
    """Zero all but the ⌊k⌋ elements of highest score in each row; of equal ones the first stay."""
    count = torch.floor(k).clamp(0, rows.shape[1]).to(torch.int64)
    most = int(count.max()) if count.numel() else 0
    if most == 0:
        return torch.zeros_like(rows)
    last = score.topk(most, dim=1).values.gather(1, (count - 1).clamp_min(0))
    keep = score >= last
    if int(keep.sum()) != int(count.sum()):
        above = score > last
        tied = keep & ~above
        keep = above | (tied & (tied.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))
    return torch.where(keep, rows, 0.0)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (_L0(), _L1(), _L2(), _Linf())}


def measure(delta: Tensor) -> dict[str, Tensor]:
    """All four lengths of each sample."""
    return {name: norm.length(delta) for name, norm in NORMS.items()}


def linear_distance(margin: Tensor, weight: Tensor, norm: str | Norm) -> Tensor:
    """Distance from a point to the hyperplane where an affine ``margin`` with slope ``weight`` is zero.

        |margin| / ‖weight‖_q,   q dual to p

    Args:
        margin: (N,).
        weight: (N, ...), the margin's gradient.
        norm: in which the distance is measured; any but ℓ0.
    """
    length = get_norm(norm).dual.length(weight)
    return torch.where(length > 0, margin.abs() / length.clamp_min(torch.finfo(weight.dtype).tiny), math.inf)
