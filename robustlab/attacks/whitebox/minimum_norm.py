"""What several minimum-norm attacks share: the nearest success so far, a search for the boundary, cosine annealing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustlab.attacker.losses import beyond
from robustlab.attacker.session import Session, beside
from robustlab.geometry.norms import Norm


class Closest:
    """For every sample the nearest point that meets the goal clearly, as ``Session.secure`` says.

    Attributes:
        points: (N, ...); x where nothing was found.
        distance: (N,); ∞ where nothing was found.
    """

    def __init__(self, session: Session, norm: Norm) -> None:
        self.session, self.norm = session, norm
        self.points = session.x.clone()
        self.distance = session.x.new_full(session.x.shape[:1], torch.inf)

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
        session, rows = self.session, self.distance.isfinite().nonzero().flatten()
        rows = rows[session.can_pay(rows)]
        if not rows.numel() or session.clean is None:
            return
        far = self.points[rows]
        inside, outside = torch.zeros_like(self.distance[rows]), torch.ones_like(self.distance[rows])
        below, above = excess(session, session.clean[rows], rows), excess(session, session.ask(far, rows).logits, rows)
        for _ in range(steps):
            paying = session.can_pay(rows)
            rows, far, inside, outside, below, above = (
                t[paying] for t in (rows, far, inside, outside, below, above)
            )  # fmt: skip
            if not rows.numel():
                break
            part = (below / (below - above)).nan_to_num_(0.5, 0.5, 0.5).clamp_(0.0, 1.0)
            where = torch.lerp(inside, outside, part)
            points = torch.lerp(session.x[rows], far, beside(where, far))
            points.clamp_(session.low, session.high)
            answer = session.ask(points, rows)
            won, value = session.secure(answer.logits, rows), excess(session, answer.logits, rows)
            self.keep(rows, points, self.norm.length(points - session.x[rows]), won)
            inside, below = torch.where(won, inside, where), torch.where(won, below, value)
            outside, above = torch.where(won, where, outside), torch.where(won, value, above)


def excess(session: Session, logits: Tensor, rows: Tensor) -> Tensor:
    """Goal margin − 1.01·spare, (n,)."""
    return session.goal_margin(logits, rows) - beyond(logits)


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` at step 0 to ``last`` at step ``steps``, along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
