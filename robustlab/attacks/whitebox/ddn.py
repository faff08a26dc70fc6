"""Decoupled direction and norm (DDN).

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin and Granger, "Decoupling direction and norm for efficient gradient-based L2
adversarial attacks and defenses" (2019), algorithm 1, on the minimal-distortion formulation (1) of the survey. The
gradient of the cross-entropy g turns the perturbation; its length ε is set apart, by what the model said of the last
point:

    δ ← δ − α_k · ∇_x g / ‖∇_x g‖₂,    ε ← (1 − γ)·ε after a success, (1 + γ)·ε after a failure
    x + δ ← clip( x + ε · δ / ‖δ‖₂ )

α_k falls from 1 to 0.01 along half a cosine. The nearest point that met the goal is returned.

Different here: a success needs a margin of 1e-4 of the logits' size (``spare``), so that rounding cannot undo it; α and
the first ε are in units of the box's width; ε never passes the farthest corner of the box; quantization, a part of the
paper's algorithm, is off by default.

It is not held to the exact optimum, for two reasons: with several classes the cross-entropy pulls toward all of them at
once, which costs 4 % in the median on the five-class affine models of the tests, after any number of steps; and ε
shrinks by no more than 1 − γ a step, so that 100 steps do not bring it below 0.6 % of the first ε.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import closest
from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.minimum_norm import cosine
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip, clip_
from robustlab.progress import bar


def ddn(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    steps: int = 100,
    gamma: float = 0.05,
    init_eps: float = 1.0,
    levels: int | None = None,
    norm: Literal["l2"] = "l2",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """DDN: turn by the gradient, shrink after a success and grow after a failure.

        minimize ‖δ‖₂  subject to ŷ_θ(x + δ) ≠ y, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        steps: number of gradients.
        gamma: γ in (0, 1), by which the norm changes in a step.
        init_eps: first ε > 0, in units of the box's width.
        levels: values are rounded to so many levels of the box (256 in the paper); None for no rounding.
        norm: ``"l2"``, the only one.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1); used only where a gradient
            vanishes, for a direction.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: one query and one gradient per step.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Rony et al. (2019), algorithm 1.
    """
    checks.one_of("norm", norm, ("l2",))
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("gamma", gamma)
    checks.below("gamma", gamma, 1)
    checks.positive("init_eps", init_eps)
    if levels is not None:
        checks.at_least("levels", levels, 2, integer=True)
    ball, victim, loss = get_norm(norm), Victim.of(victim), attacker_loss("ce")
    with victim.session(x, y, target=target, ids=ids) as session:
        best, live, width = closest(session), session.live(noise=session.noise(seed)), session.width
        live.points, live.delta = live.x, torch.zeros_like(live.x)
        live.farthest = ball.length(torch.maximum(live.x - session.low, session.high - live.x))
        live.length, live.eps = torch.zeros_like(live.farthest), torch.full_like(live.farthest, init_eps * width)
        for k in bar(range(steps), show=progress, label="ddn"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            answer = session.gradient(live.points, live, loss)
            won = session.secure(answer.logits, live)
            best.keep(live, live.points, live.length, won)

            grad, size = answer.grad, ball.length(answer.grad)
            flat = size < torch.finfo(size.dtype).tiny  # nothing can be divided by a subnormal number
            if bool(flat.any()):
                random = ball.steepest(live.noise.normal(0, live.x.shape[1:], live.x.dtype))
                grad, size = torch.where(beside(flat, grad), random, grad), size.masked_fill(flat, 1.0)
            live.delta.addcmul_(grad, beside(-width * cosine(1.0, 0.01, k, steps) / size, grad))
            live.eps = torch.where(won, (1 - gamma) * live.eps, (1 + gamma) * live.eps).minimum(live.farthest)
            scale = (live.eps / ball.length(live.delta)).nan_to_num_(0.0, 0.0)
            points = torch.addcmul(live.x, live.delta, beside(scale, grad), out=live.delta)
            live.points = clip_(points, session.low, session.high)
            if levels is not None:
                live.points = _rounded(live.points, levels, session)
            live.delta = live.points - live.x
            live.length = ball.length(live.delta)
        return session.result(best.points, asked=True, revert=True)


def _rounded(points: Tensor, levels: int, session: Session) -> Tensor:
    """The nearest of so many levels between the ends of the box."""
    side = (session.high - session.low) / (levels - 1)
    return clip((points - session.low).div_(side).round_().mul_(side).add_(session.low), session.low, session.high)
