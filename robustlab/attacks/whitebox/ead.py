"""Elastic-net attack (EAD).

Chen, Sharma, Zhang, Yi and Hsieh, "EAD: elastic-net attacks to deep neural networks via adversarial examples" (2018b),
algorithm 1, on the penalty-based formulation (2) of the survey. With the margin loss g = max{κ − goal margin, 0},

    minimize over x + δ in the box    c·g + β·‖δ‖₁ + ‖δ‖₂²

by the fast iterative shrinkage-thresholding algorithm (FISTA). Let h(·) = c·g + ‖·‖₂² be the smooth part, I the number
of steps and α_k = α·√(1 − k/I). From x⁰ = y⁰ = x,

    xᵏ⁺¹ = S_β( yᵏ − α_k·∇h(yᵏ) )        yᵏ⁺¹ = xᵏ⁺¹ + k/(k + 3)·(xᵏ⁺¹ − xᵏ)

where S_β brings every element nearer to that of x by β, or back to it, and into the box (equation 5). A binary search
chooses c. Of all iterates xᵏ that succeed, over all c, the one of least ‖δ‖₂² + β‖δ‖₁ (rule "en") or of least ‖δ‖₁
(rule "l1") is returned.

The published operator thresholds by β whatever the step size. A proximal step for the objective above would threshold
by α_k·β. So the published fixed points weigh ‖δ‖₁ by β/α_k, which grows as α_k falls. We follow the paper;
``scaled=True`` takes α_k·β, and then it is the stated objective that is minimized.

Different here: yᵏ is clipped to the box before the model is asked; the goal asks for a little more than κ (``spare``),
so that rounding cannot undo it; early aborting and c belong to each sample alone; lengths count in widths of the box,
so that β, α and c mean the same in [0, 1] and [0, 255]. By default β = 1e-2 and the rule is "l1", which on affine
models ends within a tenth of the ℓ1 optimum; the authors' default, 1e-3 and "en", is for least ‖δ‖₂² + β‖δ‖₁ and ends
farther away in ℓ1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.live import closest
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacker.weight_search import first_weight, next_weight
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def ead(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l1"] = "l1",
    beta: float = 1e-2,
    rule: Literal["en", "l1"] = "l1",
    scaled: bool = False,
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    steps: int = 1000,
    search_steps: int = 9,
    lr: float = 0.01,
    c: float = 1e-3,
    abort_early: bool = True,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """The elastic-net attack: C&W's objective with an ℓ1 term, minimized by FISTA.

        minimize_δ c·max{κ − goal margin(x + δ), 0} + β‖δ‖₁ + ‖δ‖₂²  subject to x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l1"``, the only one.
        beta: β ≥ 0, the threshold of shrinkage, in widths of the box.
        rule: which success is returned: ``"en"``, least ‖δ‖₂² + β‖δ‖₁, or ``"l1"``, least ‖δ‖₁.
        scaled: threshold by step size times β, as the objective asks, instead of β; see the module's remark.
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in logits, that the result must have.
        steps: I ≥ 1, FISTA steps for one c, at most.
        search_steps: values of c tried.
        lr: first step size α > 0.
        c: first value of c.
        abort_early: end a run whose objective has not improved by 0.01 % over a tenth of its steps.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: two queries (at yᵏ and xᵏ⁺¹) and one gradient per step.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Chen et al. (2018b), algorithm 1.
    """
    checks.one_of("norm", norm, ("l1",))
    checks.at_least("beta", beta, 0.0)
    checks.one_of("rule", rule, ("en", "l1"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("search_steps", search_steps, 1, integer=True)
    checks.positive("lr", lr)
    checks.positive("c", c)
    victim = Victim.of(victim)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa) as session:
        best, whole, box = closest(session), session.live(), (session.low, session.high)
        width, period = session.high - session.low, max(1, steps // 10)
        first_weight(whole, c)
        for _ in bar(range(search_steps), show=progress, label="ead"):
            found, live = closest(session), session.live()
            live.c, live.iterate, live.momentum = whole.c, live.x, live.x
            live.previous = torch.full_like(live.c, torch.inf)
            for k in range(steps):
                live.keep(session.can_pay(live, 2))
                if not len(live):
                    break
                size = lr * (1 - k / steps) ** 0.5
                answer = session.gradient(live.momentum, live, session.shortfall(live))
                slope = answer.grad * beside(live.c * (answer.loss > 0), live.x) * width**2
                stepped = slope.add_(live.momentum - live.x, alpha=2).mul_(-size).add_(live.momentum)
                old = live.iterate
                live.iterate = shrink(stepped, live.x, beta * width * (size if scaled else 1.0), *box)
                live.momentum = clip(torch.lerp(old, live.iterate, 1 + k / (k + 3)), *box)

                answer = session.ask(live.iterate, live, session.shortfall(live))
                delta = ((live.iterate - live.x) / width).flatten(1)
                l1 = delta.abs().sum(dim=1)
                elastic = delta.square().sum(dim=1) + beta * l1
                value = elastic if rule == "en" else l1
                found.keep(live, live.iterate, value, session.secure(answer.logits, live))
                if abort_early and k > 0 and k % period == 0:
                    total = elastic + live.c * answer.loss.clamp_min(0)
                    going, live.previous = ~(total > 0.9999 * live.previous), total
                    live.keep(going)
            best.keep(whole, found.points, found.value)
            won = found.value.isfinite()
            next_weight(whole, won, ~won)
        return session.result(best.points, asked=True, revert=True)


def shrink(z: Tensor, clean: Tensor, beta: float | Tensor, low: Bound, high: Bound) -> Tensor:
    """S_β(z): each element of ``z`` comes nearer to that of ``clean`` by β, or back to it, and into the box.

        S_β(z) = argmin_u ½‖u − z‖₂² + β‖u − clean‖₁  subject to low ≤ u ≤ high

    An element that goes back is that of ``clean`` bit for bit. Source: Chen et al. (2018b), equation (5).
    """
    away = z - clean
    return torch.where(away.abs() <= beta, clean, clip(z - beta * away.sign(), low, high))
