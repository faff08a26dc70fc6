"""OPT attack.

Cheng, Le, Chen, Yi, Zhang and Hsieh, "Query-efficient hard-label black-box attack: an optimization-based approach"
(2019), algorithms 1 and 2, on the minimal-distortion formulation (1) of the survey with labels alone. What is minimized
is the distance of the boundary from x in the direction θ, a continuous function even where labels are all that is told:

    g(θ) = min {λ > 0 : x + λ·θ/‖θ‖ meets the goal}

Its values are found by a search along the ray, and its gradient from q random unit directions u_b:

    ĝ = 1/q Σ_b (g(θ + βu_b) − g(θ))/β · u_b
    θ ← (θ − α·ĝ)/‖θ − α·ĝ‖,   α by a line search: doubled as long as g falls, else quartered until it does

If one of the θ + βu_b is better than what the line search finds, it is taken. It begins with the best of ``tries``
directions. Where α has fallen below 1e-4 it is set to 1 and β to a tenth, until β is below 1e-8. g is found to the
accuracy β/500 by a search that begins at the last distance. A sample whose g has not fallen by 1 % of the box's width
in 50 rounds is done.

Different here: rays are clipped to the box, and distances are those of the clipped points, which the authors' code does
not do; g is in units of the box's width; in the line search a direction is searched along only if it is better, and α
is doubled only after a step that helped. The search along a ray goes out by 1 %, 2 %, 4 %, …, and its accuracy is
relative. At the end the point is moved off the boundary (:mod:`robustlab.attacks.hardlabel.boundary_search`).
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
from robustlab.attacks.hardlabel.boundary_search import Starts
from robustlab.attacks.hardlabel.ray_search import BRACKET, RaySearch, refine, turned, unit_
from robustlab.data.pairs import Pairs
from robustlab.geometry.norms import get_norm
from robustlab.progress import bar

_STOPPING, _EVERY = 0.01, 50


def opt(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2"] = "l2",
    steps: int = 1000,
    q: int = 10,
    alpha: float = 0.2,
    beta: float = 1e-3,
    tries: int = 100,
    init: Tensor | None = None,
    pool: Pairs | None = None,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """OPT: descent on the distance of the boundary, by its differences in random directions.

        minimize_θ g(θ),   g(θ) = min {‖δ‖₂ : δ on the clipped ray of direction θ, ŷ_θ(x + δ) ≠ y}

    Args:
        victim: a Victim, or a model with logits (N, K). Hard-label access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, the only one.
        steps: number of rounds; a budget of the victim may end them before.
        q: directions for each estimate of the gradient; along each the boundary is searched for.
        alpha: first step α > 0, of a direction of length 1.
        beta: first length β > 0 of the differences.
        tries: number of directions among which it chooses where to begin.
        init, pool: where to begin, as in :func:`robustlab.attacks.hsja`; noise is normal here.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where no start is found, x, and a warning names the rows. Cost: at least 1 for each start; q
        searches, about 15 each, and the line search for each round; 1 for the clean check, 2 at the end. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Cheng et al. (2019), algorithms 1 and 2.
    """
    checks.one_of("norm", norm, ("l2",))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("q", q, 1, integer=True)
    checks.positive("alpha", alpha)
    checks.positive("beta", beta)
    victim, ball = Victim.of(victim), get_norm(norm)
    starts = Starts.read(victim, x, init, pool, tries, normal=True)
    least = tries + BRACKET + q * BRACKET + 1 + 1  # starts, the best one's bisection, a gradient, a step, the end
    with victim.session(x, y, target=target, ids=ids, access="hard", first_round=least) as session:
        search = RaySearch(session, ball, seed)
        live = search.aim(starts, beta / 500)
        live.alpha, live.beta, live.before = torch.full_like(live.g, alpha), torch.full_like(live.g, beta), live.g
        for t in bar(range(steps), show=progress, label="opt"):
            live.keep(search.can_pay(live, q + 1))
            if not len(live):
                break
            u = unit_(live.noise.quick_normal((2, t), (q, *x.shape[1:])).to(live.x.dtype))
            gradient, theta, g = _differences(search, live, u)
            search.line_search(live, gradient / session.width, live.beta / 500)
            nearer = g < live.g
            overwrite(live.theta, nearer, theta)
            live.g = torch.where(nearer, g, live.g)
            refine(live)
            if (t + 1) % _EVERY == 0:
                live.keep(live.g <= live.before - _STOPPING * session.width)
                live.before = live.g
        return search.result()


def _differences(search: RaySearch, live: Live, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ĝ (n, ...) from m unit directions u (n, m, ...) of each sample, and the best of θ + βu with its g (n,)."""
    n, m = u.shape[:2]
    probes, theta = search.session.of(live.rows.repeat_interleave(m)), turned(live.theta, live.beta, u)
    guess, accuracy = (part.repeat_interleave(m) for part in (live.g, live.beta / 500))
    g, points = search.distance(probes, theta.flatten(0, 1), guess, accuracy)
    g, best = g.reshape(n, m), torch.arange(n, device=g.device)
    slope = ((g - live.g[:, None]) / live.beta[:, None]).nan_to_num(0.0, 0.0, 0.0)  # none where the ray met no goal
    gradient = (beside(slope.flatten(), u.flatten(0, 1)) * u.flatten(0, 1)).unflatten(0, (n, m)).mean(dim=1)
    least, index = g.min(dim=1)
    nearest = points.unflatten(0, (n, m))[best, index]
    search.best.keep(live, nearest, search.ball.length(nearest - live.x), least.isfinite())
    return gradient, theta[best, index], least
