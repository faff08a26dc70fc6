"""The loop of Auto-PGD: steps, checkpoints and the state of every sample. The algorithm stands in :mod:`.apgd`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustlab.attacker.losses import LossFunction
from robustlab.attacker.parts import beside
from robustlab.attacker.session import Session
from robustlab.geometry.norms import Norm
from robustlab.progress import bar

_MOMENTUM = 0.75
_ETA = {"linf": 2.0, "l2": 2.0, "l1": 1.0}  # η_0 over ε


@dataclass
class _State:
    """Where the samples of one run stand: row i of every field belongs to the sample ``rows[i]``."""

    rows: Tensor
    clean: Tensor
    eps: Tensor  # radius of the ball of this phase
    low: Tensor  # ℓ∞: the ends of ball ∩ box; else those of the box around δ
    high: Tensor
    points: Tensor
    before: Tensor  # the points one step ago
    grad: Tensor
    loss: Tensor
    best: Tensor
    best_loss: Tensor
    best_grad: Tensor
    step: Tensor  # η
    improved: Tensor  # steps since the last checkpoint that brought the loss down
    halved: Tensor  # bool: at the last checkpoint
    old_best: Tensor  # the best loss at the last checkpoint
    k: Tensor  # ℓ1: elements that a step moves, before rounding down
    support: Tensor  # ℓ1: elements of the best δ that were not 0 at the last checkpoint

    def take(self, keep: Tensor) -> _State:
        return _State(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


class Descent:
    """The runs of one call: the best point of every sample so far, and the loop that improves it."""

    def __init__(self, session: Session, ball: Norm, eps: Tensor, rho: float, trace: bool) -> None:
        self.session, self.ball, self.eps, self.rho, self.trace = session, ball, eps, rho, trace
        self.best = session.x.clone()
        self.best_loss = session.x.new_full(session.x.shape[:1], torch.inf)
        self._losses: list[Tensor] = []
        self._steps: list[Tensor] = []

    def run(
        self, rows: Tensor, delta: Tensor, factor: float, steps: int, g: LossFunction, aim: Tensor | None,
        own: bool, progress: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Descend from x + ``delta`` in the ball of radius ``factor``·ε; ``aim`` (N,) makes the loss the targeted one.

        Returns the samples that go on (not fooled, not out of budget), and the δ of their best points. In a ball that
        is larger than ε nothing counts as a success. ``own``: the start is the caller's (ℓ1 adapts to its support).
        """
        session, inside = self.session, factor == 1.0
        first = session.first_success.clone()
        s, windows = self._begin(rows, delta, factor, own), self._windows(steps)
        for k in bar(range(steps + 1), show=progress, label="apgd"):
            if not bool((paying := session.can_pay(s.rows)).all()):
                s = s.take(paying)
            if not s.rows.numel():
                break
            met = self._ask(s, g, None if aim is None else aim[s.rows], want_gradient=k < steps)
            if inside:
                self._keep(s, met)
                if bool(met.any()):
                    s = s.take(~met)
            if k == steps or not s.rows.numel():
                break
            if k in windows:
                self._adapt(s, windows[k])
            self._step(s, 1.0 if k == 0 else _MOMENTUM)
        if not inside:
            session.first_success.copy_(first)
        return s.rows, s.best - s.clean

    def traces(self) -> dict[str, Tensor] | None:
        """What ``trace`` has kept, (points, N)."""
        return {"loss": torch.stack(self._losses), "step_size": torch.stack(self._steps)} if self._losses else None

    def _windows(self, steps: int) -> dict[int, int]:
        """Checkpoint → steps since the one before."""
        if self.ball.name == "l1":
            every = max(int(0.04 * steps), 1)
            return dict.fromkeys(range(every, steps, every), every)
        ends, last, share, width = dict[int, int](), 0, 0.22, 0.22
        while (end := math.ceil(round(share * steps, 6))) < steps:
            ends[end], last = end - last, end
            width = max(width - 0.03, 0.06)
            share += width
        ends.pop(0, None)
        return ends

    def _begin(self, rows: Tensor, delta: Tensor, factor: float, own: bool) -> _State:
        clean, eps = self.session.x[rows], factor * self.eps[rows]
        low, high = self.session.low - clean, self.session.high - clean
        delta = self.ball.project_box(delta, eps, low, high)
        points = (clean + delta).clamp_(self.session.low, self.session.high)
        if self.ball.name == "linf":
            low = (clean - beside(eps, clean)).clamp_(self.session.low, self.session.high)
            high = (clean + beside(eps, clean)).clamp_(self.session.low, self.session.high)
        none, every = torch.zeros_like(eps), torch.full_like(eps, points[0].numel())
        support = _support(points - clean, eps) if own else every
        return _State(
            rows, clean, eps, low, high, points, before=points, grad=torch.zeros_like(points), loss=none + torch.inf,
            best=points.clone(), best_loss=none + torch.inf, best_grad=torch.zeros_like(points),
            step=_ETA[self.ball.name] * eps, improved=none, halved=none == 0, old_best=none + torch.inf,
            k=support / 1.5 if own else 0.2 * every, support=support,
        )  # fmt: skip

    def _ask(self, s: _State, g: LossFunction, aim: Tensor | None, want_gradient: bool) -> Tensor:
        """Ask for loss and gradient at the points, note what is best; returns which samples meet the goal."""
        session = self.session

        def loss(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
            return g(logits, y, target if aim is None else aim)

        if want_gradient:
            answer = session.gradient(s.points, s.rows, loss)
            value, s.grad = answer.loss, answer.grad
        else:
            answer = session.ask(s.points, s.rows)
            value = loss(answer.logits, session.y[s.rows], None if session.target is None else session.target[s.rows])
        started = s.loss.isfinite()
        s.improved = s.improved + (started & (value < s.loss))
        s.loss = value
        s.old_best = torch.where(started, s.old_best, value)
        better = (value < s.best_loss).nonzero().flatten()
        s.best_loss[better] = value[better]
        s.best.index_copy_(0, better, s.points.index_select(0, better))
        s.best_grad.index_copy_(0, better, s.grad.index_select(0, better))
        return answer.met

    def _keep(self, s: _State, met: Tensor) -> None:
        """The best points of the whole call."""
        better = (met | (s.loss < self.best_loss[s.rows])).nonzero().flatten()
        chosen = s.rows[better]
        self.best[chosen] = s.points[better]
        self.best_loss[chosen] = s.loss[better]
        if self.trace:
            for kept, value in ((self._losses, s.loss), (self._steps, s.step)):
                row = torch.full_like(self.best_loss, torch.nan)
                row[s.rows] = value
                kept.append(row)

    def _adapt(self, s: _State, window: int) -> None:
        """What happens at a checkpoint."""
        if self.ball.name == "l1":
            support = _support(s.best - s.clean, s.eps)
            back = support < 0.95 * s.support
            s.support, s.k = support, support / 1.5
            s.step = torch.where(back, s.eps, torch.maximum(s.step / 1.5, s.eps / 10))
        else:
            back = s.improved <= self.rho * window
            back |= ~s.halved & (s.best_loss >= s.old_best)
            s.step = torch.where(back, s.step / 2, s.step)
            s.halved, s.old_best, s.improved = back, s.best_loss.clone(), torch.zeros_like(s.improved)
        s.loss = torch.where(back, s.best_loss, s.loss)
        back = beside(back, s.points)
        s.points = torch.where(back, s.best, s.points)
        s.grad = torch.where(back, s.best_grad, s.grad)

    def _step(self, s: _State, a: float) -> None:
        """One step; a = 1 leaves out the momentum."""
        if self.ball.name == "l1":
            points = self._project(s, self._sparse_step(s).add_(s.points))
        else:
            points = self._project(s, self.ball.steepest(s.grad).mul_(-beside(s.step, s.points)).add_(s.points))
            if a < 1:  # x + a·(z − x) + (1 − a)·(x − x_before)
                points = points.mul_(a).add_(s.points, alpha=2 - 2 * a).sub_(s.before, alpha=1 - a)
                points = self._project(s, points)
        s.before, s.points = s.points, points

    def _sparse_step(self, s: _State) -> Tensor:
        """η spread in equal parts over the k elements of largest gradient that can move (all that tie for the last)."""
        delta = (s.points - s.clean).flatten(1)
        grad = -s.grad.flatten(1)
        slack = (
            4 * torch.finfo(grad.dtype).eps * max(abs(self.session.low), abs(self.session.high))
        )  # of rounding x + δ
        room = torch.where(grad > 0, s.high.flatten(1) - delta, delta - s.low.flatten(1))
        grad = grad.masked_fill(room <= slack, 0.0)
        size, d = grad.abs(), grad.shape[1]
        count = s.k.long().clamp(1, d)
        threshold = size.topk(int(count.max()), dim=1).values.gather(1, count[:, None] - 1)
        move = grad.sign().mul_(size >= threshold)
        length = s.step[:, None] / move.abs().sum(dim=1, keepdim=True).clamp_min(1.0)
        return move.mul_(length).reshape(s.points.shape)

    def _project(self, s: _State, points: Tensor) -> Tensor:
        """P: the nearest point of ball ∩ box; ``points`` is used up."""
        if self.ball.name == "linf":
            return points.clamp_(s.low, s.high)
        delta = self.ball.project_box(points.sub_(s.clean), s.eps, s.low, s.high)
        return delta.add_(s.clean).clamp_(self.session.low, self.session.high)


def _support(delta: Tensor, eps: Tensor) -> Tensor:
    """Number of elements that are not 0, (n,), in the dtype of δ; what rounding leaves of a 0 does not count."""
    return (delta.flatten(1).abs() > 1e-6 * eps[:, None]).sum(dim=1).to(delta.dtype)
