"""The attacks of Carlini and Wagner.

Carlini and Wagner, "Towards evaluating the robustness of neural networks" (2017b), section VI, on the penalty-based
formulation (2) of the survey. With w instead of x + δ = (tanh(w) + 1)/2, which keeps to the box by itself, and the
margin loss g = max{κ − goal margin, 0} (f_6 of the paper), Adam minimizes over w

    ℓ2 (VI-A):  ‖δ‖₂² + c·g                   from x, for values of c that a binary search chooses
    ℓ∞ (VI-C):  Σ_i max(|δ_i| − τ, 0) + c·g   from the last success, where τ ← 0.9·min(τ, ‖δ‖∞); c doubles on failure
    ℓ0 (VI-B):  ‖δ‖₂² + c·g                   from the last success, over the elements that are not frozen: a success
                freezes at x the 0.3·√m of its m changed elements with the smallest |δ_i|·|∇_i g|; c doubles on failure

Different here: the goal asks for 1e-4·max(1, largest |logit|) more than κ, so that rounding cannot undo a success.
Early aborting, c, τ and the mask belong to each sample alone. Where ℓ∞ would give up, it goes on with a factor nearer
to 1 and an Adam step size that shrinks alike, since 0.9 alone leaves up to 10 % on the table; its first step size is
0.02 instead of 0.005 and its first c 1e-3 instead of 1e-5, which need fewer steps. ℓ0 counts and freezes elements,
where the paper freezes a pixel's three channels together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.parts import beside
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.cw_descent import Schedule, descend
from robustlab.attacks.whitebox.weight_search import WeightSearch


def cw(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: str = "l2",
    target: int | Tensor | None = None,
    kappa: float = 0.0,
    steps: int = 1000,
    search_steps: int = 9,
    lr: float | None = None,
    c: float = 1e-3,
    abort_early: bool = True,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Carlini and Wagner's attack in ℓ2, ℓ∞ or ℓ0.

        minimize_w penalty(x(w) − x) + c·max{κ − goal margin(x(w)), 0},    x(w) = (tanh(w) + 1)/2

    Args:
        victim: a Victim, or a model with logits (N, K).
        x: (N, ...), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"l2"``, ``"linf"`` or ``"l0"`` (elements are counted).
        target: a label, or (N,), for a targeted attack.
        kappa: confidence κ ≥ 0, in logits, that the result must have.
        steps: Adam steps of one minimization, at most.
        search_steps: ℓ2: values of c tried. ℓ∞: how often the cut of τ, 10 % at first, is halved. Not used in ℓ0.
        lr: Adam's step size; None means 0.01 (ℓ∞: 0.02).
        c: first value of c.
        abort_early: end a minimization that has not improved by 0.01 % over a tenth of its steps.
        seed, ids: accepted for uniformity; the method is deterministic.
        progress: show a counter in a terminal.

    Returns:
        AttackResult; where it fails, x. Cost: one query and one gradient a step.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Carlini and Wagner (2017b), sections VI-A (ℓ2), VI-B (ℓ0) and VI-C (ℓ∞).
    """
    checks.one_of("norm", norm, ("l2", "linf", "l0"))
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("search_steps", search_steps, 1, integer=True)
    lr = lr if lr is not None else (0.02 if norm == "linf" else 0.01)
    checks.positive("lr", lr)
    checks.positive("c", c)
    victim = Victim.of(victim)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa) as session:
        if not session.active.numel():
            return session.result(session.x)
        plan: Schedule
        if norm == "l2":
            plan = _L2(session, c, lr, search_steps)
        elif norm == "linf":
            plan = _Linf(session, c, lr, search_steps)
        else:
            plan = _L0(session, c, lr)
        return session.result(descend(session, plan, steps, abort_early, progress), asked=True, revert=True)


class _L2(Schedule):
    """Binary search on c: up by tens until a success, then halving the interval."""

    def __init__(self, session: Session, first_c: float, lr: float, search_steps: int) -> None:
        super().__init__(session, first_c, lr)
        self.search = WeightSearch(session.x, first_c, search_steps)
        self.distance = torch.full_like(self.c, torch.inf)

    def penalty(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return delta.flatten(1).square().sum(dim=1), 2 * delta

    def success(self, rows: Tensor, points: Tensor, delta: Tensor, value: Tensor, grad: Tensor) -> None:
        nearer = value < self.distance[rows]
        self.best[rows[nearer]], self.distance[rows[nearer]] = points[nearer], value[nearer]

    def next(self, rows: Tensor, won: Tensor) -> Tensor:
        more = self.search.next(rows, won)
        self.c = self.search.c
        return more


class _Linf(Schedule):
    """Lower τ while that succeeds; on failure double c, and when c is spent, lower τ more gently."""

    stop_at_success = True
    cut, largest_c = 0.1, 20.0

    def __init__(self, session: Session, first_c: float, lr: float, search_steps: int) -> None:
        super().__init__(session, first_c, lr)
        self.first_lr, self.finest = lr, self.cut / 2**search_steps
        self.radius = torch.full_like(self.c, session.high - session.low)  # the best ‖δ‖∞ so far
        self.tau, self.cuts = self.radius.clone(), torch.full_like(self.c, self.cut)
        self.solved = torch.zeros_like(self.c, dtype=torch.bool)

    def penalty(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        excess = (delta.abs() - beside(self.tau[rows], delta)).clamp_min(0)
        return excess.flatten(1).sum(dim=1), delta.sign() * (excess > 0)

    def counts(self, value: Tensor, rows: Tensor) -> Tensor:
        # Half of the way down to τ is enough: then every success lowers the radius, and Adam's jitter loses none.
        return value <= (self.radius[rows] - self.tau[rows]) / 2

    def success(self, rows: Tensor, points: Tensor, delta: Tensor, value: Tensor, grad: Tensor) -> None:
        self.best[rows], self.radius[rows] = points, delta.flatten(1).abs().amax(dim=1)
        self.start[rows], self.solved[rows] = self.box.inverse(points), True

    def next(self, rows: Tensor, won: Tensor) -> Tensor:
        failed = rows[~won]
        self.c[failed] *= 2
        spent = failed[self.c[failed] > self.largest_c]
        self.c[spent] = self.largest_c
        self.cuts[spent] /= 2
        cuts, solved = self.cuts[rows], self.solved[rows]
        self.lr[rows] = self.first_lr * cuts / self.cut  # finer steps for finer changes of τ
        self.tau[rows] = torch.where(solved, (1 - cuts) * self.radius[rows], self.tau[rows])
        return (cuts > self.finest) & (solved | (cuts == self.cut))


class _L0(Schedule):
    """Freeze what matters least while that succeeds; on failure double c."""

    stop_at_success = True
    largest_c = 2e6

    def __init__(self, session: Session, first_c: float, lr: float) -> None:
        super().__init__(session, first_c, lr)
        self.free = torch.ones_like(session.x, dtype=torch.bool)

    def mask(self, rows: Tensor) -> Tensor:
        return self.free[rows]

    def penalty(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return delta.flatten(1).square().sum(dim=1), 2 * delta

    def success(self, rows: Tensor, points: Tensor, delta: Tensor, value: Tensor, grad: Tensor) -> None:
        self.best[rows], self.start[rows] = points, self.box.inverse(points)
        weight, changed = (delta * grad).abs().flatten(1), delta.flatten(1) != 0
        quota = (0.3 * changed.sum(dim=1, keepdim=True).sqrt()).floor().clamp_min(1)
        rank = weight.masked_fill(~changed, torch.inf).argsort(dim=1).argsort(dim=1)
        self.free[rows] &= (changed & (rank >= quota)).reshape(delta.shape)

    def next(self, rows: Tensor, won: Tensor) -> Tensor:
        self.c[rows[~won]] *= 2
        return (self.c[rows] <= self.largest_c) & self.free[rows].flatten(1).any(dim=1)
