"""Zeroth-order variance reduction (ZO-SVRG) as an attack.

Liu, Kailkhura, Chen, Ting, Chang and Amini, "Zeroth-order stochastic variance reduction for nonconvex optimization"
(2018), algorithm 2, on the budget-based formulation (3) of the survey with scores alone. Every ``epoch`` steps the
gradient is estimated well, from Q directions at a snapshot x̃; in between it is corrected from q ≪ Q directions that are
the same at both points,

    v = ĝ(x; u) − ĝ(x̃; u) + ĝ_Q(x̃),   ĝ(x; u) = d/(qμ) Σ_i (g(x + μu_i) − g(x)) u_i

whose error shrinks with ‖x − x̃‖ to that of the snapshot.

Different here: the paper's sum is over images that share one perturbation; here every sample has its own, so that the
parts of its sum are directions. Plain descent, whose step would depend on the unit of the scores, is replaced by steps
of α in the steepest direction of the norm, projected onto ball and box. At a snapshot v is ĝ_Q, and nothing more is
asked. Best point kept, each sample stops at its first success; the query at the iterate serves as g(x) and for the
check.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Directions, forward, loss_at_x, precise, variance_reduced
from robustlab.attacker.live import Best
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.solvers import feasible, steepest_descent
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar


def zo_svrg(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    steps: int = 200,
    epoch: int = 10,
    q: int = 10,
    q_full: int = 100,
    mu: float | None = None,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "margin",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Projected descent along variance-reduced estimates of the gradient, with scores alone.

        minimize_δ g(δ | x, y)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: of q_full + 1 queries at a snapshot and 2q + 1 at others.
        epoch: steps from snapshot to snapshot, the paper's m.
        q: directions of a step.
        q_full: Q, directions of a snapshot.
        mu: μ > 0 in units of x; None means a 100th of the box, more in half precision.
        step_size: α > 0, a number or (N,); None means ε/20.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: that of the steps
        and 1 query for the clean check. A success has 1 more, for the final check. No gradients. A step that the
        victim's budget does not cover is not begun.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Liu et al. (2018), algorithm 2 with its random gradient estimator; Liu et al. (2020a).
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    for name, value in (("steps", steps), ("epoch", epoch), ("q", q), ("q_full", q_full)):
        checks.at_least(name, value, 1, integer=True)
    if mu is not None:
        checks.positive("mu", mu)
    ball, g, victim = get_norm(norm), attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    rate = eps / 20 if step_size is None else checks.per_sample("step_size", step_size, x)
    with victim.session(x, y, target=target, ids=ids, access="soft", loss=g, first_round=q_full + 1) as session:
        best, ends = Best(session), (session.low, session.high)
        step = session.audible(session.width / 100, x[0:1].numel()) if mu is None else mu
        live = session.live(eps=eps, rate=rate, noise=session.noise(seed))
        live.points, live.base = live.x, loss_at_x(session, live, g)
        for k in bar(range(steps), show=progress, label="zo_svrg"):
            anew = k % epoch == 0
            live.keep(session.can_pay(live, (q_full if anew else 2 * q) + 1))
            if not len(live):
                break
            values, u = session.values(live, g), Directions(live.noise, k, q_full if anew else q, live.x, "sphere")
            grad = forward(values, live.points, u, step, base=live.base, box=ends)
            if anew:
                live.snapshot, live.there, live.full = live.points, live.base, grad
            else:
                old = forward(values, live.snapshot, u, step, base=live.there, box=ends)
                grad = variance_reduced(grad, old, live.full)
            live.points = feasible(ball, live, live.points + steepest_descent(ball, grad, live.rate), ends)
            answer = session.ask(live.points, live, precise(g))
            live.base = answer.loss
            best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
            live.leave(answer.met)
        return session.result(best.points, asked=True)
