"""The loop that transfer attacks share: descent on models of their own, for the samples of a victim."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlab.attacker.composition import gradient_through
from robustlab.attacker.live import Live
from robustlab.attacker.losses import AttackerLoss
from robustlab.attacker.parts import beside
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Victim
from robustlab.attacks.whitebox.pgd import begin, step
from robustlab.geometry.norms import Norm, get_norm
from robustlab.progress import bar

View = Callable[[Tensor], Tensor]


def descend(
    own: Victim,
    session: Session,
    at: Live,
    ball: Norm,
    g: AttackerLoss,
    steps: int,
    *,
    momentum: float = 0.0,
    view: Callable[[Live, int], View] | None = None,
    smooth: View | None = None,
    label: str,
    progress: bool = False,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """``at.points`` moved from x by K steps down the loss g of the attacker's own model, inside ball and box.

        m ← μ·m + ∇/‖∇‖₁,    δ ← P( δ − α·v(m) )        v: the steepest unit step of the norm

    All K steps are taken, whatever the own model says before, since what fools it barely seldom fools another; a
    sample that it takes for another class at x is worked on too, because the victim does not.

    Args:
        own: what gradients are asked of.
        session: the victim's, who is asked nothing here.
        at: its live samples, with ``at.eps`` and the step size ``at.alpha``.
        ball: the norm.
        g: attacker's loss, minimized.
        steps: K.
        momentum: μ.
        view: ``view(at, k)``, the function of the points through which step k sees them; None is the identity.
        smooth: a function of the gradient; None is the identity.
        label: of the bar.
        progress: show a bar in a terminal.
        dtype: in which the own model is asked; None is that of the victim's session, which is never half precision.

    Returns:
        The loss before each step, (N,) each, NaN for samples that are not at work.
    """
    box, losses = (session.low, session.high), list[Tensor]()
    with own.session(at.x.to(dtype or session.x.dtype), at.y, target=at.target, loss=g) as inner:
        everyone = inner.everyone()
        at.points, along = begin(ball, at, torch.zeros_like(at.x), box), torch.zeros_like(at.x)
        for k in bar(range(steps if len(at) else 0), show=progress, label=label):
            seen = view(at, k) if view is not None else _as_it_is
            answer = gradient_through(inner, everyone, at.points, seen, g)
            grad = answer.grad if smooth is None else smooth(answer.grad)
            unit = grad / beside(get_norm("l1").length(grad), grad).clamp_min(torch.finfo(grad.dtype).tiny)
            along = momentum * along + unit
            at.points = step(ball, at, along, box, sparse=False)
            told = answer.loss.to(session.x.dtype)
            losses.append(told.new_full((len(session.ids),), torch.nan).index_put_((at.rows,), told))
    return losses


def _as_it_is(points: Tensor) -> Tensor:
    return points
