"""What the three C&W attacks share: the change of variables, the loss, and Adam on a batch of separate schedules.

Carlini and Wagner (2017b), section V. Each sample goes through a sequence of *runs*. A run is at most ``steps`` Adam
steps on  penalty(δ) + c·g(x(w))  from a start that the sample's :class:`Schedule` names; when it ends, the schedule
chooses the next c, start and constraint from its outcome. Every sample runs its own schedule, and no sample waits for
another: while one begins a new run, its neighbors in the batch go on with theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count

import torch
from torch import Tensor

from robustlab.attacker.losses import shortfall
from robustlab.attacker.parts import beside
from robustlab.attacker.session import Session
from robustlab.progress import bar

# Keeps atanh finite for pixels exactly at the bounds.
_SHRINK = 0.999999


class TanhBox:
    """x = low + (high − low)·(tanh(w) + 1)/2: any w gives a point of the box (section V-B)."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high, self.half = low, high, (high - low) / 2

    def inverse(self, x: Tensor) -> Tensor:
        """w whose point is x, up to a factor 0.999999 around the middle of the box."""
        return torch.atanh(_SHRINK * ((x - self.low) / self.half - 1))

    def point(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The point x(w) and the slope dx/dw."""
        t = torch.tanh(w)
        point = t.add(1).mul_(self.half).add_(self.low).clamp_(self.low, self.high)
        return point, t.mul_(t).neg_().add_(1).mul_(self.half)


class Schedule(ABC):
    """The outer loop of a C&W attack, one state a sample: tensors of shape (N, ...) over the whole batch.

    Attributes:
        best: points found, (N, ...); x where there is none.
        start: w from which the next run begins.
        c: weight of g in the next run.
        lr: Adam's step size in the next run.
        stop_at_success: whether a run ends at its first success.
    """

    stop_at_success = False

    def __init__(self, session: Session, first_c: float, lr: float) -> None:
        self.session, self.box = session, TanhBox(session.low, session.high)
        self.best, self.start = session.x.clone(), self.box.inverse(session.x)
        self.c = session.x.new_full(session.x.shape[:1], first_c)
        self.lr = torch.full_like(self.c, lr)

    def mask(self, rows: Tensor) -> Tensor | None:
        """Elements that may move, or None for all."""
        return None

    @abstractmethod
    def penalty(self, delta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Value (n,) and gradient (n, ...) of the penalty at ``delta``."""

    @abstractmethod
    def success(self, rows: Tensor, points: Tensor, delta: Tensor, value: Tensor, grad: Tensor) -> None:
        """``points`` meet the goal, and their penalty is ``value``: keep them where they are the best so far."""

    def counts(self, value: Tensor, rows: Tensor) -> Tensor:
        """Whether a point that meets the goal also meets the run's constraint, by the value of its penalty."""
        return torch.ones_like(value, dtype=torch.bool)

    @abstractmethod
    def next(self, rows: Tensor, won: Tensor) -> Tensor:
        """A run of ``rows`` ended, with or without a success: set up the next one; returns which of them have one."""


def descend(session: Session, plan: Schedule, steps: int, abort_early: bool, progress: bool) -> Tensor:
    """Take all active samples through their schedules; returns ``plan.best``."""
    rows, period = session.active, max(1, steps // 10)
    state = _Runs(rows, plan)
    for _ in bar(count(), show=progress, label="cw"):
        if not bool((paying := session.can_pay(rows)).all()):
            rows = rows[paying]
            state.take(paying)
        if not rows.numel():
            break
        points, slope = plan.box.point(state.w)
        free = plan.mask(rows)
        if free is not None:
            points, slope = torch.where(free, points, session.x[rows]), slope * free
        answer = session.gradient(points, rows, shortfall)
        delta = points - session.x[rows]
        value, pull = plan.penalty(delta, rows)
        won = session.secure(answer.logits, rows) & plan.counts(value, rows)
        if bool(won.any()):
            plan.success(rows[won], points[won], delta[won], value[won], answer.grad[won])
        state.won |= won

        c = plan.c[rows]
        total = value + c * answer.loss.clamp_min(0)
        over = state.step == steps - 1
        if abort_early:
            asked = (state.step > 0) & (state.step % period == 0)
            over |= asked & (total > 0.9999 * state.previous)
            state.previous = torch.where(asked, total, state.previous)
        if plan.stop_at_success:
            over |= won
        state.adam((answer.grad * beside(c * (answer.loss > 0), delta)).add_(pull).mul_(slope))
        if bool(over.any()):
            more = ~over
            more[over] = plan.next(rows[over], state.won[over])
            state.restart(over, rows, plan)
            rows = rows[more]
            state.take(more)
    return plan.best


class _Runs:
    """The current run of each sample: w, Adam's moments, steps done, and whether it has succeeded."""

    def __init__(self, rows: Tensor, plan: Schedule) -> None:
        self.w, self.lr = plan.start[rows].clone(), plan.lr[rows]
        self.mean, self.square = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.step = torch.zeros_like(rows)
        self.previous = torch.full_like(self.lr, torch.inf)
        self.won = torch.zeros_like(rows, dtype=torch.bool)

    def adam(self, grad: Tensor) -> None:
        """One step of Adam (Kingma and Ba 2015), each sample at its own step count."""
        self.step += 1
        t = self.step.to(self.lr.dtype)
        self.mean.lerp_(grad, 0.1)
        self.square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        root = (self.square / beside(1 - 0.999**t, grad)).sqrt_().add_(1e-8)
        self.w.sub_((self.mean * beside(self.lr / (1 - 0.9**t), grad)).div_(root))

    def restart(self, over: Tensor, rows: Tensor, plan: Schedule) -> None:
        """Begin the next run of the samples that are ``over``."""
        at = rows[over]
        self.w[over], self.lr[over] = plan.start[at], plan.lr[at]
        for moment in (self.mean, self.square, self.step):
            moment[over] = 0
        self.previous[over], self.won[over] = torch.inf, False

    def take(self, keep: Tensor) -> None:
        """Go on with some of the samples only."""
        for name in ("w", "lr", "mean", "square", "step", "previous", "won"):
            setattr(self, name, getattr(self, name)[keep])
