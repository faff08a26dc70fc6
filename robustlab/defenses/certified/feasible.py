"""The sets of training points that a sphere and a slab let through, and the point of each that lies farthest along v.

    F_y = { x : ‖x − μ_y‖₂ ≤ R_y,  |⟨x − μ_y, u⟩| ≤ S_y },   u = (μ₊ − μ₋)/‖μ₊ − μ₋‖₂     (and x ≥ 0, if that is known)

Source: Steinhardt, Koh and Liang, "Certified defenses for data poisoning attacks" (2017), equations 4 and 5. Different
here: the slab is measured along the unit vector u, so that its width is a length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab.attacker.results import Result

_GRID, _ROUNDS = 16, 13  # the slab's multiplier is enclosed 15 times more tightly in each round


@dataclass(frozen=True, eq=False, repr=False)
class Feasible(Result):
    """What a defender keeps: one set for each of the classes 0 and 1.

    Attributes:
        center: (2, d), the classes' means μ.
        direction: (d,), the unit vector u.
        radius, width: (2,), R_y and S_y; ∞ where the sphere or the slab is not used.
        nonnegative: whether x ≥ 0 is required, too.
    """

    center: Tensor
    direction: Tensor
    radius: Tensor
    width: Tensor
    nonnegative: bool = False

    def keeps(self, x: Tensor, y: Tensor, slack: float = 1e-9) -> Tensor:
        """(N,) bool: whether each point (N, d) of class y (N,) is in its class's set, up to a relative slack."""
        away = x - self.center[y]
        kept = away.norm(dim=1) <= self.radius[y] * (1 + slack)
        kept &= (away @ self.direction).abs() <= self.width[y] * (1 + slack)
        return kept & (x >= -slack).all(dim=1) if self.nonnegative else kept

    def farthest(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """max ⟨v_y, x⟩ over F_y for each class y.

        Args:
            v: (2, d). Where v_y = 0 the point is μ_y.

        Returns:
            Points (2, d), and upper bounds (2,) of the maxima. Without x ≥ 0 both are in closed form. With it, the
            bound is the dual's value, which is valid wherever its search ends; the point is inside and reaches it to
            rounding.
        """
        if self.nonnegative:
            return self._farthest_above_zero(v)
        along = v @ self.direction
        across = v - along[:, None] * self.direction
        # Once more, for a v so nearly along u that what is left is no larger than what rounding leaves along u.
        across = across - (across @ self.direction)[:, None] * self.direction
        # x − μ lies in the plane of u and v. Along u it is what the sphere alone asks for, or the slab's end.
        size = v.norm(dim=1)
        wish = self.radius * (along / size).nan_to_num(0.0)
        first = torch.minimum(wish.abs(), self.width) * wish.sign()
        rest = (self.radius**2 - first**2).clamp_min(0).sqrt()
        # Where v is parallel to u any direction across serves as well as any other, and none is taken.
        length = across.norm(dim=1)
        unit = torch.where((length > 1e-12 * size)[:, None], across / length[:, None], 0.0)
        points = self.center + first[:, None] * self.direction + rest[:, None] * unit
        return points, (v * points).sum(dim=1)

    def _farthest_above_zero(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """By the slab's multiplier λ: max ⟨v − λu, x − μ⟩ + S|λ| over the sphere and x ≥ 0 is least at the right λ."""
        free = _in_sphere(v, self.center, self.radius) - self.center
        side = (free @ self.direction).sign()
        over = (free @ self.direction).abs() > self.width
        # The dual is at least S·λ, and at most ‖v‖R at λ = 0: its minimum is not beyond ‖v‖R/S.
        high = torch.where(over, 1.01 * v.norm(dim=1) * self.radius / self.width, 0.0)
        low = torch.zeros_like(high)
        steps = torch.linspace(0, 1, _GRID, dtype=v.dtype, device=v.device)
        for _ in range(_ROUNDS):
            lam = low + (high - low) * steps[:, None]  # (grid, 2)
            beyond = self._along(v, lam, side) > self.width
            last = (beyond.long().cumprod(dim=0).sum(dim=0) - 1).clamp(0, _GRID - 2)[None]
            low, high = lam.gather(0, last)[0], lam.gather(0, last + 1)[0]
        ends = [self._led_to(v, lam * side) for lam in (low, high)]
        reach = [(end - self.center) @ self.direction * side for end in ends]
        share = ((self.width - reach[1]) / (reach[0] - reach[1])).nan_to_num(0.0, 0.0, 0.0).clamp(0, 1)
        points = torch.where(over[:, None], ends[1] + share[:, None] * (ends[0] - ends[1]), free + self.center)
        tilted = v - (high * side)[:, None] * self.direction
        slab = torch.where(over, high * self.width, 0.0)
        value = (tilted * (ends[1] - self.center)).sum(dim=1) + slab + (v * self.center).sum(dim=1)
        return points, value

    def _led_to(self, v: Tensor, lam: Tensor) -> Tensor:
        """The points (..., 2, d) that multipliers (..., 2) of the slab lead to."""
        return _in_sphere(v - lam[..., None] * self.direction, self.center, self.radius)

    def _along(self, v: Tensor, lam: Tensor, side: Tensor) -> Tensor:
        """How far along ±u those points lie, which falls in λ: the slope of the dual is S less that."""
        return (self._led_to(v, lam * side) - self.center) @ self.direction * side


def _in_sphere(c: Tensor, center: Tensor, radius: Tensor) -> Tensor:
    """argmax ⟨c, x⟩ over ‖x − μ‖₂ ≤ R, x ≥ 0, for c (..., 2, d), μ (2, d) ≥ 0, R (2,).

    x = max(0, μ + t·c), and t is where ‖x − μ‖ = R. Coordinate j of c < 0 is at 0 once t ≥ −μ_j/c_j; between two such
    times ‖x − μ‖² is a number plus t² times another, so t follows in closed form.
    """
    center = center.expand_as(c)
    at_zero = torch.where(c < 0, -center / c, torch.inf)  # the time at which each coordinate arrives
    when, order = at_zero.sort(dim=-1)
    zero = torch.zeros_like(when[..., :1])
    resting = torch.cat([zero, center.gather(-1, order).square().cumsum(dim=-1)], dim=-1)  # j coordinates at 0
    moving = c.square().gather(-1, order).flip(-1).cumsum(dim=-1).flip(-1)
    moving = torch.cat([moving, zero], dim=-1)
    until = torch.cat([when, torch.full_like(zero, torch.inf)], dim=-1)
    t = ((radius[:, None] ** 2 - resting).clamp_min(0) / moving).sqrt()
    t = torch.where(moving == 0, torch.inf, t)
    j = (t <= until).long().argmax(dim=-1, keepdim=True)  # the first span in which the sphere is reached
    t = t.gather(-1, j)
    moved = torch.where(c == 0, center, center + t * c)  # t = ∞: all that can go has gone to 0
    return moved.clamp_min(0)
