"""Boundary attack.

Brendel, Rauber and Bethge, "Decision-based adversarial attacks: reliable attacks against black-box machine learning
models" (2018), algorithm 1, on the minimal-distortion formulation (1) of the survey with labels alone. A random walk
along the boundary. From a point p that meets the goal, at the distance r = ‖p − x‖₂, a proposal makes two steps:

    orthogonal   p′ = x + (p − x + η)/√(1 + δ²),   η normal, made orthogonal to p − x and of length δ·r
    towards x    p″ = p′ + (ε·r + ‖p′ − x‖₂ − r)·(x − p′)/‖x − p′‖₂

so that p′ is on the sphere around x through p, and p″ nearer to x by ε·r. Each is clipped to the box. p moves to p″ if
that meets the goal and is nearer to x than p. δ and ε belong to the sample, and follow how often each step succeeds:

    of the last p′ more than 1/2 met the goal: δ, ε ← 1.5δ, 1.5ε      fewer than 1/5: δ, ε ← δ/1.5, ε/1.5
    of the last p″ more than 1/4 met the goal: ε ← 1.5ε               fewer than 1/10: ε ← ε/1.5

About p′ the model is asked in every ``check_every``-th step alone. A sample is done when its ε is below 1e-7.

Different here: the numbers and the two rules are those of the authors' library (foolbox); it looks at the last 100 p′
and at the last 30 p″, both of the steps in which it asks about p′, so that the first change comes after 300 steps; here
it is the last 10 p′ and the last 30 p″ of all steps. The start is bisected to the boundary first. At the end the point
is moved off the boundary (:mod:`robustlab.attacks.hardlabel.boundary_search`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live
from robustlab.attacker.parts import beside, overwrite
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.hardlabel.boundary_search import Search, Starts, blend
from robustlab.data.pairs import Pairs
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar

_HALVINGS = 10  # steps of the start's bisection
_LOOKS_BACK = {"sphere": 10, "source": 30}
_CONVERGED = 1e-7


def boundary(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2"] = "l2",
    steps: int = 25_000,
    spherical_step: float = 0.01,
    source_step: float = 0.01,
    adaptation: float = 1.5,
    check_every: int = 10,
    tries: int = 100,
    init: Tensor | None = None,
    pool: Pairs | None = None,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Boundary attack: a random walk along the boundary, one step sideways and one towards x.

        minimize ‖δ‖₂  subject to ŷ_θ(x + δ) ≠ y, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K). Hard-label access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, the only one.
        steps: number of proposals; a budget of the victim may end them before.
        spherical_step, source_step: the first δ and ε > 0, in units of the distance to x.
        adaptation: the factor > 1 by which they change.
        check_every: about the orthogonal step alone the model is asked in each so many-th step.
        tries, init, pool: where to begin, as in :func:`robustlab.attacks.hsja`.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where no start is found, x, and a warning names the rows. Cost: the start, 10 for its bisection,
        1 per step and 1 more in each ``check_every``-th; 1 for the clean check and 2 at the end. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one step, before any work.

    Source:
        Brendel et al. (2018), algorithm 1 and section 2.
    """
    checks.one_of("norm", norm, ("l2",))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("check_every", check_every, 1, integer=True)
    for name, value in (("spherical_step", spherical_step), ("source_step", source_step), ("adaptation", adaptation)):
        checks.positive(name, value)
    if adaptation <= 1:
        raise ValueError(f"adaptation: want above 1, got {adaptation}")
    victim, ball = Victim.of(victim), get_norm(norm)
    starts = Starts.read(victim, x, init, pool, tries)
    least = 1 + _HALVINGS + 2 + 1  # the start, its bisection, a step that is checked, and the move off the boundary
    with victim.session(x, y, target=target, ids=ids, access="hard", first_round=least) as session:
        search = Search(session, ball, seed)
        live = search.begin(starts)
        search.bisect(live, blend, _HALVINGS)
        live.dist = ball.length(live.points - live.x)
        live.delta, live.eps = torch.full_like(live.dist, spherical_step), torch.full_like(live.dist, source_step)
        live.sphere_won, live.source_won = torch.zeros_like(live.dist), torch.zeros_like(live.dist)
        for k in bar(range(1, steps + 1), show=progress, label="boundary"):
            checked = k % check_every == 0
            live.keep(_goes_on(live, search.can_pay(live, 1 + checked)))
            if not len(live):
                break
            around = search.clip_(_sideways(live, live.noise.quick_normal((2, k), live.x.shape[1:])))
            if checked:
                live.sphere_won += search.ask(around, live)
            points = search.clip_(_inwards(live, around))
            dist = ball.length(points - live.x)
            met = search.ask(points, live, dist)
            live.source_won += met
            moved = met & (dist < live.dist)
            overwrite(live.points, moved, points)
            live.dist = torch.where(moved, dist, live.dist)
            if k % (check_every * _LOOKS_BACK["sphere"]) == 0:
                factor = _factor(live.sphere_won / _LOOKS_BACK["sphere"], 0.2, 0.5, adaptation)
                live.delta, live.eps = live.delta * factor, live.eps * factor
                live.sphere_won = torch.zeros_like(live.dist)
            if k % _LOOKS_BACK["source"] == 0:
                live.eps = live.eps * _factor(live.source_won / _LOOKS_BACK["source"], 0.1, 0.25, adaptation)
                live.source_won = torch.zeros_like(live.dist)
        return search.result()


def _goes_on(live: Live, paying: Tensor | None) -> Tensor:
    going = live.eps >= _CONVERGED
    return going if paying is None else going & paying


def _sideways(live: Live, normal: Tensor) -> Tensor:
    """p′: a random point of the sphere around x through p, at about δ times its radius from p."""
    away = (live.points - live.x).flatten(1)
    eta = normal.to(away.dtype).flatten(1)
    along = eta * away
    eta -= torch.mul(away, (along.sum(dim=1) / live.dist.square())[:, None], out=along)
    length = torch.linalg.vector_norm(eta, dim=1).clamp_min(torch.finfo(eta.dtype).tiny)
    eta *= (live.delta * live.dist / length)[:, None]
    eta.add_(away).div_((1 + live.delta.square()).sqrt()[:, None])
    return eta.reshape(live.x.shape).add_(live.x)


def _inwards(live: Live, around: Tensor) -> Tensor:
    """p″: from p′ towards x, to the distance (1 − ε)·r; from a clipped p′ that is nearer already, not outwards."""
    away = around - live.x
    length = torch.linalg.vector_norm(away.flatten(1), dim=1)
    step = (live.eps * live.dist + length - live.dist).clamp_min(0)
    away *= beside(step / length.clamp_min(torch.finfo(length.dtype).tiny), away)
    return torch.sub(around, away, out=away)


def _factor(rate: Tensor, low: float, high: float, adaptation: float) -> Tensor:
    """How step sizes change by the share of successes, (n,)."""
    return torch.where(rate > high, adaptation, torch.where(rate < low, 1 / adaptation, 1.0)).to(rate.dtype)
