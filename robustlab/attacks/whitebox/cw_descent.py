"""What the three C&W attacks share: the change of variables, and Adam for samples that start anew at different times.

Carlini and Wagner (2017b), section V. See :func:`robustlab.attacks.whitebox.cw.cw` for the runs of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Live
from robustlab.attacker.parts import beside
from robustlab.attacker.weight_search import first_weight
from robustlab.geometry.projections import clip, clip_

# Keeps atanh finite for pixels exactly at the bounds.
_SHRINK = 0.999999


class TanhBox:
    """x = low + (high − low)·(tanh(w) + 1)/2: any w gives a point of the box (section V-B)."""

    def __init__(self, low: Bound, high: Bound) -> None:
        self.low, self.high, self.half = low, high, (high - low) / 2
        self.is_unit = not isinstance(low, Tensor) and not isinstance(high, Tensor) and (low, high) == (0.0, 1.0)

    def inverse(self, x: Tensor) -> Tensor:
        """w whose point is x, up to a factor 0.999999 around the middle of the box."""
        return torch.atanh(_SHRINK * ((x - self.low) / self.half - 1))

    def alone(self, w: Tensor) -> Tensor:
        """The point x(w) without its slope; (tanh(w) + 1)/2 is the logistic function of 2w, a fifth of tanh's time."""
        unit = torch.mul(w, 2.0).sigmoid_()
        return unit if self.is_unit else clip_(unit.mul_(2 * self.half).add_(self.low), self.low, self.high)

    def point(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The point x(w) and the slope dx/dw."""
        t = torch.tanh(w)
        point = clip(t.add(1).mul_(self.half).add_(self.low), self.low, self.high)
        return point, t.mul_(t).neg_().add_(1).mul_(self.half)


def begin(live: Live, start: Tensor, c: float, lr: float) -> None:
    """The first run of every sample.

    What it notes as attributes of ``live``:

    * start, c, lr, slack: from which w the next run begins, with which weight and step size of Adam, and the largest
      penalty of what counts as its success;
    * w, mean, square, step: where the run is, Adam's moments, steps done;
    * won, previous: whether the run has succeeded; its objective when that was last looked at.
    """
    live.start, live.w = start, start.clone()
    live.mean, live.square = torch.zeros_like(start), torch.zeros_like(start)
    first_weight(live, c)
    live.lr = torch.full_like(live.c, lr)
    live.slack, live.previous = (torch.full_like(live.c, torch.inf) for _ in range(2))
    live.step, live.won = torch.zeros_like(live.y), torch.zeros_like(live.y, dtype=torch.bool)


def restart(live: Live, over: Tensor) -> None:
    """The next run of the samples whose run is ``over``."""
    live.w[over] = live.start[over]
    for value in (live.mean, live.square, live.step, live.won):
        value[over] = 0
    live.previous[over] = torch.inf


def stalled(live: Live, total: Tensor, period: int) -> Tensor:
    """Which objectives ``total`` (n,), looked at after each period of steps, have not improved by 0.01 % since."""
    due = (live.step > 0) & (live.step % period == 0)
    found = due & (total > 0.9999 * live.previous)
    live.previous = torch.where(due, total, live.previous)
    return found


def adam(live: Live, grad: Tensor) -> None:
    """One step of Adam (Kingma and Ba 2015), each sample at its own step count."""
    live.step += 1
    t = live.step.to(grad.dtype)
    live.mean.lerp_(grad, 0.1)
    live.square.mul_(0.999).addcmul_(grad, grad, value=0.001)
    root = (live.square / beside(1 - 0.999**t, grad)).sqrt_().add_(1e-8)
    live.w.sub_((live.mean * beside(live.lr / (1 - 0.9**t), grad)).div_(root))
