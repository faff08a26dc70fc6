"""The fast minimum-norm attack (FMN).

Pintor, Roli, Brendel and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints" (2021),
algorithm 1, on the minimal-distortion formulation (1) of the survey. A projected gradient descent on the margin loss
g in a ball whose radius ε is adapted in every step k:

    ε ← min{(1 − γ_k)·ε, ‖δ*‖_p}        after a success; δ* is the smallest perturbation that succeeded
    ε ← (1 + γ_k)·ε                     after a failure, if there has been a success
    ε ← ‖δ‖_p + g / ‖∇_x g‖_q           until the first success: the distance to the linearized boundary
    δ ← P_ε( clip( δ − α_k · ∇_x g / ‖∇_x g‖₂ ) )

In ℓ0, ε counts elements: it starts at 1 and changes by at least 1. α_k falls from 1 to 0.01 and γ_k from 0.05 to
0.001, along half a cosine.

Different here: the paper clips to the box after P_ε, which leaves the ball unfilled where pixels are at their bounds;
clipping first fills it. Until the first success, ε goes γ_k beyond the linearized boundary, which is else approached
from within without being crossed. A success needs a margin (``spare``), so that rounding cannot undo it, and g is 0
where it has that margin. α is in units of the box's width. ε never passes the farthest corner of the box.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import closest
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.minimum_norm import cosine
from robustlab.geometry.norms import Norm, NormName, get_norm
from robustlab.geometry.projections import clip_
from robustlab.progress import bar


def fmn(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: NormName = "l2",
    steps: int = 100,
    alpha: float = 1.0,
    alpha_last: float | None = None,
    gamma: float = 0.05,
    gamma_last: float = 0.001,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """FMN: projected gradient descent in a ball that shrinks on success and grows on failure.

        minimize ‖δ‖_p  subject to ŷ_θ(x + δ) ≠ y, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l0"``, ``"l1"``, ``"l2"`` or ``"linf"``.
        steps: number of gradients.
        alpha, alpha_last: first and last step size α > 0, the ℓ2 length of a step in units of the box's width;
            ``alpha_last=None`` means α/100.
        gamma, gamma_last: first and last γ in (0, 1), by which ε changes in a step.
        target: a label, or (N,), for a targeted attack.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: one query and one gradient per step.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Pintor et al. (2021), algorithm 1.
    """
    checks.one_of("norm", norm, ("l0", "l1", "l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    alpha_last = alpha / 100 if alpha_last is None else alpha_last
    checks.positive("alpha", alpha)
    checks.positive("alpha_last", alpha_last)
    for name, value in (("gamma", gamma), ("gamma_last", gamma_last)):
        checks.positive(name, value)
        checks.below(name, value, 1)
    ball, l2, victim = get_norm(norm), get_norm("l2"), Victim.of(victim)
    dual = l2 if norm == "l0" else ball.dual  # ℓ0 has none, and does without the distance to the boundary
    with victim.session(x, y, target=target, ids=ids) as session:
        best, live, width = closest(session), session.live(), session.width
        live.low, live.high = session.low - live.x, session.high - live.x
        live.points, live.delta = live.x, torch.zeros_like(live.x)
        live.farthest = ball.length(torch.maximum(live.high, -live.low))
        live.length = torch.zeros_like(live.farthest)
        live.eps = torch.full_like(live.farthest, 1.0 if norm == "l0" else torch.inf)
        for k in bar(range(steps), show=progress, label="fmn"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            answer = session.gradient(live.points, live, session.shortfall(live))
            won = session.secure(answer.logits, live)
            best.keep(live, live.points, live.length, won)

            slope = dual.length(answer.grad)
            boundary = live.length + torch.where(slope > 0, answer.loss.abs() / slope, torch.inf)
            change = cosine(gamma, gamma_last, k, steps)
            live.eps = torch.minimum(_radius(ball, live.eps, won, best.of(live), change, boundary), live.farthest)
            size = slope if dual is l2 else l2.length(answer.grad)
            turn = -width * cosine(alpha, alpha_last, k, steps) / size.clamp_min(torch.finfo(size.dtype).tiny)
            live.delta.addcmul_(answer.grad, beside(turn, answer.grad))
            if norm == "l0":
                live.delta = ball.project_box(live.delta, live.eps, live.low, live.high)
            else:  # the box holds 0, so that shrinking does not leave it
                live.delta = ball.project(clip_(live.delta, live.low, live.high), live.eps)
            live.points = clip_(live.x + live.delta, session.low, session.high)  # the sum is rounded
            live.length = ball.length(live.delta)
        return session.result(best.points, asked=True, revert=True)


def _radius(ball: Norm, eps: Tensor, won: Tensor, best: Tensor, gamma: float, boundary: Tensor) -> Tensor:
    """The next ε, (n,), from this one; ``best`` is ‖δ*‖ (∞: none), ``boundary`` its linearized length."""
    if ball.name == "l0":
        shrunk = torch.minimum(eps - 1, (eps * (1 - gamma)).floor())
        grown = torch.maximum(eps + 1, (eps * (1 + gamma)).floor())
        return torch.where(won, torch.minimum(shrunk, best), grown).clamp_min(1)
    failed = (1 + gamma) * torch.where(best.isfinite(), eps, boundary)
    return torch.where(won, torch.minimum((1 - gamma) * eps, best), failed)
