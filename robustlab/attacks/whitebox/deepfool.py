"""DeepFool.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks" (2016),
algorithm 2 (ℓ2) and section 3.3 (other norms), on the minimal-distortion formulation (1) of the survey. Around the
iterate every logit is linear, so the boundary to class k is a hyperplane. With f_k = z_k − z_y and w_k = ∇f_k:

    l = argmin_k |f_k| / ‖w_k‖_q            the nearest hyperplane
    δ ← δ + |f_l| / ‖w_l‖_q · v_p(w_l)      a step onto it; v_p is the steepest unit step of ℓp, q is dual to p

until x + (1 + η)·δ is misclassified.

Different here: points and δ are clipped to the box, of which the paper does not speak, and in the second half of the
run the elements that the box keeps from moving are left out of w_k, so that a pixel at 0 or 1 does not swallow the step
(doing so from the start takes a quarter of the steps, but ends farther away, on our nets by up to a quarter); the step
aims 1e-4 of the logits' size (``spare``) beyond the hyperplane, so that rounding cannot undo it, and is 1e-4 of the
box's width longer from the fourth step on (in the authors' code always), since steps that the box shortens would else
approach that mark for ever; each sample stops on its own. The targeted form, not in the paper, always steps onto the
hyperplane between the target and the class that leads at present.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live, closest
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.minimum_norm import leading_classes
from robustlab.geometry.norms import Norm, get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def deepfool(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """DeepFool: step to the nearest linearized decision boundary, again and again.

        minimize ‖δ‖_p  subject to ŷ_θ(x + δ) ≠ y, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"`` or ``"linf"``.
        steps: at most so many iterations.
        overshoot: η ≥ 0; the point tried is x + (1 + η)·δ.
        candidates: number of classes considered, the label's included: those with the largest logits at x.
        target: a label, or (N,); see the module's remark.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: a query and ``candidates`` − 1 gradients (targeted: 1) per iteration.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Moosavi-Dezfooli et al. (2016), algorithm 2.
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("overshoot", overshoot, 0.0)
    checks.at_least("candidates", candidates, 2, integer=True)
    ball, victim = get_norm(norm), Victim.of(victim)
    with victim.session(x, y, target=target, ids=ids) as session:
        best, live = closest(session), session.live(classes=leading_classes(session, candidates))
        live.delta = torch.zeros_like(live.x)
        for k in bar(range(steps + 1), show=progress, label="deepfool"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            points = clip(live.x + (1 + overshoot) * live.delta, session.low, session.high)
            answer, classes, slopes = session.jacobian(points, live, partial(_classes, live))
            won = session.secure(answer.logits, live)
            best.keep(live, points, ball.length(points - live.x), won)

            if 2 * k >= steps:
                slopes = unblocked(slopes, points.unsqueeze(1), session)
            extra = 0.0 if k < 3 else 1e-4 * session.width
            aim = session.beyond(answer.logits, live)
            move, stuck = to_nearest(ball, answer.logits.gather(1, classes), aim, slopes, extra)
            live.delta = clip(live.x + (live.delta + move), session.low, session.high).sub_(live.x)
            live.leave(won | stuck)
        return session.result(best.points, asked=True, revert=True)


def _classes(live: Live, logits: Tensor) -> Tensor:
    """(n, C): the class to leave, then those to reach. Targeted: the class that leads now, then the target."""
    if live.target is None:
        return live.classes
    target = live.target[:, None]
    return torch.cat([logits.scatter(1, target, -torch.inf).argmax(dim=1, keepdim=True), target], dim=1)


def unblocked(slopes: Tensor, points: Tensor, session: Session) -> Tensor:
    """The slopes without the elements that the box keeps from moving."""
    blocked = ((points <= session.low) & (slopes < 0)) | ((points >= session.high) & (slopes > 0))
    return slopes.masked_fill(blocked, 0.0)


def to_nearest(ball: Norm, scores: Tensor, aim: Tensor, slopes: Tensor, extra: float) -> tuple[Tensor, Tensor]:
    """The step onto the nearest of the linearized boundaries, ``extra`` longer, and which samples have none.

    ``scores`` (n, C) are logits, the first of which shall fall behind another by ``aim`` (n,); ``slopes``
    (n, C − 1, ...) are the gradients of z_k − z_first.
    """
    gap = scores[:, :1] - scores[:, 1:] + aim.unsqueeze(1)
    n, c = gap.shape
    length = ball.dual.length(slopes.flatten(0, 1)).reshape(n, c)
    distance = torch.where(length > 0, gap.clamp_min(0) / length, torch.inf)
    distance, nearest = distance.min(dim=1)
    stuck = ~distance.isfinite()
    slope = slopes[torch.arange(n, device=slopes.device), nearest]
    size = beside((distance + extra).masked_fill(stuck, 0.0), slope)
    return size * ball.steepest(slope), stuck
