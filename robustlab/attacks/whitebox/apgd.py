"""Auto-PGD.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"
(2020), algorithm 1, for ℓ∞ and ℓ2; Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
classifiers" (2021), algorithm 1, for ℓ1; on the budget-based formulation (3) of the survey. PGD whose step size η needs
no tuning. With the attacker's loss g, the steepest unit step v(·) and the projection P onto ball ∩ box:

    z     = P( x_k + η_k · v(−∇g(x_k)) )
    x_k+1 = P( x_k + 0.75·(z − x_k) + 0.25·(x_k − x_k−1) )              (without the last term in the first step)

η_0 = 2ε. At checkpoints, 22 % of the steps apart at first and 3 % less each time down to 6 %, a sample halves its η and
goes back to its best point if

    1. at most ρ of the steps since the last checkpoint brought g below its value one step before, or
    2. it did not halve η at the last checkpoint, and has found no better point since.

ℓ1 has no momentum. A step of length η spreads over the k elements of largest gradient, in equal parts; k is a fifth of
all at first, and later two thirds of the support of the best δ. Every 4 % of the steps a sample whose support shrank
by more than 5 % sets η = η_0 = ε and goes back to its best point; otherwise η is divided by 1.5, down to ε/10. With
``multi_eps`` the search starts in a ball of 3ε, goes on in one of 2ε and ends in that of ε (30, 30 and 40 % of the
steps).

Different here: a sample stops at its first success; P is the exact projection in ℓ2, too, where the authors clip to the
box after the ball; in ℓ1, elements that the box keeps from moving take no part in the step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.apgd_descent import Descent, checkpoints
from robustlab.geometry.norms import Norm, ProperNorm, get_norm
from robustlab.progress import bar

_PHASES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # multi_eps: radius over ε, share of the steps


def apgd(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: ProperNorm = "linf",
    eps: float | Tensor,
    steps: int = 100,
    restarts: int = 1,
    loss: LossName | LossFunction = "ce",
    target: int | Tensor | None = None,
    toward: int | Tensor | None = None,
    init: Tensor | None = None,
    rho: float = 0.75,
    multi_eps: bool = False,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Auto-PGD: projected gradient descent that sets its own step size.

        minimize_δ g(δ | x, y, θ)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        steps: number of gradient steps in each run.
        restarts: number of random starts; a sample that is done skips the rest.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`): ``"ce"``, ``"dlr"`` or another.
        target: a label, or (N,), for a targeted attack, which succeeds at the target alone.
        toward: a label, or (N,), at which the targeted form of ``loss`` aims while the goal stays untargeted: any label
            but y is a success. APGD-T of AutoAttack is a run toward each of nine classes. Not beside ``target``.
        init: perturbation δ_0 of the first start, shape of x, projected onto the ball and the box; None draws it: noise
            (ℓ∞ uniform, else Gaussian) scaled to length ε (ℓ1: projected onto the ball), and clipped.
        rho: ρ in (0, 1], the share of improving steps at which η stays; plays no part in ℓ1.
        multi_eps: shrink the ball from 3ε to ε during each run; for ``norm="l1"`` only.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep, for every point tried, ``result.trace["loss"]`` and the η with which it was reached,
            ``result.trace["step_size"]``, both (points, N); NaN for a sample that is done.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success, for each run:
        steps + 1 queries and steps gradients (``multi_eps``: 2 queries more), and 1 query for the clean check. A
        success has 1 more, for the final check.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work. The DLR loss needs 3 classes, its targeted form 4.

    Source:
        Croce and Hein (2020), algorithm 1 and equations (6), (7); Croce and Hein (2021), algorithm 1.
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("restarts", restarts, 1, integer=True)
    checks.positive("rho", rho)
    checks.at_most("rho", rho, 1)
    if multi_eps and norm != "l1":
        raise ValueError(f"multi_eps: want False unless norm is 'l1', got True with norm {norm!r}")
    ball, g, victim = get_norm(norm), attacker_loss(loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    eps = checks.radius(eps, x, norm, victim.bounds)
    if init is not None:
        checks.same_shape("init", init, x)
        init = init.to(x.device)  # eps and labels are moved there, too
    aim = None if toward is None else checks.toward(toward, x, target)
    needed = 2 if aim is None else g.min_classes_targeted
    with victim.session(x, y, target=target, ids=ids, loss=g if aim is None else None, min_classes=needed) as session:
        if aim is not None:
            session.check_toward(aim)
        best, descent = Best(session), Descent(ball, session.low, session.high, rho)
        given = {"eps": eps, "init": init, "toward": aim, "noise": session.noise(seed)}
        phases, kept = _phases(steps) if multi_eps else [(1.0, steps)], list[Tensor]()
        for restart in bar(range(restarts), show=progress and restarts > 1, label="apgd restarts"):
            live = session.live(session.unmet() if restart else None, **given)
            loss_there = g if aim is None else _toward(g, live)
            own = init is not None and restart == 0
            delta = live.init.to(live.x) if own else _start(ball, live, restart, phases[0][0])
            for factor, count in phases:
                successes, windows = session.first_success.clone(), checkpoints(norm, count)
                descent.begin(live, delta, factor * live.eps, own)
                for k in bar(range(count + 1), show=progress and restarts == 1, label="apgd"):
                    live.keep(session.can_pay(live))
                    if not len(live):
                        break
                    ask = session.gradient if k < count else session.ask
                    answer = ask(live.points, live, loss_there)
                    descent.note(live, answer)
                    if factor == 1.0:  # in a larger ball nothing counts
                        best.keep(live, live.points, torch.where(answer.met, -torch.inf, answer.loss))
                        if trace:
                            there = torch.full_like(eps, torch.nan).repeat(2, 1)  # NaN for who is done
                            kept.append(there.index_copy_(1, live.rows, torch.stack([answer.loss, live.step])))
                        live.leave(answer.met)
                    if k == count or not len(live):
                        break
                    if k in windows:
                        descent.adapt(live, windows[k])
                    descent.move(live, first=k == 0)
                if factor != 1.0:
                    session.forget_successes(successes)
                delta, own = live.best - live.x, True
        traces = dict(zip(("loss", "step_size"), torch.stack(kept, dim=1), strict=True)) if kept else None
        return session.result(best.points, asked=True, trace=traces)


def _toward(g: LossFunction, live: Live) -> LossFunction:
    """The targeted form of g, aimed at ``live.toward``; the goal stays untargeted."""
    return lambda logits, y, target=None, kappa=0.0: g(logits, y, live.toward, kappa)


def _phases(steps: int) -> list[tuple[float, int]]:
    """Radius over ε and number of steps of each phase of ``multi_eps``."""
    counts = [math.ceil(round(share * steps, 9)) for _, share in _PHASES[:-1]]
    counts.append(max(steps - sum(counts), 1))
    return [(factor, count) for (factor, _), count in zip(_PHASES, counts, strict=True)]


def _start(ball: Norm, live: Live, draw: int, factor: float) -> Tensor:
    """Noise of length ``factor``·ε; in ℓ1 Gaussian noise as it is, which the projection will make sparse."""
    shape, dtype = live.x.shape[1:], live.x.dtype
    if ball.name == "linf":
        delta = live.noise.uniform(draw, shape, dtype, -1.0, 1.0)
    else:
        delta = live.noise.normal(draw, shape, dtype)
    return delta if ball.name == "l1" else delta * beside(factor * live.eps / ball.length(delta), delta)
