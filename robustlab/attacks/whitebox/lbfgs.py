"""The box-constrained L-BFGS attack, the first adversarial examples of deep networks.

Szegedy et al., "Intriguing properties of neural networks" (2014), section 4.1:

    minimize_δ c·‖δ‖₂² + loss(f_θ(x + δ), t)   subject to x + δ ∈ box

by L-BFGS with box constraints, and a line search for the largest c whose minimizer still meets the goal.

Different here: the paper writes c·|r|, the square makes it smooth; an untargeted form, which the paper lacks, takes the
cross-entropy of "any class but y", −log(1 − [f_θ]_y); the nearest success on the whole way is kept, not only the
minimizers. The solver is our own, so that a whole batch is minimized at once: a projected L-BFGS in which the
quasi-Newton step acts on the elements that the box leaves free (Bertsekas' two-metric idea) and each sample backtracks
on its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.progress import bar

_MEMORY = 8  # pairs (s, y) kept


def lbfgs(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: str = "l2",
    target: int | Tensor | None = None,
    steps: int = 60,
    search_steps: int = 12,
    c: float = 1.0,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Szegedy et al.'s attack: box-constrained L-BFGS and a line search on c.

        minimize_δ c·‖δ‖₂² + CE(z(x + δ), t)     untargeted: −log(1 − softmax(z)_y) in place of CE

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: only ``"l2"``.
        target: a label, or (N,), for a targeted attack.
        steps: function evaluations of each minimization, at most.
        search_steps: values of c tried: powers of ten until both a success and a failure are known, then halving the
            interval on a logarithmic scale.
        c: first value of c.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: one query and one gradient an evaluation.

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
        search = _Nearest(session)
        value = session.x.new_full(session.x.shape[:1], c)
        works, fails = torch.zeros_like(value), torch.full_like(value, torch.inf)
        for _ in bar(range(search_steps), show=progress, label="lbfgs"):
            rows = session.active[session.can_pay(session.active)]
            if not rows.numel():
                break
            succeeded = torch.zeros_like(value, dtype=torch.bool)
            _minimize(search, rows, value, steps, succeeded)
            works = torch.where(succeeded, torch.maximum(works, value), works)
            fails = torch.where(succeeded, fails, torch.minimum(fails, value))
            middle = (works * fails).sqrt()
            value = torch.where(fails.isinf(), value * 10, torch.where(works == 0, value / 10, middle))
        return session.result(search.best, asked=True, revert=True)


def other_than(logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
    """CE(z, t), or −log(1 − softmax(z)_y) for an untargeted attack."""
    if target is not None:
        return F.cross_entropy(logits, target, reduction="none")
    return logits.logsumexp(dim=1) - logits.scatter(1, y[:, None], -torch.inf).logsumexp(dim=1)


class _Nearest:
    """The objective, and the nearest success that it has met."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.best = session.x.clone()
        self.distance = session.x.new_full(session.x.shape[:1], torch.inf)

    def __call__(self, points: Tensor, rows: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value (n,), gradient (n, d) and success of flat ``points`` (n, d)."""
        shaped = points.reshape(-1, *self.session.x.shape[1:])
        answer = self.session.gradient(shaped, rows, other_than)
        delta = points - self.session.x[rows].flatten(1)
        square = delta.square().sum(dim=1)
        won = self.session.secure(answer.logits, rows)
        nearer = won & (square < self.distance[rows])
        self.best[rows[nearer]], self.distance[rows[nearer]] = shaped[nearer], square[nearer]
        return c * square + answer.loss, 2 * c[:, None] * delta + answer.grad.flatten(1), won


def _minimize(search: _Nearest, rows: Tensor, c: Tensor, steps: int, succeeded: Tensor) -> None:
    """Projected L-BFGS from x, all ``rows`` at once; ``succeeded`` (N,) notes whether the minimizer meets the goal."""
    session = search.session
    low, high = session.low, session.high
    at = session.x[rows].flatten(1)
    value, grad, succeeded[rows] = search(at, rows, c[rows])
    past_s = at.new_zeros(_MEMORY, *at.shape)
    past_y = torch.zeros_like(past_s)
    move = _direction(at, grad, past_s, past_y, low, high)
    length = torch.ones_like(value)
    for _ in range(steps - 1):
        # A sample leaves when its projected gradient or its step has died out, or its budget is spent.
        stationary = ((at - grad).clamp(low, high) - at).abs().amax(dim=1) < 1e-7
        going = session.can_pay(rows) & ~stationary & (length > 1e-8)
        if not bool(going.all()):
            rows, at, value, grad, move, length = (t[going] for t in (rows, at, value, grad, move, length))
            past_s, past_y = past_s[:, going], past_y[:, going]
        if not rows.numel():
            break
        trial = (at + length[:, None] * move).clamp(low, high)
        new_value, new_grad, won = search(trial, rows, c[rows])
        step = trial - at
        accepted = new_value <= value + 1e-4 * (grad * step).sum(dim=1)
        succeeded[rows] = torch.where(accepted, won, succeeded[rows])
        take = accepted[:, None]
        past_s = torch.where(take, torch.cat([past_s[1:], step[None]]), past_s)
        past_y = torch.where(take, torch.cat([past_y[1:], (new_grad - grad)[None]]), past_y)
        at, grad = torch.where(take, trial, at), torch.where(take, new_grad, grad)
        value = torch.where(accepted, new_value, value)
        length = torch.where(accepted, torch.ones_like(length), length / 2)
        move = torch.where(take, _direction(at, grad, past_s, past_y, low, high), move)


def _direction(at: Tensor, grad: Tensor, past_s: Tensor, past_y: Tensor, low: float, high: float) -> Tensor:
    """−H·grad by the two-loop recursion, on the elements that the box leaves free."""
    free = ~(((at <= low) & (grad > 0)) | ((at >= high) & (grad < 0)))
    q = grad * free
    steepest = q
    s, y = past_s * free, past_y * free
    curvature = (s * y).sum(dim=2)
    usable = curvature > 1e-10 * y.square().sum(dim=2)
    rho = torch.where(usable, 1 / curvature.where(usable, torch.ones_like(curvature)), 0.0)
    weights = []
    for i in reversed(range(_MEMORY)):
        a = rho[i] * (s[i] * q).sum(dim=1)
        q = q - a[:, None] * y[i]
        weights.append(a)
    scale = torch.ones_like(rho[0]) / grad.abs().sum(dim=1).clamp_min(1.0)  # before the first pair: a short step
    for i in range(_MEMORY):
        scale = torch.where(usable[i], 1 / (rho[i] * y[i].square().sum(dim=1)).clamp_min(1e-30), scale)
    q = q * scale[:, None]
    for i, a in zip(range(_MEMORY), reversed(weights), strict=True):
        b = rho[i] * (y[i] * q).sum(dim=1)
        q = q + (a - b)[:, None] * s[i]
    q = q * free
    descent = (q * grad).sum(dim=1, keepdim=True) > 0
    return -torch.where(descent, q, steepest)
