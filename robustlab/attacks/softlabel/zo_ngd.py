"""Zeroth-order natural gradient descent (ZO-NGD).

Zhao, Chen, Wang and Lin, "Towards query-efficient black-box adversary with zeroth-order natural gradient descent"
(2020), algorithm 1, on the budget-based formulation (3) of the survey with scores alone. Gaussian directions u_1 … u_q
and the scores that are heard along them give two gradients at once, that of the attacker's loss g and that of the
log-likelihood,

    ĝ = 1/q Σ_i (g(x + μ u_i) − g(x))/μ · u_i        ŝ = 1/q Σ_i (log p_l(x + μ u_i) − log p_l(x))/μ · u_i

with l the label, or the target. The Fisher matrix F = ŝ ŝᵀ tells how fast the model's answer changes, and the step is
the natural gradient, which Sherman and Morrison's formula gives without a d × d matrix:

    x ← Π( x − η (F + λI)⁻¹ ĝ ),        (ŝ ŝᵀ + λI)⁻¹ ĝ = (ĝ − ŝ·⟨ŝ, ĝ⟩/(λ + ‖ŝ‖²))/λ

Different here: no probe leaves the box, since the differences are taken about the nearest point that is 3μ away from
its ends; lengths are in widths of the box, so that η, λ and μ mean the same in [0, 1] and [0, 255]; a sample stops at
its first success. The Fisher matrix is that of the one class l, as in the authors' code for large images. Their η and λ
of 1e-3 go with differences over distances of several widths of the box, which are far smaller than slopes. Beside
ours such a λ would leave of ĝ only what is orthogonal to ŝ; the default is above the square of a slope.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Directions, difference_step, forward
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.solvers import descent, feasible, natural, with_room
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar


def zo_ngd(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["linf"] = "linf",
    eps: float | Tensor,
    steps: int = 100,
    q: int = 30,
    lr: float = 1.0,
    damping: float = 10.0,
    mu: float | None = None,
    loss: LossName | LossFunction = "logprob",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Projected natural gradient descent on random estimates, with scores alone.

        minimize_δ g(δ | x, y)  subject to ‖δ‖∞ ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"``, the only one.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: number of steps.
        q: directions per step.
        lr: η > 0, with lengths in widths of the box. Off ŝ a step is η/λ times the gradient.
        damping: λ > 0.
        mu: μ > 0, the step of the differences, in widths of the box; None chooses it by the dtype.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: q + 2 queries
        per step and 1 for the clean check. A success has 1 more, for the final check. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Zhao et al. (2020b), algorithm 1.
    """
    checks.one_of("norm", norm, ("linf",))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("q", q, 1, integer=True)
    g, victim, ball = attacker_loss(loss), Victim.of(victim), get_norm(norm)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    mu = difference_step(x.dtype) if mu is None else mu
    for name, value in (("lr", lr), ("damping", damping), ("mu", mu)):
        checks.positive(name, value)
    with victim.session(x, y, target=target, ids=ids, access="soft", loss=g, first_round=q + 2) as session:
        best, box, width = Best(session), (session.low, session.high), session.width
        live = session.live(eps=eps, noise=session.noise(seed))
        live.points = live.x
        for k in bar(range(steps), show=progress, label="zo_ngd"):
            live.keep(session.can_pay(live, q + 2))
            if not len(live):
                break
            grad, score = _both(session, live, Directions(live.noise, k, q, live.x), mu * width, g)
            move = descent(natural(width * grad, width * score[:, None], damping), lr).nan_to_num(0.0, 0.0, 0.0)
            live.points = feasible(ball, live, live.points + width * move, box)
            answer = session.ask(live.points, live, g)
            best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
            live.leave(answer.met)
        return session.result(best.points, asked=True)


def _both(session: Session, live: Live, directions: Directions, mu: float, loss: LossFunction) -> tuple[Tensor, Tensor]:
    """ĝ and ŝ at ``live.points``, from the same q + 1 answers."""
    box = session.low, session.high

    def pair(logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
        label = y if target is None else target
        told = F.log_softmax(logits, dim=1).gather(1, label[:, None])
        return torch.cat([loss(logits, y, target, kappa)[:, None], told], dim=1)

    grad, score = forward(
        session.values(live, pair), with_room(live.points, 3 * mu, box), directions, mu, box=box
    ).unbind(dim=1)
    return grad, score
