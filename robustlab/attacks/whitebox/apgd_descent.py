"""The steps and checkpoints of Auto-PGD, on the state of every sample. The algorithm stands in :mod:`.apgd`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Live
from robustlab.attacker.parts import beside
from robustlab.attacker.session import Answer
from robustlab.geometry.norms import Norm
from robustlab.geometry.projections import clip

_MOMENTUM = 0.75
_ETA = {"linf": 2.0, "l2": 2.0, "l1": 1.0}  # η_0 over ε


def checkpoints(norm: str, steps: int) -> dict[int, int]:
    """Checkpoint → steps since the one before."""
    if norm == "l1":
        every = max(int(0.04 * steps), 1)
        return dict.fromkeys(range(every, steps, every), every)
    ends, last, share, width = dict[int, int](), 0, 0.22, 0.22
    while (end := math.ceil(round(share * steps, 6))) < steps:
        ends[end], last = end - last, end
        width = max(width - 0.03, 0.06)
        share += width
    ends.pop(0, None)
    return ends


class Descent:
    """What a run does to its live samples; their state, attributes of the Live, is made by :meth:`begin`."""

    def __init__(self, ball: Norm, low: Bound, high: Bound, rho: float) -> None:
        self.ball, self.low, self.high, self.rho = ball, low, high, rho
        self.largest = max(float(torch.as_tensor(end).abs().max()) for end in (low, high))

    def begin(self, live: Live, delta: Tensor, radius: Tensor, own: bool) -> None:
        """At x + P(δ) in the ball of that radius (n,); ``own``: a δ to whose support ℓ1 adapts."""
        low, high = self.low - live.x, self.high - live.x
        delta = self.ball.project_box(delta, radius, low, high)
        live.points = clip(live.x + delta, self.low, self.high)
        live.low, live.high = low, high  # ends of δ; ℓ∞: the ends of ball ∩ box
        if self.ball.name == "linf":
            low, high = live.x - beside(radius, live.x), live.x + beside(radius, live.x)
            live.low, live.high = clip(low, self.low, self.high), clip(high, self.low, self.high)
        live.radius, live.step = radius, _ETA[self.ball.name] * radius  # ε of this phase, η
        live.before, live.best = live.points, live.points  # one step ago, at the smallest loss
        live.grad = live.best_grad = torch.zeros_like(live.points)
        live.loss = live.best_loss = torch.full_like(radius, torch.inf)
        live.old_best = live.best_loss  # at the last checkpoint
        live.improved = torch.zeros_like(radius)  # steps since then that brought the loss down
        live.halved = torch.ones_like(radius, dtype=torch.bool)  # whether η was halved there
        every = torch.full_like(radius, live.x[:1].numel())
        live.support = _support(live.points - live.x, radius) if own else every  # ℓ1: of the best δ, there
        live.k = live.support / 1.5 if own else 0.2 * every  # ℓ1: elements that a step moves, before rounding down

    def note(self, live: Live, answer: Answer) -> None:
        """Loss and gradient at the points, and whether they are the best of the run."""
        if answer.grad.numel():  # the last point of a run has none, and needs none
            live.grad = answer.grad
        started = live.loss.isfinite()
        live.improved = live.improved + (started & (answer.loss < live.loss))
        live.old_best = torch.where(started, live.old_best, answer.loss)
        better = answer.loss < live.best_loss
        live.loss, live.best_loss = answer.loss, torch.where(better, answer.loss, live.best_loss)
        better = beside(better, live.points)
        live.best = torch.where(better, live.points, live.best)
        live.best_grad = torch.where(better, live.grad, live.best_grad)

    def adapt(self, live: Live, window: int) -> None:
        """What happens at a checkpoint."""
        if self.ball.name == "l1":
            support = _support(live.best - live.x, live.radius)
            back = support < 0.95 * live.support
            live.support, live.k = support, support / 1.5
            live.step = torch.where(back, live.radius, torch.maximum(live.step / 1.5, live.radius / 10))
        else:
            back = live.improved <= self.rho * window
            back |= ~live.halved & (live.best_loss >= live.old_best)
            live.step = torch.where(back, live.step / 2, live.step)
            live.halved, live.old_best, live.improved = back, live.best_loss, torch.zeros_like(live.improved)
        live.loss = torch.where(back, live.best_loss, live.loss)
        back = beside(back, live.points)
        live.points = torch.where(back, live.best, live.points)
        live.grad = torch.where(back, live.best_grad, live.grad)

    def move(self, live: Live, first: bool) -> None:
        """One step; the first has no momentum."""
        if self.ball.name == "l1":
            points = self._project(live, self._sparse_step(live).add_(live.points))
        else:
            step = beside(live.step, live.points)
            points = self._project(live, self.ball.steepest(live.grad).mul_(-step).add_(live.points))
            if not first:  # x + a·(z − x) + (1 − a)·(x − x_before)
                a = _MOMENTUM
                points = points.mul_(a).add_(live.points, alpha=2 - 2 * a).sub_(live.before, alpha=1 - a)
                points = self._project(live, points)
        live.before, live.points = live.points, points

    def _sparse_step(self, live: Live) -> Tensor:
        """η spread in equal parts over the k elements of largest gradient that can move (all that tie for the last)."""
        delta = (live.points - live.x).flatten(1)
        grad = -live.grad.flatten(1)
        slack = 4 * torch.finfo(grad.dtype).eps * self.largest  # what rounding x + δ may do
        room = torch.where(grad > 0, live.high.flatten(1) - delta, delta - live.low.flatten(1))
        grad = grad.masked_fill(room <= slack, 0.0)
        size, d = grad.abs(), grad.shape[1]
        count = live.k.long().clamp(1, d)
        threshold = size.topk(int(count.max()), dim=1).values.gather(1, count[:, None] - 1)
        move = grad.sign().mul_(size >= threshold)
        length = live.step[:, None] / move.abs().sum(dim=1, keepdim=True).clamp_min(1.0)
        return move.mul_(length).reshape(live.points.shape)

    def _project(self, live: Live, points: Tensor) -> Tensor:
        """P: the nearest point of ball ∩ box; ``points`` is used up."""
        if self.ball.name == "linf":
            return points.clamp_(live.low, live.high)
        delta = self.ball.project_box(points.sub_(live.x), live.radius, live.low, live.high)
        return clip(delta.add_(live.x), self.low, self.high)


def _support(delta: Tensor, eps: Tensor) -> Tensor:
    """Number of elements that are not 0, (n,), in the dtype of δ; what rounding leaves of a 0 does not count."""
    return (delta.flatten(1).abs() > 1e-6 * eps[:, None]).sum(dim=1).to(delta.dtype)
