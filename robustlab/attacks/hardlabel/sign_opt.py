"""Sign-OPT.

Cheng, Singh, Chen, Chen, Liu and Hsieh, "Sign-OPT: a query-efficient hard-label adversarial attack" (2020), algorithm
1, on the minimal-distortion formulation (1) of the survey with labels alone. As in OPT, what is minimized is the
distance g(θ) of the boundary from x in the direction θ. But whether a turned direction θ′ = (θ + βu)/‖θ + βu‖ is
better is told by one label, that at the distance g(θ): where the goal is met there, g(θ′) is smaller. So from k random
unit u_b

    ĝ = 1/k Σ_b s_b·u_b,   s_b = −1 where the goal is met at x + g(θ)·θ′_b, 1 elsewhere
    θ ← (θ − α·ĝ)/‖θ − α·ĝ‖,   α by a line search: doubled as long as g falls, else quartered until it does

It begins with the best of ``tries`` directions. Where α has fallen below 1e-4 it is set to 1 and β to a tenth, until β
is below 1e-8. g is found to the accuracy β/500 by a search that begins at the last distance.

Different here: rays are clipped to the box, and distances are those of the clipped points, which the authors' code does
not do. α is doubled after a step that helped, not after the one that fails as well. In the line search a direction is
searched along only if it is better. The search along a ray goes out by 1 %, 2 %, 4 %, …, not by 1 % each time, and its
accuracy is relative. At the end the point is moved off the boundary
(:mod:`robustlab.attacks.hardlabel.boundary_search`).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.hardlabel.boundary_search import Starts, parts
from robustlab.attacks.hardlabel.ray_search import AT_ONCE, BRACKET, RaySearch, refine, rooms, turned, unit_
from robustlab.data.pairs import Pairs
from robustlab.geometry.norms import get_norm
from robustlab.geometry.portions import portions
from robustlab.progress import bar


def sign_opt(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2"] = "l2",
    steps: int = 1000,
    k: int = 200,
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
    """Sign-OPT: descent on the distance of the boundary, by the signs of its changes.

        minimize_θ g(θ),   g(θ) = min {‖δ‖₂ : δ on the clipped ray of direction θ, ŷ_θ(x + δ) ≠ y}

    Args:
        victim: a Victim, or a model with logits (N, K). Hard-label access suffices.
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, the only one.
        steps: number of rounds; a budget of the victim may end them before.
        k: directions, and labels, for each estimate.
        alpha: first step α > 0, of a direction of length 1.
        beta: first length β > 0 of the probes' turns.
        tries: number of directions among which it chooses where to begin.
        init, pool: where to begin, as in :func:`robustlab.attacks.hsja`; noise is normal here.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where no start is found, x, and a warning names the rows. Cost: at least 1 for each start; k, and
        the line search, for each round; 1 for the clean check and 2 at the end. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, or a budget that does not pay for one round, before any work.

    Source:
        Cheng et al. (2020), algorithm 1.
    """
    checks.one_of("norm", norm, ("l2",))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("k", k, 1, integer=True)
    checks.positive("alpha", alpha)
    checks.positive("beta", beta)
    victim, ball = Victim.of(victim), get_norm(norm)
    starts = Starts.read(victim, x, init, pool, tries, normal=True)
    least = tries + BRACKET + k + 1 + 1  # the starts, the best one's bisection, signs, a step, the move at the end
    with victim.session(x, y, target=target, ids=ids, access="hard", first_round=least) as session:
        search = RaySearch(session, ball, seed)
        live = search.aim(starts, beta / 500)
        live.alpha, live.beta = torch.full_like(live.g, alpha), torch.full_like(live.g, beta)
        for t in bar(range(steps), show=progress, label="sign_opt"):
            live.keep(search.can_pay(live, k + 1))
            if not len(live):
                break
            search.line_search(live, _signs(search, live, t, k), live.beta / 500)
            refine(live)
        return search.result()


def _signs(search: RaySearch, live: Live, t: int, k: int) -> Tensor:
    """ĝ = 1/k Σ_b s_b·u_b, (n, ...)."""
    shape, total = live.x.shape[1:], torch.zeros_like(live.x)
    for number, m in parts(k, math.prod(shape)):
        u = live.noise.quick_normal((2, t, number), (m, *shape)).to(live.x.dtype)
        points = torch.empty_like(u)
        for rows in portions(u, AT_ONCE):
            theta = turned(live.theta[rows], live.beta[rows], unit_(u[rows])).flatten(0, 1)
            x, g = (part[rows].repeat_interleave(m, dim=0) for part in (live.x, live.g))
            search.on_ray(x, theta, rooms(search.session, x, theta), g, out=points[rows].flatten(0, 1))
        met = search.session.ask_many_labels(points, live)
        for rows in portions(u):
            sign = (1 - 2 * met[rows].to(u.dtype)).reshape(-1, m, *[1] * len(shape))
            total[rows] += (sign * u[rows]).sum(dim=1)
    return total / k
