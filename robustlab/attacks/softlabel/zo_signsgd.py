"""Zeroth-order sign descent (ZO-signSGD).

Liu, Chen, Chen and Hong, "signSGD via zeroth-order oracle" (2019), algorithm 1, on the budget-based formulation (3) of
the survey with scores alone. Of an estimate of the gradient along q random directions of the unit sphere only the signs
are followed:

    ĝ = d/(qμ) Σ_i (g(x + μu_i) − g(x)) u_i        δ ← P(δ − α sign(ĝ))

Signs bound the harm of an estimate whose length is mostly noise: every coordinate moves by α. ``pairs=True`` takes
central differences, the paper's variant with the smaller variance at twice the queries.

Different here: P projects onto ball and box, where the paper penalizes ‖δ‖ and changes variables; best point kept,
each sample stops at its first success; the query at the iterate serves as g(x) as well as for the check of success.
The variants that let several machines vote are left out, since there is one attacker.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Directions, central, forward, loss_at_x, precise
from robustlab.attacker.live import Best
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.solvers import feasible, steepest_descent
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar


def zo_signsgd(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    steps: int = 200,
    q: int = 20,
    mu: float | None = None,
    step_size: float | Tensor | None = None,
    pairs: bool = False,
    loss: LossName | LossFunction = "margin",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Descent along the signs of an estimated gradient, with scores alone.

        minimize_δ g(δ | x, y)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: of the ball, ``"linf"`` or ``"l2"``; the step is along signs in both.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: rounds, each of q + 1 queries, or 2q + 1 with ``pairs``.
        q: directions in each round.
        mu: μ > 0 in units of x; None means a 100th of the box, more in half precision.
        step_size: α > 0, a number or (N,), by which every coordinate moves; None means ε/20, in ℓ2 ε/(20√d).
        pairs: central differences.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`); the paper's is ``"margin"``.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: ``steps`` ·
        (q + 1) queries and 1 for the clean check. A success has 1 more, for the final check. No gradients. A round
        that the victim's budget does not cover is not begun.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Liu et al. (2019), algorithm 1 and its estimator (3); Liu et al. (2020a).
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("q", q, 1, integer=True)
    if mu is not None:
        checks.positive("mu", mu)
    ball, g, victim = get_norm(norm), attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    spread = 1.0 if norm == "linf" else max(1, x[0:1].numel()) ** 0.5
    rate = eps / (20 * spread) if step_size is None else checks.per_sample("step_size", step_size, x)
    cost = (2 * q if pairs else q) + 1
    with victim.session(x, y, target=target, ids=ids, access="soft", loss=g, first_round=cost) as session:
        best, ends = Best(session), (session.low, session.high)
        step = session.audible(session.width / 100, x[0:1].numel()) if mu is None else mu
        live = session.live(eps=eps, rate=rate, noise=session.noise(seed))
        live.points = live.x
        live.base = loss_at_x(session, live, g)
        for k in bar(range(steps), show=progress, label="zo_signsgd"):
            live.keep(session.can_pay(live, cost))
            if not len(live):
                break
            values, u = session.values(live, g), Directions(live.noise, k, q, live.x, "sphere")
            if pairs:
                grad = central(values, live.points, u, step, box=ends)
            else:
                grad = forward(values, live.points, u, step, base=live.base, box=ends)
            live.points = feasible(ball, live, live.points + steepest_descent(get_norm("linf"), grad, live.rate), ends)
            answer = session.ask(live.points, live, precise(g))
            live.base = answer.loss
            best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
            live.leave(answer.met)
        return session.result(best.points, asked=True)
