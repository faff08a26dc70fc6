"""The box-constrained L-BFGS attack, the first adversarial examples of deep networks.

Szegedy et al., "Intriguing properties of neural networks" (2014), section 4.1:

    minimize_δ c·‖δ‖₂² + loss(f_θ(x + δ), t)   subject to x + δ ∈ box

by L-BFGS with box constraints, and a line search on c.

Different here: the paper asks for the minimum c > 0 whose minimizer r meets f(x + r) = t. As c weighs the distance, a
smaller c meets the goal more easily and farther away; so the search here is for the largest c whose minimizer still
meets it. The paper writes c·|r|, the square makes it smooth; an untargeted form, which the paper lacks, takes the
cross-entropy of "any class but y", −log(1 − [f_θ]_y); the nearest success on the whole way is kept, not only the
minimizers. The solver is our own, so that a whole batch is minimized at once: a projected L-BFGS in which the
quasi-Newton step acts on the elements that the box leaves free (Bertsekas' two-metric idea) and each sample backtracks
on its own; it works in widths of the box, so that it does the same in [0, 1] and [0, 255].
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best, Live, closest
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.projections import clip
from robustlab.progress import bar

_MEMORY = 8  # pairs (s, y) kept


def lbfgs(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2"] = "l2",
    target: int | Tensor | None = None,
    steps: int = 60,
    search_steps: int = 12,
    c: float = 1.0,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Szegedy et al.'s attack: box-constrained L-BFGS and a line search for the largest c that meets the goal.

        minimize_δ c·‖δ/width‖₂² + CE(z(x + δ), t)     untargeted: −log(1 − softmax(z)_y) in place of CE

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: only ``"l2"``.
        target: a label, or (N,), for a targeted attack.
        steps: function evaluations of each minimization, at most.
        search_steps: values of c tried: powers of ten until both a success and a failure are known, then halving the
            interval on a logarithmic scale.
        c: first value of c, for lengths in widths of the box (of its widest side).
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: one query and one gradient per evaluation.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Szegedy et al. (2014), section 4.1.
    """
    checks.one_of("norm", norm, ("l2",))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("search_steps", search_steps, 1, integer=True)
    checks.positive("c", c)
    victim = Victim.of(victim)
    with victim.session(x, y, target=target, ids=ids) as session:
        best, live = closest(session), session.live()
        live.c = live.x.new_full((len(live),), c)
        live.works, live.fails = torch.zeros_like(live.c), torch.full_like(live.c, torch.inf)
        for _ in bar(range(search_steps), show=progress, label="lbfgs"):
            won = _minimize(session, best, live.c, steps)
            live.works = torch.where(won, torch.maximum(live.works, live.c), live.works)
            live.fails = torch.where(won, live.fails, torch.minimum(live.fails, live.c))
            middle = torch.where(live.works == 0, live.c / 10, (live.works * live.fails).sqrt())
            live.c = torch.where(live.fails.isinf(), live.c * 10, middle)
        return session.result(best.points, asked=True, revert=True)


def other_than(logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
    """CE(z, t), or −log(1 − softmax(z)_y) for an untargeted attack."""
    if target is not None:
        return F.cross_entropy(logits, target, reduction="none")
    return logits.logsumexp(dim=1) - logits.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)


def _minimize(session: Session, best: Best, c: Tensor, steps: int) -> Tensor:
    """Projected L-BFGS from x for all active samples with their ``c`` (n,); keeps the nearest successes in ``best``.

    Returns whether the minimizer meets the goal, (n,).
    """
    live, won = session.live(), torch.zeros_like(session.y, dtype=torch.bool)
    shape = live.x.shape[1:]
    width = session.width
    low, high = (torch.as_tensor(end).to(live.x).expand(shape).flatten() / width for end in (session.low, session.high))
    live.clean = live.x.flatten(1) / width
    live.c, live.at, live.value = c, live.clean, torch.full_like(c, torch.inf)
    live.grad, live.move, live.length = torch.zeros_like(live.at), torch.zeros_like(live.at), torch.ones_like(c)
    live.past_s = live.past_y = live.at.new_zeros(len(live), _MEMORY, live.at.shape[1])
    for _ in range(steps):
        live.keep(session.can_pay(live))
        if not len(live):
            break
        trial = torch.clamp(live.at + live.length[:, None] * live.move, low, high)
        points = clip(trial.reshape(live.x.shape) * width, session.low, session.high)
        delta = trial - live.clean
        answer, square = session.gradient(points, live, other_than), delta.square().sum(dim=1)
        met = session.secure(answer.logits, live)
        best.keep(live, points, square, met)
        value = live.c * square + answer.loss
        grad = 2 * live.c[:, None] * delta + width * answer.grad.flatten(1)
        step = trial - live.at
        accepted = value <= live.value + 1e-4 * (live.grad * step).sum(dim=1)
        won[live.rows] = torch.where(accepted, met, won[live.rows])
        take = accepted[:, None]
        live.past_s = _pushed(live.past_s, step, accepted)
        live.past_y = _pushed(live.past_y, grad - live.grad, accepted)
        live.at, live.grad = torch.where(take, trial, live.at), torch.where(take, grad, live.grad)
        live.value = torch.where(accepted, value, live.value)
        live.length = torch.where(accepted, 1.0, live.length / 2)
        live.move = torch.where(take, _direction(live, low, high), live.move)
        # A sample leaves when its projected gradient or its step has died out.
        projected = torch.clamp(live.at - live.grad, low, high) - live.at
        live.keep((projected.abs().amax(dim=1) >= 1e-7) & (live.length > 1e-8))
    return won[session.active]


def _pushed(past: Tensor, last: Tensor, accepted: Tensor) -> Tensor:
    """``past`` (n, memory, d) with ``last`` (n, d) at its end and without its first, where ``accepted``."""
    return torch.where(accepted[:, None, None], torch.cat([past[:, 1:], last[:, None]], dim=1), past)


def _direction(live: Live, low: Tensor, high: Tensor) -> Tensor:
    """−H·grad by the two-loop recursion, on the elements that the box leaves free, (n, d)."""
    free = ~(((live.at <= low) & (live.grad > 0)) | ((live.at >= high) & (live.grad < 0)))
    q = steepest = live.grad * free
    s, y = live.past_s * free[:, None], live.past_y * free[:, None]
    curvature, bend = (s * y).sum(dim=2), y.square().sum(dim=2)
    usable = curvature > 1e-10 * bend
    rho = torch.where(usable, 1 / curvature.where(usable, 1.0), 0.0)
    weights = []
    for i in reversed(range(_MEMORY)):
        weights.append(rho[:, i] * (s[:, i] * q).sum(dim=1))
        q = q - weights[-1][:, None] * y[:, i]
    scale = 1 / live.grad.abs().sum(dim=1).clamp_min(1.0)  # before the first pair: a short step
    for i in range(_MEMORY):
        scale = torch.where(usable[:, i], 1 / (rho[:, i] * bend[:, i]).clamp_min(1e-30), scale)
    q = q * scale[:, None]
    for i, weight in zip(range(_MEMORY), reversed(weights), strict=True):
        b = rho[:, i] * (y[:, i] * q).sum(dim=1)
        q = q + (weight - b)[:, None] * s[:, i]
    q = q * free
    descent = (q * live.grad).sum(dim=1, keepdim=True) > 0
    return -torch.where(descent, q, steepest)
