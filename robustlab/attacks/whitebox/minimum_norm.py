"""What minimum-norm attacks share: leading classes, the boundary on the way to a success, annealing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import rivals
from robustlab.attacker.parts import beside
from robustlab.attacker.session import Session
from robustlab.geometry.norms import Norm
from robustlab.geometry.projections import clip


def leading_classes(session: Session, count: int) -> Tensor:
    """(N, C): the classes whose boundaries are considered, y first, then the largest other logits at x."""
    if session.clean is None:
        return session.y[:, None]
    return torch.cat([session.y[:, None], rivals(session.clean, session.y)], dim=1)[:, :count]


def pull(session: Session, best: Best, norm: Norm, steps: int = 3) -> None:
    """Move each nearest success towards x, to where the segment between them crosses the boundary.

    Regula falsi on the goal margin: every step costs one query, and a success becomes the segment's far end.
    Source: Croce and Hein (2020), section 3, "Final search".
    """
    if session.clean is None:
        return
    live = session.live(best.value.isfinite(), clean=session.clean)
    live.far = best.points if live.place is None else best.points[live.place]
    live.keep(session.can_pay(live))
    if not len(live):
        return
    live.inside, live.outside = torch.zeros_like(best.of(live)), torch.ones_like(best.of(live))
    live.below = excess(session, live.clean, live)
    live.above = excess(session, session.ask(live.far, live).logits, live)
    for _ in range(steps):
        live.keep(session.can_pay(live))
        if not len(live):
            break
        part = (live.below / (live.below - live.above)).nan_to_num_(0.5, 0.5, 0.5).clamp_(0.0, 1.0)
        where = torch.lerp(live.inside, live.outside, part)
        points = torch.lerp(live.x, live.far, beside(where, live.far))
        points = clip(points, session.low, session.high)
        answer = session.ask(points, live)
        won, value = session.secure(answer.logits, live), excess(session, answer.logits, live)
        best.keep(live, points, norm.length(points - live.x), won)
        live.inside, live.below = torch.where(won, live.inside, where), torch.where(won, live.below, value)
        live.outside, live.above = torch.where(won, where, live.outside), torch.where(won, value, live.above)


def excess(session: Session, logits: Tensor, live: Live) -> Tensor:
    """Goal margin − the margin aimed at, (n,)."""
    return session.goal_margin(logits, live) - session.beyond(logits, live)


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` at step 0 to ``last`` at step ``steps``, along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
