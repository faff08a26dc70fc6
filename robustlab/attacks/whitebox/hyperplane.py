"""The nearest point of a hyperplane within the box, in ℓ1, ℓ2 and ℓ∞.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (2020), section 2.2,
problem (4). For a point z of the box C, a slope w and a gap g it is

    min ‖v‖_p  subject to ⟨w, v⟩ = g,  z + v ∈ C

Every element moves, if at all, to where it helps: v_i = sign(g·w_i)·u_i with 0 ≤ u_i ≤ r_i, the room up to the bound.
What is left to find is

    ℓ∞   u_i = min(λ, r_i)             ⎫ the λ at which Σ_i |w_i|·u_i = |g|: this sum is concave and
    ℓ2   u_i = min(λ·|w_i|, r_i)       ⎭ piecewise linear in λ, so Newton's method from 0 climbs to it and ends
    ℓ1   u_i = r_i in the order of |w_i|, until the sum is |g|

Where even u = r does not reach |g|, hyperplane and box do not meet, and u = r, which comes nearest, is the answer.

Different here: Newton's method instead of the paper's sort of the breakpoints. It gives the same λ in a handful of
passes, each of which fills at least one more element. In ℓ1, where every element that moves is paid for, those stay
whose slope is below 1e-8 of the largest, which is rounding; the authors' code has such a limit too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacker.domain import Bound
from robustlab.geometry.norms import Norm

_ROUNDING = 1e-8  # relative to the largest slope


def to_hyperplane(norm: Norm, points: Tensor, slope: Tensor, gap: Tensor, low: Bound, high: Bound) -> Tensor:
    """The v of least ‖v‖_p with ⟨slope, v⟩ = gap and low ≤ points + v ≤ high.

    Args:
        norm: ℓ1, ℓ2 or ℓ∞.
        points: (..., n, d), in the box.
        slope: (n, d).
        gap: (..., n), of either sign.
        low, high: the box, numbers or (d,).

    Returns:
        v, the shape of ``points``.
    """
    info = torch.finfo(slope.dtype)
    size = slope.abs()
    top = size.amax(dim=-1, keepdim=True).clamp_min_(info.tiny)
    size, need = size / top, (gap.abs().unsqueeze(-1) / top).clamp_max_(info.max)  # squares stay finite
    sign = slope.sign() * gap.sign().unsqueeze(-1)
    room = torch.where(sign > 0, high - points, points - low).mul_(sign.abs())
    if norm.name == "l1":
        return _fill(size, room * (size > _ROUNDING), need).mul_(sign)
    return _stretch(size, size if norm.name == "l2" else torch.ones_like(size), room, need).mul_(sign)


def _fill(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """u = room in the order of ``size`` until ⟨size, u⟩ = need."""
    size, order = size.sort(dim=-1, descending=True)
    order = order.expand_as(room)
    room = room.gather(-1, order)
    gain = size * room
    short = need - gain.cumsum(dim=-1) + gain  # what is needed beyond the elements before
    part = torch.where(gain > 0, short / size, 0.0)
    return torch.empty_like(room).scatter_(-1, order, torch.minimum(part.clamp_min_(0), room))


def _stretch(size: Tensor, shape: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """u = min(λ·shape, room) at the λ for which ⟨size, u⟩ = need. Masks are numbers, which is faster than selecting."""
    most = torch.finfo(size.dtype).max
    rate, gain = size * shape, size * room
    free = torch.empty_like(room)
    scale = torch.zeros_like(need)
    torch.gt(room, 0.0, out=free)
    while True:
        rest = torch.linalg.vecdot(free, rate.expand_as(free)).unsqueeze(-1)
        spent = torch.linalg.vecdot(free.neg_().add_(1), gain).unsqueeze(-1)
        further = ((need - spent).clamp_min_(0) / rest).nan_to_num_(0.0, most)
        if not bool((further > scale).any()):
            return torch.minimum(scale * shape, room)
        scale = torch.maximum(scale, further)
        torch.gt(room, scale * shape, out=free)
