"""Bandits with priors on time and data.

Ilyas, Engstrom and Madry, "Prior convictions: Black-box adversarial attacks with bandits and priors" (2019), algorithms
1 to 3, on the budget-based formulation (3) of the survey with scores alone. The gradient of one step is much like that
of the step before (a prior on time), and its values at neighboring pixels are alike (a prior on data). So a vector v of
coarse tiles is carried along, which guesses the gradient, and every round costs two queries to improve it: with
u ~ N(0, I/d) on the tiles, their enlargement A and the attacker's loss g,

    q± = A(v ± δu)        Δ = (g(x + η q₊/‖q₊‖₂) − g(x + η q₋/‖q₋‖₂)) / η        v ← step(v, −Δu)

    ℓ∞   v ← tanh(artanh v + κ·(−Δu)), exponentiated gradient     x ← P(x + α sign(A(v)))
    ℓ2   v ← v + κ·(−Δu)                                          x ← P(x + α A(v)/‖A(v)‖₂)

Here g is minimized and v points downhill. Both probes are normalized *before* they are differenced, so that Δ measures
directions, not lengths.

Different here: each sample stops at its first success and keeps its best point; the query that tells of success is the
third of a round, and counted; probes are clipped to the box, so that what points out of it, where no step could go,
counts for nothing. κ is meant for a box of width 1, so that Δ is computed in widths of the box.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.softlabel.solvers import exponentiated, feasible, steepest_descent
from robustlab.attacks.softlabel.spaces import Resized
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip_
from robustlab.progress import bar


def bandits(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    steps: int = 3000,
    tiles: int | None = None,
    exploration: float | None = None,
    probe: float | None = None,
    prior_rate: float | None = None,
    step_size: float | Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Bandit optimization of a prior on the gradient, with scores alone.

        minimize_δ g(δ | x, y)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: images (N, C, H, W), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: rounds, each of 3 queries.
        tiles: tiles along the shorter side of the image; None means a third of the pixels there, on images of fewer
            than 9 pixels per side as many as pixels, which is the method without its prior on data.
        exploration: δ > 0; None means 1, in ℓ2 0.01.
        probe: η > 0, ℓ2 distance of the probes in units of x; None means 0.1, in ℓ2 0.01, of the box.
        prior_rate: κ > 0; None means 100·√(d/7500), as an element of Δu is Δ/√d; in ℓ2 0.1.
        step_size: α > 0, a number or (N,); None means ε/5, in ℓ2 ε/10.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: 3 · ``steps``
        queries and 1 for the clean check. A success has 1 more, for the final check. No gradients. A round that the
        victim's budget does not cover is not begun.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Ilyas et al. (2019), algorithms 1 to 3; the defaults are the authors' for 7500 tile elements, in shares of ε
        and of the box.
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    ball, g, victim, inf = get_norm(norm), attacker_loss(loss), Victim.of(victim), norm == "linf"
    checks.images(x, victim.bounds)
    checks.pictures(x)
    space = _tiling(tiles, x)
    root = math.prod(space.shape) ** 0.5
    given = ((exploration, 1.0, 0.01), (probe, 0.1, 0.01), (prior_rate, 100 / 7500**0.5 * root, 0.1))
    explore, eta, kappa = (own if own is not None else for_inf if inf else for_two for own, for_inf, for_two in given)
    for name, value in (("exploration", explore), ("probe", eta), ("prior_rate", kappa)):
        checks.positive(name, value)
    eps = checks.radius(eps, x, norm, victim.bounds)
    alpha = eps / (5 if inf else 10) if step_size is None else checks.per_sample("step_size", step_size, x)
    with victim.session(x, y, target=target, ids=ids, access="soft", loss=g, first_round=3) as session:
        best, ends = Best(session), (session.low, session.high)
        eta = eta * session.width if probe is None else eta
        live = session.live(eps=eps, alpha=alpha, noise=session.noise(seed))
        live.points, live.prior = live.x, live.x.new_zeros(len(live), *space.shape)
        for k in bar(range(steps), show=progress, label="bandits"):
            live.keep(session.can_pay(live, 3))
            if not len(live):
                break
            u = live.noise.quick_normal(k, space.shape, x.dtype) / root
            pair = space(torch.stack([live.prior + explore * u, live.prior - explore * u], dim=1))
            probes = clip_(_unit(pair).mul_(eta).add_(live.points[:, None]), *ends)
            up, down = session.values(live, g)(probes).unbind(dim=1)
            slope = ((down - up) * (session.width / eta)).nan_to_num(0.0, 0.0, 0.0)
            downhill = beside(slope, u).to(u) * u
            live.prior = exponentiated(live.prior, downhill, kappa) if inf else live.prior + kappa * downhill
            move = steepest_descent(ball, space(-live.prior[:, None])[:, 0], live.alpha)
            live.points = feasible(ball, live, move.add_(live.points), ends)
            answer = session.ask(live.points, live, g)
            best.keep(live, live.points, answer.loss.masked_fill(answer.met, -torch.inf))
            live.leave(answer.met)
        return session.result(best.points, asked=True)


_LARGE = 9  # pixels per side, from which on neighbors of a photograph change together


def _tiling(tiles: int | None, x: Tensor) -> Resized:
    """Square tiles, as nearly as the sides allow."""
    height, width = x.shape[2:]
    short = min(height, width)
    count = (round(short / 3) if short >= _LARGE else short) if tiles is None else tiles
    checks.at_least("tiles", count, 1, integer=True)
    checks.at_most("tiles", count, short)
    return Resized(round(count * height / short), round(count * width / short), x, "tiled")


def _unit(q: Tensor) -> Tensor:
    """q (n, 2, ...) in ℓ2 length 1; 0 where it is 0."""
    return get_norm("l2").steepest(q.flatten(0, 1)).reshape(q.shape)
