"""Universal adversarial perturbations.

Moosavi-Dezfooli, Fawzi, Fawzi and Frossard, "Universal adversarial perturbations" (2017), algorithm 1: one δ that
changes what the model says of most images of a distribution. Pass after pass over the images, in a new order each time,
every image that δ does not fool yet adds the smallest step that takes it over its boundary:

    Δ = argmin_r ‖r‖₂  subject to  ŷ_θ(x_i + δ + r) ≠ ŷ_θ(x_i)        by DeepFool at x_i + δ
    δ ← P(δ + Δ)                                                       P projects onto {‖δ‖_p ≤ ε}

until the share of fooled images reaches ``rate``. Fooled means that the label differs from that of the clean image,
whatever the true label is.

As in the authors' code DeepFool has 10 steps, and an image on which these do not suffice adds nothing. Different here:
x + δ is clipped to the box, of which the paper does not speak, so that Δ is the smallest change of δ after which the
clipped image is DeepFool's point; DeepFool aims slightly beyond the boundary, as ours does everywhere; passes are
limited, and the δ of the best pass is returned, since a later one may fool fewer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live
from robustlab.attacker.losses import rivals
from robustlab.attacker.results import UniversalResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model
from robustlab.attacks.universal.one_for_all import one_for_all
from robustlab.attacks.whitebox.deepfool import to_nearest, unblocked
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def uap(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "linf",
    eps: float,
    rate: float = 0.8,
    passes: int = 10,
    steps: int = 10,
    overshoot: float = 0.02,
    candidates: int = 10,
    seed: int = 0,
    progress: bool = False,
    trace: bool = False,
) -> UniversalResult:
    """One perturbation for all images, gathered from DeepFool's steps on each.

        find δ with ‖δ‖_p ≤ ε  such that  ŷ_θ(clip(x_i + δ)) ≠ ŷ_θ(x_i) for a share of ``rate`` of the images

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box: the images that δ is made from. Measure it on others.
        y: (N,) labels, checked and not used, since fooling is against the clean prediction.
        norm: of the budget, ``"linf"`` or ``"l2"``; DeepFool's steps are the smallest in ℓ2 in either case.
        eps: radius ε ≥ 0 of the one δ, in units of x.
        rate: share of fooled images, in (0, 1], at which to stop; the paper's 1 − δ, default 0.8.
        passes: over the images, at most so many.
        steps: of DeepFool for one image, at most so many.
        overshoot: η ≥ 0 of DeepFool.
        candidates: number of classes that DeepFool considers, that of the clean image included.
        seed: of the orders in which the images are visited.
        progress: show a bar in a terminal.
        trace: keep the share of fooled images after each pass as ``result.trace["rate"]``.

    Returns:
        UniversalResult. Cost: each pass asks once about each image, once more for its rate, and for an image that is
        not fooled one query and ``candidates`` − 1 gradients per step of DeepFool; the images are visited one by one,
        since each starts from what those before it have left. A sample's budget is kept: the passes end where some
        sample has nothing left for one.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Moosavi-Dezfooli et al. (2017), algorithm 1.
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.positive("rate", rate)
    checks.at_most("rate", rate, 1.0)
    checks.at_least("passes", passes, 1, integer=True)
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("overshoot", overshoot, 0.0)
    checks.at_least("candidates", candidates, 2, integer=True)
    ball = get_norm(norm)
    with one_for_all(victim, x, y, norm, eps) as session:
        images, delta, rates = session.live(), session.x.new_zeros(1, *x.shape[1:]), [0.0]
        best, order = delta, Noise(seed, torch.zeros(1, dtype=torch.int64, device=x.device))
        for k in bar(range(passes), show=progress, label="uap"):
            if not len(images) or not session.all_can_pay(images, 2):  # for the rate at the end of a pass, too
                break
            for row in images.rows[order.permutation(k, len(images))[0]].split(1):
                image = session.of(row)
                points = clip(image.x + delta, session.low, session.high)
                if not bool(session.ask(points, image).met):
                    points = _across(session, image, points, steps, overshoot, candidates)
                    delta = ball.project(_least_change(session, delta, image.x, points), eps)
            met = session.ask(clip(images.x + delta, session.low, session.high), images).met
            rates.append(float(met.double().mean()))
            if rates[-1] > max(rates[:-1]):
                best = delta
                session.keep_shared(delta[0], met, images)
            if rates[-1] >= rate:
                break
        return session.universal_result(best[0], trace={"rate": torch.tensor(rates[1:])} if trace else None)


def _across(session: Session, image: Live, start: Tensor, steps: int, overshoot: float, candidates: int) -> Tensor:
    """DeepFool from ``start`` to where the image (1, ...) is taken for another; ``start`` where it does not arrive."""

    def leading(logits: Tensor) -> Tensor:
        return torch.cat([image.y[:, None], rivals(logits, image.y)], dim=1)[:, :candidates]

    ball, move = get_norm("l2"), torch.zeros_like(start)
    for k in range(steps + 1):
        if not session.all_can_pay(image, 2):
            break
        points = clip(start + (1 + overshoot) * move, session.low, session.high)
        answer, classes, slopes = session.jacobian(points, image, leading)
        if bool(session.secure(answer.logits, image)):
            return points
        if 2 * k >= steps:
            slopes = unblocked(slopes, points.unsqueeze(1), session)
        scores, aim = answer.logits.gather(1, classes), session.beyond(answer.logits, image)
        further, stuck = to_nearest(ball, scores, aim, slopes, 0.0 if k < 3 else 1e-4 * session.width)
        if bool(stuck):
            break
        move = clip(start + (move + further), session.low, session.high).sub_(start)
    return start


def _least_change(session: Session, delta: Tensor, x: Tensor, points: Tensor) -> Tensor:
    """The δ nearest to the given one for which x + δ, clipped to the box, is ``points``.

    Where a point is at an end of the box δ may reach beyond that end.
    """
    needed = points - x
    low = needed.masked_fill(points <= session.low, -torch.inf)
    high = needed.masked_fill(points >= session.high, torch.inf)
    return clip(delta, low, high)
