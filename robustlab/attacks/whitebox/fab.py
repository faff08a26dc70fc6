"""The fast adaptive boundary attack (FAB).

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (2020), algorithm 1, on
the minimal-distortion formulation (1) of the survey. As in DeepFool every logit is linear around the iterate x_i, with
the nearest boundary π: ⟨w, z⟩ = b. Both the iterate and the clean x are projected onto π within the box, exactly
(in ``hyperplane.py``), and the next iterate leans towards x as much as they are alike:

    v_i = proj(x_i) − x_i,  v_0 = proj(x) − x,  α = min{‖v_i‖_p / (‖v_i‖_p + ‖v_0‖_p), α_max}
    x_{i+1} = clip( (1 − α)·(x_i + η·v_i) + α·(x + η·v_0) )

If x_{i+1} meets the goal, it is kept when it is the nearest so far, and the search goes on from (1 − β)·x + β·x_{i+1}.
Later restarts begin at a random point around x. At last the segment from x to the best point is searched for the
boundary.

Different here: π is where the goal is met by 1e-4 of the logits' size (``spare``), so that rounding cannot undo it.
With ``target`` the goal is to reach that class, π is its boundary to the class that leads at present, and α is 0 until
the class is reached, since several boundaries meet there and leaning back to x can circle before them. The paper's
targeted version, which AutoAttack runs for one class after the other (FAB-T), is the argument ``toward``: only the
boundary between y and that class is considered, at the price of a single gradient, and leaving y is all that counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Best, Live, closest
from robustlab.attacker.losses import LossFunction
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.hyperplane import to_hyperplane
from robustlab.attacks.whitebox.minimum_norm import leading_classes, pull
from robustlab.geometry.norms import Norm, ProperNorm, get_norm
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def fab(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    steps: int = 100,
    restarts: int = 1,
    eps: float | Tensor | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    candidates: int = 10,
    target: int | Tensor | None = None,
    toward: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """FAB: project onto the linearized boundary within the box, with a bias towards x.

        minimize ‖δ‖_p  subject to ŷ_θ(x + δ) ≠ y, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        steps: iterations of each restart.
        restarts: number of starts: the first at x, the others uniform in a ball around x.
        eps: no restart begins farther away than ε/2, nor than half of the best distance so far; a number or (N,) in
            units of x, or None for no such ε. It does not bound the result.
        alpha_max: largest weight of the clean point's projection, in [0, 1].
        eta: extrapolation η ≥ 1 beyond the boundary.
        beta: where to go on after a success, a fraction β in (0, 1] of the way from x.
        candidates: number of classes considered, the label's included: those with the largest logits at x.
        target: a label, or (N,), for a targeted attack.
        toward: a label, or (N,): the only class whose boundary is considered; the goal stays untargeted.
        seed, ids: randomness of the restarts, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: two queries and ``candidates`` − 1 gradients (with ``target`` or
        ``toward`` one gradient) per iteration, and four queries of the final search.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Croce and Hein (2020), algorithm 1.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("restarts", restarts, 1, integer=True)
    checks.at_least("candidates", candidates, 2, integer=True)
    checks.at_least("alpha_max", alpha_max, 0.0)
    checks.at_least("eta", eta, 1.0)
    checks.positive("beta", beta)
    checks.at_most("alpha_max", alpha_max, 1)
    checks.at_most("beta", beta, 1)
    ball, victim = get_norm(norm), Victim.of(victim)
    checks.images(x, victim.bounds)
    radius = None if eps is None else checks.radius(eps, x, norm, victim.bounds)
    aim = None if toward is None else checks.toward(toward, x, target)
    with victim.session(x, y, target=target, ids=ids) as session:
        if aim is not None:
            session.check_toward(aim)
        best, box = closest(session), (session.low, session.high)
        ends = [_flat(end, session.x) for end in box]
        given = {"eps": radius, "toward": aim, "classes": leading_classes(session, candidates)}
        for restart in bar(range(restarts), show=progress, label="fab restarts"):
            live = session.live(noise=session.noise(seed), **given)
            live.points = live.x if restart == 0 else _around(ball, live, best, restart, session)
            for _ in range(steps):
                live.keep(session.can_pay(live, 2))
                if not len(live):
                    break
                gap, slope = _boundary(session, live, ball.dual)
                behind = torch.linalg.vecdot(slope, (live.points - live.x).flatten(1))
                both = torch.stack([live.points, live.x])
                moves = to_hyperplane(ball, both.flatten(2), slope, torch.stack([gap, gap + behind]), *ends)
                here, there = ball.length(moves[0]), ball.length(moves[1])
                alpha = (here / (here + there)).nan_to_num_(0.0).clamp_max_(alpha_max)
                if live.target is not None:  # several boundaries meet there: no leaning back before it is reached
                    alpha *= best.of(live).isfinite()
                to, from_x = both.add_(moves.reshape(both.shape), alpha=eta)
                points = clip(torch.lerp(to, from_x, beside(alpha, to)), *box)

                won = session.secure(session.ask(points, live).logits, live)
                delta = points - live.x
                best.keep(live, points, ball.length(delta), won)
                live.points = torch.where(beside(won, points), live.x.add(delta, alpha=beta), points)
        pull(session, best, ball)
        return session.result(best.points, asked=True, revert=True)


def _around(ball: Norm, live: Live, best: Best, restart: int, session: Session) -> Tensor:
    """A random point, at most half as far from x as the best one and as ε."""
    reach = ball.length(torch.maximum(live.x - session.low, session.high - live.x))
    reach = torch.minimum(reach, best.of(live))
    reach = reach if live.eps is None else torch.minimum(reach, live.eps)
    return clip(live.x + ball.uniform(live.noise, restart, live.x, reach / 2), session.low, session.high)


def _flat(end: Bound, x: Tensor) -> Bound:
    """An end of the box beside flattened samples."""
    return end.expand(x.shape[1:]).flatten() if isinstance(end, Tensor) else end


def _boundary(session: Session, live: Live, dual: Norm) -> tuple[Tensor, Tensor]:
    """The nearest linearized boundary: gap (n,) and slope (n, d).

    At points + v the goal is met, as far as linearization goes, if ⟨slope, v⟩ ≥ gap.
    """
    if live.toward is not None or live.target is not None:
        answer = session.gradient(live.points, live, _shortfall(session, live))
        return answer.loss, answer.grad.flatten(1).neg()
    answer, classes, slopes = session.jacobian(live.points, live, lambda _: live.classes)
    scores, slopes = answer.logits.gather(1, classes), slopes.flatten(2)
    gaps = scores[:, :1] - scores[:, 1:] + session.beyond(answer.logits, live).unsqueeze(1)
    length = dual.length(slopes.flatten(0, 1)).reshape(gaps.shape)
    nearest = torch.where(length > 0, gaps.abs() / length, torch.inf).argmin(dim=1)
    chosen = torch.arange(len(live), device=nearest.device), nearest
    return gaps[chosen], slopes[chosen]


def _shortfall(session: Session, live: Live) -> LossFunction:
    """How much is missing to the goal or, given ``toward``, to that class's lead over y by the margin aimed at."""
    if live.toward is None:
        return session.shortfall(live)

    def loss(logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
        lead = logits.gather(1, live.toward[:, None]) - logits.gather(1, y[:, None])
        return session.beyond(logits, live) - lead.squeeze(1)

    return loss
