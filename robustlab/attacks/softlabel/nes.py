"""Natural evolution strategies (NES): projected descent with gradients from antithetic pairs.

Ilyas, Engstrom, Athalye and Lin, "Black-box adversarial attacks with limited queries and information" (2018), section
2.1 and algorithm 1, on the budget-based formulation (3) of the survey with scores alone. The gradient of the attacker's
loss g, averaged over N(x, σ²I), is estimated from q pairs of points,

    ĝ = 1/(2qσ) Σ_i (g(x + σu_i) − g(x − σu_i)) u_i,   u_i ~ N(0, I)

and followed with momentum m ← 0.9 m + 0.1 ĝ by steps of α in the steepest direction of the norm (sign(m) in ℓ∞), each
projected onto the ball and the box. Momentum and the rule for α are those of the authors' code: α is halved, down to a
200th, when the loss is higher than ``plateau`` rounds before.

The estimator's own cost is honest here: the query that tells whether a point is adversarial is counted, and a pair that
would leave the box is moved inside as a whole, so that it stays a pair.

Where an API shows less than all scores, :func:`robustlab.attacks.nes_limited` makes do.

Different here: the best point of each sample is kept, and each stops at its first success. α follows the loss at the
points themselves, not that of the probes around them. ℓ2 is that of Ilyas et al. (2019), who compare their method with
NES there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.estimators import Directions, central
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.solvers import feasible, heavy, steepest_descent
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar

LEAST = 1 / 200  # a share of the first step size


def nes(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    steps: int = 200,
    q: int = 25,
    sigma: float | None = None,
    step_size: float | Tensor | None = None,
    momentum: float = 0.9,
    plateau: int = 5,
    loss: LossName | LossFunction = "ce",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """NES: projected descent along an estimate of the gradient, with scores alone.

        minimize_δ g(δ | x, y)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: rounds, each of 2q + 1 queries.
        q: antithetic pairs in each round.
        sigma: σ > 0 in units of x; None means a 1000th of the box, more in half precision.
        step_size: the first α > 0, a number or (N,); None means ε/5.
        momentum: share of the mean that is kept, in [0, 1).
        plateau: rounds without progress after which α is halved, at least 2.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: ``steps`` ·
        (2q + 1) queries and 1 for the clean check. A success has 1 more, for the final check. No gradients. A round
        that the victim's budget does not cover is not begun.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Ilyas et al. (2018), section 2.1 and algorithm 1.
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("q", q, 1, integer=True)
    checks.at_least("plateau", plateau, 2, integer=True)
    checks.not_negative("momentum", momentum)
    checks.below("momentum", momentum, 1)
    if sigma is not None:
        checks.positive("sigma", sigma)
    ball, g, victim = get_norm(norm), attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    rate = eps / 5 if step_size is None else checks.per_sample("step_size", step_size, x)
    with victim.session(x, y, target=target, ids=ids, access="soft", loss=g, first_round=2 * q + 1) as session:
        best, ends = Best(session), (session.low, session.high)
        mu = session.audible(session.width / 1000) if sigma is None else sigma
        live = session.live(eps=eps, rate=rate, least=LEAST * rate, noise=session.noise(seed))
        live.points, live.losses = live.x, live.x.new_full((len(live), plateau), torch.nan)
        for k in bar(range(steps), show=progress, label="nes"):
            live.keep(session.can_pay(live, 2 * q + 1))
            if not len(live):
                break
            directions = Directions(live.noise, k, q, live.x)
            grad = heavy(live, central(session.values(live, g), live.points, directions, mu, box=ends), momentum)
            live.points = feasible(ball, live, live.points + steepest_descent(ball, grad, live.rate), ends)
            answer = session.ask(live.points, live, g)
            best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
            anneal(live, answer.loss)
            live.leave(answer.met)
        return session.result(best.points, asked=True)


def anneal(live: Live, loss: Tensor) -> None:
    """Halve the step size of those whose loss has risen since the first of the losses noted; note anew from there."""
    losses = torch.cat([live.losses[:, 1:], loss[:, None].to(live.losses)], dim=1)
    risen = losses[:, -1] > losses[:, 0]  # not yet as many, NaN: no
    live.losses = losses.masked_fill(risen[:, None], torch.nan)
    live.rate = torch.where(risen, torch.maximum(live.rate / 2, live.least), live.rate)
