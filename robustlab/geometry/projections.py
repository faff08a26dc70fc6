"""Exact Euclidean projections of rows (N, d) onto balls (N, 1), their intersections with a box, and the simplex.

What :mod:`robustlab.geometry.norms` computes with. Each is found by sorting breakpoints, or by Newton's method on a
function that is piecewise linear, where it ends after a few steps. A box ``low`` ≤ u ≤ ``high`` always holds 0.

Source: Michelot, "A finite algorithm for finding the projection of a point onto the canonical simplex of Rⁿ" (1986)
for ℓ1 without the box; the versions with the box are worked out beside the code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clip(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``x`` between two ends, each a number or a tensor that broadcasts."""
    if _broadcast(x, low, high):
        return torch.minimum(torch.maximum(x, low), high)  # type: ignore[arg-type]
    return torch.clamp(x, low, high)  # type: ignore[arg-type]  # the stubs know two numbers or two tensors


def clip_(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``clip`` in place. Memory that is new costs more than the arithmetic on it."""
    if _broadcast(x, low, high):
        return x.clamp_min_(low).clamp_max_(high)
    return x.clamp_(low, high)  # type: ignore[arg-type]


def _broadcast(x: Tensor, low: float | Tensor, high: float | Tensor) -> bool:
    """Whether the ends are two tensors of another shape: a clamp between these takes three times as long as two."""
    return isinstance(low, Tensor) and isinstance(high, Tensor) and not (low.shape == high.shape == x.shape)


def l2_length(rows: Tensor) -> Tensor:
    """‖·‖₂ of each row, (N,), also where squares overflow or underflow."""
    length = torch.linalg.vector_norm(rows, dim=1)
    if _squares_hold(length):
        return length
    top = rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.linalg.vector_norm(rows / top, dim=1) * top.squeeze(1)


def onto_l2_box(rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """u_i = clip(s·δ_i, low, high) for the one s in [0, 1] at which ‖u‖₂ = ε."""
    clipped = clip(rows, low, high)
    outside = l2_length(clipped).unsqueeze(1) > eps
    if not bool(outside.any()):
        return clipped
    # As s ≤ 1, the room of an element is no more than what clipping leaves of it.
    scale = l2_filling(rows.abs(), clipped.abs_(), eps).clamp_max_(1.0)
    return clip_(rows * torch.where(outside, scale, 1.0), low, high)


def l2_filling(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """The s at which ‖min(s·size, room)‖₂ = ε; where room alone is shorter than ε, an s that fills it.

    ‖·‖² is concave and piecewise linear in s², so Newton's method, started where no element is full, climbs to the
    solution without passing it and ends there: each step but the last fills more elements (a handful of steps in
    practice). Masks are numbers 0 and 1, since selecting is ten times slower than a product.
    """
    info = torch.finfo(size.dtype)
    top = size.amax(dim=1, keepdim=True).clamp_min_(info.tiny)
    scaled = not _squares_hold(top)
    if scaled:
        size = size / top
    # An element is free, and grows with s, until it is full at s = room/size.
    full_at, square, goal = room / size, size.square(), eps.square()
    mask, filled = torch.empty_like(size), None

    def reached(spent: Tensor | None, rest: Tensor) -> Tensor:
        left = goal if spent is None else (goal - spent).clamp_min_(0)
        return (left / rest).sqrt_().nan_to_num_(0.0, info.max)

    rest = torch.gt(room, 0.0, out=mask).mul_(square).sum(dim=1, keepdim=True)
    scale = reached(None, rest)
    while True:
        before, rest = rest, torch.gt(full_at, scale, out=mask).mul_(square).sum(dim=1, keepdim=True)
        if torch.equal(rest, before):
            break
        filled = room.square() if filled is None else filled  # often nothing is full at all
        further = reached(torch.le(full_at, scale, out=mask).mul_(filled).sum(dim=1, keepdim=True), rest)
        if not bool((further > scale).any()):
            break
        scale = torch.maximum(scale, further)
    return (scale / top if scaled else scale).clamp_max_(info.max)


def onto_l1(rows: Tensor, eps: Tensor) -> Tensor:
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


def onto_l1_box(rows: Tensor, eps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """|u_i| = clip(|δ_i| − λ, 0, c_i) at the λ ≥ 0 that gives Σ|u_i| = ε.

    As λ falls from the largest |δ_i| to 0, element i starts to grow at |δ_i| and stops at |δ_i| − c_i. Between two
    of these 2d breakpoints Σ|u_i| is linear with a known slope, so its value at each is a cumulative sum.
    """
    size = rows.abs()
    room = room_of(rows, low, high)
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


def _squares_hold(size: Tensor) -> bool:
    """Whether sums of squares of this size neither overflow nor lose what matters to underflow; one wait for a GPU."""
    info = torch.finfo(size.dtype)
    return torch.equal(size, size.clamp((info.tiny / info.eps) ** 0.5, info.max**0.5 / 1e4))  # NaN equals nothing


def room_of(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far each element may go in the direction of its sign: high, −low, or 0 for an element that is 0."""
    return (rows.sign() * torch.finfo(rows.dtype).max).clamp(low, high).abs()


def _within(size: Tensor, eps: Tensor) -> Tensor:
    """Rounding of a threshold moves every element the same way, so a sum of many can pass ε: scale it back."""
    return size * (eps / size.sum(dim=1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)).clamp(max=1.0)


def keep_largest(rows: Tensor, score: Tensor, k: Tensor) -> Tensor:
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


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest point of {c : c ≥ 0, Σ c = 1} to each row of (M, P), exactly: max(v − θ, 0) at the θ that sums to 1.

    With v sorted downward, θ = (Σ_{i ≤ k} v_i − 1)/k for the largest k whose v_k is above that number.
    """
    ordered = rows.sort(dim=1, descending=True).values
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    theta = (ordered.cumsum(dim=1) - 1) / count
    k = (ordered > theta).sum(dim=1, keepdim=True).clamp_min(1)
    return (rows - theta.gather(1, k - 1)).clamp_min(0.0)
