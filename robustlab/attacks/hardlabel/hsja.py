"""HopSkipJumpAttack (HSJA).

Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack" (2020), algorithms 1 and 2, on
the minimal-distortion formulation (1) of the survey with labels alone. φ(z) is 1 where z meets the goal and −1
elsewhere. Round t begins with a point that meets it and has three parts:

    x_t ← the boundary between x and that point, by bisection to the relative accuracy θ
    v   ← Σ_b (φ(x_t + δu_b) − mean φ)·u_b,      b = 1 … B_t = B_0·√t
    next point: x_t + ξ·v/‖v‖₂, in ℓ∞ x_t + ξ·sign(v);  ξ = ‖x_t − x‖_p/√t, halved until it meets the goal

The directions u_b are uniform on the unit sphere (in ℓ∞: uniform in a cube, then of ℓ2 length 1). They are clipped with
their points, u_b ← (clip(x_t + δu_b) − x_t)/δ. Taking off the mean reduces the variance; where all φ are 1, or all −1,
v is the mean of the u_b, or its negative. In ℓ2 the bisection runs on the segment to x, and θ = γ/d^1.5; in ℓ∞ on the
radius of the ball around x to which the point is clipped, and θ = γ/d². With dist the distance before the bisection, of
which the point's error is a part θ, δ = √d·θ·dist in ℓ2 and d·θ·dist in ℓ∞; in the first round 0.1 of the box's width.

Different here: ξ is not halved without end, but until it is below θ·‖x_t − x‖; then the point stays for this round,
and the next one has new directions. Where clipping leaves nothing of any direction, v is 0 and the point stays too. θ
is at most 0.01, which matters for d < 22 with γ = 1, and at least 8 units of rounding. A sample whose budget does not
pay for a round is done. At the end the point is moved off the boundary
(:mod:`robustlab.attacks.hardlabel.boundary_search`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.hardlabel.boundary_search import Search, Starts, blend, halvings_for, parts
from robustlab.data.pairs import Pairs
from robustlab.geometry.norms import get_norm
from robustlab.geometry.portions import portions
from robustlab.geometry.projections import clip_
from robustlab.progress import bar


def hsja(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "l2",
    steps: int = 40,
    init_evals: int = 100,
    max_evals: int = 10_000,
    gamma: float = 1.0,
    tries: int = 100,
    init: Tensor | None = None,
    pool: Pairs | None = None,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """HopSkipJumpAttack: the boundary's normal from labels around a point of it, a jump along it, and back.

        minimize ‖δ‖_p  subject to ŷ_θ(x + δ) ≠ y, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K). Hard-label access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"`` or ``"linf"``.
        steps: number of rounds T; a budget of the victim may end them before.
        init_evals: B_0, the directions of the first round; the t-th has √t times as many.
        max_evals: the most directions of a round.
        gamma: γ > 0, in units of which the bisection is accurate.
        tries: the most points about which a sample asks for a start.
        init: points (N, ...) to begin at, for a targeted attack images of the target class.
        pool: labeled images from which a start is chosen, nearest first: a Dataset, a pair (x, y) or a loader. Without
            ``init`` and ``pool``, or where they do not meet the goal, noise is tried, and x blended with noise.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where no start is found, x, and a warning names the rows. Cost: the start, and for each round the
        bisection (log2 of 1/θ), B_t, and a query for each ξ; 1 for the clean check and 2 at the end. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Chen et al. (2020), algorithms 1 and 2 and section IV.
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    for name, value in (("steps", steps), ("init_evals", init_evals), ("max_evals", max_evals)):
        checks.at_least(name, value, 1, integer=True)
    checks.positive("gamma", gamma)
    victim, ball = Victim.of(victim), get_norm(norm)
    starts = Starts.read(victim, x, init, pool, tries)
    d = max(1, math.prod(x.shape[1:]))
    theta = min(gamma / (d**1.5 if norm == "l2" else d**2), 0.01)
    halvings = halvings_for(theta, x.dtype)
    theta = 0.5**halvings
    least = 1 + halvings + min(init_evals, max_evals) + 1 + halvings + 1  # start, bisection, directions, step, and back
    with victim.session(x, y, target=target, ids=ids, access="hard", first_round=least) as session:
        search = Search(session, ball, seed)
        live, between = search.begin(starts), blend if norm == "l2" else _shrunk
        for t in bar(range(1, steps + 1), show=progress, label="hsja"):
            dist = ball.length(live.points - live.x)
            live.delta = (d**0.5 if norm == "l2" else d) * theta * dist if t > 1 else 0.1 * session.width + 0 * dist
            search.bisect(live, between, halvings)
            evals = min(int(init_evals * math.sqrt(t)), max_evals)
            live.keep(search.can_pay(live, evals))
            if not len(live):
                break
            normal = ball.steepest(_normal(search, live, t, evals, uniform=norm == "linf"))
            live.xi = ball.length(live.points - live.x) / math.sqrt(t)
            live.points = _jump(search, live, normal, halvings - math.ceil(math.log2(t) / 2))
        search.bisect(live, between, halvings)
        return search.result()


def _shrunk(x: Tensor, far: Tensor, t: Tensor) -> Tensor:
    """The far points clipped to the ℓ∞ ball around x whose radius is t of their distance."""
    radius = beside(t * (far - x).flatten(1).abs().amax(dim=1), x)
    return torch.minimum(torch.maximum(far, x - radius), x + radius)


def _normal(search: Search, live: Live, t: int, evals: int, *, uniform: bool) -> Tensor:
    """An estimate of the boundary's normal at ``live.points``, towards the goal: Σ_b (φ_b − mean φ)·u_b, (n, ...)."""
    n, shape = len(live), live.x.shape[1:]
    weighted, plain, won = torch.zeros_like(live.x), torch.zeros_like(live.x), torch.zeros_like(live.delta)
    center, delta = live.points.unsqueeze(1), live.delta.reshape(n, 1, *[1] * len(shape))
    draw = live.noise.quick_uniform if uniform else live.noise.quick_normal
    for number, count in parts(evals, math.prod(shape)):
        u = draw((2, t, number), (count, *shape)).to(live.x.dtype)
        points = torch.empty_like(u)
        for rows in portions(u):
            part, here = u[rows], points[rows]
            part /= part.flatten(2).norm(dim=2).reshape(-1, count, *[1] * len(shape))
            clip_(torch.addcmul(center[rows], delta[rows], part, out=here), search.session.low, search.session.high)
            torch.sub(here, center[rows], out=part).div_(delta[rows])  # the clipped direction, as it was asked about
        met = search.session.ask_many_labels(points, live)
        phi = 2 * met.to(u.dtype) - 1
        weighted += torch.einsum("nb,nb...->n...", phi, u)
        plain += u.sum(dim=1)
        won += phi.sum(dim=1)
    mean = won / evals
    baseline = torch.where(mean.abs() == 1, 0.0, mean)
    return weighted - beside(baseline, plain) * plain


def _jump(search: Search, live: Live, normal: Tensor, halvings: int) -> Tensor:
    """``live.points`` moved by ξ along the normal, ξ halved until the goal is met; where it never is, as before."""
    landed, moving = live.points.clone(), normal.flatten(1).any(dim=1)
    trying = live.part(moving)
    trying.at, trying.normal = moving.nonzero().flatten(), normal[moving]
    for _ in range(max(1, halvings + 1)):
        trying.keep(search.can_pay(trying))
        if not len(trying):
            break
        points = search.inside(torch.addcmul(trying.points, beside(trying.xi, landed), trying.normal))
        met = search.ask(points, trying)
        landed[trying.at[met]] = points[met]
        trying.leave(met)
        trying.xi = trying.xi / 2
    return landed
