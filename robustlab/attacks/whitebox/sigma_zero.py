"""σ-zero: minimum-norm attacks in ℓ0.

Cinà, Villani, Pintor, Schönherr, Biggio and Pelillo, "σ-zero: Gradient-based optimization of ℓ0-norm adversarial
examples" (2025), algorithm 1, on the minimal-distortion formulation (1) of the survey. ℓ0 is made differentiable,

    ℓ̂0(δ) = Σ_i δ_i² / (δ_i² + σ),

and with the margin loss g = max{−goal margin, 0} the d elements of δ descend on g + ℓ̂0/d:

    δ ← clip( δ − η_k · Adam( ∇ / ‖∇‖_∞ ) )      ∇, the gradient of the sum, is scaled to 1
    τ ← τ + t·η_k after a success, τ − t·η_k after a failure, in [0, 1]
    δ_i ← 0 where |δ_i| < τ                       which is what makes δ sparse

η_k falls from η to η/10 along half a cosine. The sparsest point that met the goal is returned.

Different here: a success needs a margin (``spare``), so that rounding cannot undo it, and g is 0 only where it has that
margin; δ is in units of the box's width. The paper's attack is untargeted; a target changes nothing but the goal.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import closest
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.minimum_norm import cosine
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def sigma_zero(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    steps: int = 1000,
    lr: float = 1.0,
    sigma: float = 1e-3,
    threshold: float = 0.3,
    threshold_rate: float = 0.01,
    norm: Literal["l0"] = "l0",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """σ-zero: descend on the margin and a smooth count of elements, and cut off what stays small.

        minimize ‖δ‖₀  subject to ŷ_θ(x + δ) ≠ y, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        steps: number of gradients.
        lr: first step size η > 0 of Adam, in units of the box's width.
        sigma: σ > 0, smoothness of the count; smaller is sharper.
        threshold: first τ in [0, 1], in units of the box's width.
        threshold_rate: t > 0, by which τ changes in a step, in units of η.
        norm: ``"l0"``, the only one; elements are counted.
        target: a label, or (N,), for a targeted attack.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: one query and one gradient per step.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Cinà et al. (2025), algorithm 1.
    """
    checks.one_of("norm", norm, ("l0",))
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("lr", lr)
    checks.positive("sigma", sigma)
    checks.at_least("threshold", threshold, 0.0)
    checks.at_most("threshold", threshold, 1)
    checks.positive("threshold_rate", threshold_rate)
    ball, linf, victim = get_norm(norm), get_norm("linf"), Victim.of(victim)
    with victim.session(x, y, target=target, ids=ids) as session:
        best, live, width = closest(session), session.live(), session.high - session.low
        live.low, live.high = (session.low - live.x) / width, (session.high - live.x) / width
        live.delta, live.mean, live.square = (torch.zeros_like(live.x) for _ in range(3))
        live.tau = torch.full_like(best.value, threshold)
        for k in bar(range(steps), show=progress, label="sigma-zero"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            points = clip(live.x + live.delta * width, session.low, session.high)
            answer = session.gradient(points, live, session.shortfall(live))
            won = session.secure(answer.logits, live)
            best.keep(live, points, ball.length(points - live.x), won)

            grad = answer.grad * beside(answer.loss > 0, points) * width
            grad += _smooth_count_slope(live.delta, sigma)
            grad /= beside(linf.length(grad).clamp_min_(torch.finfo(grad.dtype).tiny), grad)
            eta = cosine(lr, 0.1 * lr, k, steps)
            live.mean.lerp_(grad, 0.1)
            live.square.mul_(0.999).addcmul_(grad, grad, value=0.001)
            root = (live.square / (1 - 0.999 ** (k + 1))).sqrt_().add_(1e-8)
            live.delta.addcdiv_(live.mean, root, value=-eta / (1 - 0.9 ** (k + 1))).clamp_(live.low, live.high)

            eta = cosine(lr, 0.1 * lr, k + 1, steps)
            live.tau = (live.tau + threshold_rate * eta * (2 * won.to(live.tau) - 1)).clamp_(0.0, 1.0)
            live.delta *= live.delta.abs() >= beside(live.tau, points)
        return session.result(best.points, asked=True, revert=True)


def _smooth_count_slope(delta: Tensor, sigma: float) -> Tensor:
    """∇ ℓ̂0 / d = 2σ·δ / (δ² + σ)² / d."""
    root = delta.square().add_(sigma)
    return delta.div(root.square_()).mul_(2 * sigma / delta[0].numel())
