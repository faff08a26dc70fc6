"""Zeroth-order alternating direction method of multipliers (ZO-ADMM).

Zhao, Liu, Chen, Hoang, Xu, Kailkhura and Lin, "On the design of black-box adversarial examples by leveraging
gradient-free optimization and operator splitting method" (2019), section 4, on the penalty-based formulation (2) of the
survey with scores alone. The black box f = max{κ − goal margin, 0} and the rest of the problem, the length D and the
box, are split,

    minimize_{δ, z} f(x + δ) + γ·D(z)  subject to δ = z, x + z ∈ box

so that only the step in δ asks the model. With the scaled dual u, round k is

    δ ← argmin_δ′ ⟨ĝ, δ′⟩ + ρ/2 ‖δ′ − (z − u)‖² + α√k/2 ‖δ′ − δ‖²  = (ρ(z − u) + α√k·δ − ĝ)/(ρ + α√k)
    u ← u + δ − z
    z ← Π_box( prox_{γD/ρ}(δ + u) )

where ĝ is the mean of one-sided differences along q directions on the unit sphere. D is ‖·‖₂², ‖·‖₁ or ‖·‖_∞.

Different here: what is asked about, kept and returned is the feasible z, where the authors' code returns δ, which no
step projects; ĝ is taken at the nearest point to x + δ around which the box has room for the differences; the goal asks
for a little more than κ (``spare``), so that rounding cannot undo it; lengths are in widths of the box. Every question
counts, that about z too. The paper's second solver for the δ step, Bayesian optimization with a Gaussian process, is
:func:`robustlab.attacks.bo_admm`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Directions, difference_step, forward
from robustlab.attacker.live import Live, closest
from robustlab.attacker.losses import LossFunction, goal_margin
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.solvers import linearized, prox, with_room
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar

Length = Literal["l1", "l2 squared", "linf"]


def zo_admm(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l1", "l2", "linf"] = "l2",
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    steps: int = 500,
    q: int = 20,
    gamma: float = 0.3,
    rho: float = 10.0,
    alpha: float = 5.0,
    mu: float | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """ZO-ADMM: splits the black box from the length and the box, with scores alone.

        minimize_δ max{κ − goal margin(x + δ), 0} + γ·D(δ)  subject to x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: of which D is made: ``"l2"`` (squared), ``"l1"`` or ``"linf"``.
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in log-probabilities, that the result must have.
        steps: rounds.
        q: directions per round.
        gamma: γ > 0, the weight of the length, in widths of the box.
        rho: ρ > 0, the weight of ‖δ − z‖².
        alpha: α ≥ 0, how the steps in δ shrink.
        mu: μ > 0, the step of the differences, in widths of the box; None chooses it by the dtype.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult, the nearest z that succeeded; where there is none, x. Cost: q + 2 queries per round; no gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Zhao et al. (2019), section 4.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("q", q, 1, integer=True)
    checks.not_negative("alpha", alpha)
    victim, ball = Victim.of(victim), get_norm(norm)
    checks.images(x, victim.bounds)
    mu = math.prod(x.shape[1:]) ** 0.5 * difference_step(x.dtype) if mu is None else mu
    length: Length = "l2 squared" if norm == "l2" else norm
    for name, value in (("gamma", gamma), ("rho", rho), ("mu", mu)):
        checks.positive(name, value)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa, access="soft", first_round=q + 2) as session:
        best, live = closest(session), session.live(noise=session.noise(seed), clean=session.clean)
        box, width = (session.low, session.high), session.width
        live.delta = live.dual = live.z = torch.zeros_like(live.x)
        nothing = session.clean is None  # no x
        live.aim = live.x.new_zeros(len(live)) if nothing else kappa + session.beyond(live.clean, live)
        for k in bar(range(1, steps + 1), show=progress, label="zo_admm"):
            live.keep(session.can_pay(live, q + 2))
            if not len(live):
                break
            directions = Directions(live.noise, k, q, live.x, "sphere")
            here = with_room(live.x + width * live.delta, 3 * mu * width * directions.deviation, box)
            grad = width * forward(session.values(live, _shortfall(live)), here, directions, mu * width, box=box)
            grad = grad.nan_to_num(0.0, 0.0, 0.0)
            live.delta = linearized(live.delta, grad, live.z - live.dual, rho=rho, eta=alpha * (k - 1) ** 0.5)
            live.dual = live.dual + live.delta - live.z
            points = clip(live.x + width * prox(length, live.delta + live.dual, gamma / rho), *box)
            live.z = (points - live.x) / width
            answer = session.ask(points, live)
            _, won, live.aim = session.lead(answer.logits, live)
            best.keep(live, points, ball.length(points - live.x), won)
        return session.result(best.points, asked=True, revert=True)


def _shortfall(live: Live) -> LossFunction:
    """f: max{aim − goal margin, 0} of as many points per sample as there are."""

    def loss(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        aim = live.aim.double().repeat_interleave(len(logits) // len(live))
        return (aim - goal_margin(logits, y, target)).clamp_min(0)

    return loss
