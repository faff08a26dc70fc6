"""What several minimum-norm attacks share: the nearest success so far, a search for the boundary, cosine annealing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustlab.call import Call, beside
from robustlab.losses import beyond
from robustlab.norms import Norm


class Closest:
    """For every sample the nearest point that meets the goal clearly (:meth:`robustlab.call.Call.secure`).

    Attributes:
        points: (N, ...); x where nothing was found.
        distance: (N,); ∞ where nothing was found.
    """

    def __init__(self, call: Call, norm: Norm) -> None:
        self.call, self.norm = call, norm
        self.points = call.x.clone()
        self.distance = call.x.new_full(call.x.shape[:1], torch.inf)

    def keep(self, rows: Tensor, points: Tensor, length: Tensor, won: Tensor) -> None:
        """Take the ``points`` of the samples ``rows`` that ``won`` at a smaller ``length``."""
        # Smaller by more than rounding, so that of two points at one length the first is kept on every machine.
        better = (won & (length < (1 - 1e-6) * self.distance[rows])).nonzero().flatten()
        chosen = rows[better]
        self.points.index_copy_(0, chosen, points.index_select(0, better))
        self.distance[chosen] = length[better]

    def pull(self, steps: int = 3) -> None:
        """Move each point towards x, to where the segment between them crosses the boundary.

        Regula falsi on the goal margin: every step costs one query, and a success becomes the segment's far end.
        Source: Croce and Hein (2020), section 3, "Final search".
        """
        call, rows = self.call, self.distance.isfinite().nonzero().flatten()
        rows = rows[call.can_pay(rows)]
        if not rows.numel() or call.clean is None:
            return
        far = self.points[rows]
        inside, outside = torch.zeros_like(self.distance[rows]), torch.ones_like(self.distance[rows])
        below, above = excess(call, call.clean[rows], rows), excess(call, call.ask(far, rows).logits, rows)
        for _ in range(steps):
            paying = call.can_pay(rows)
            rows, far, inside, outside, below, above = (
                t[paying] for t in (rows, far, inside, outside, below, above)
            )  # fmt: skip
            if not rows.numel():
                break
            part = (below / (below - above)).nan_to_num_(0.5, 0.5, 0.5).clamp_(0.0, 1.0)
            where = torch.lerp(inside, outside, part)
            points = torch.lerp(call.x[rows], far, beside(where, far))
            points.clamp_(call.low, call.high)
            answer = call.ask(points, rows)
            won, value = call.secure(answer.logits, rows), excess(call, answer.logits, rows)
            self.keep(rows, points, self.norm.length(points - call.x[rows]), won)
            inside, below = torch.where(won, inside, where), torch.where(won, below, value)
            outside, above = torch.where(won, where, outside), torch.where(won, value, above)


def excess(call: Call, logits: Tensor, rows: Tensor) -> Tensor:
    """Goal margin − 1.01·spare, (n,)."""
    return call.goal_margin(logits, rows) - beyond(logits)


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` at step 0 to ``last`` at step ``steps``, along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
