"""Linear classifiers of least hinge loss in a ball, by dual averaging, with a bound from below on what can be reached.

    min over ‖θ‖₂ ≤ τ of  1/n Σ_i [1 − y_i⟨θ, r_i⟩]₊,     r_i = (x_i, 1),  θ = (w, b)

θ ← z/λ with z the sum of the negative subgradients g and λ = max(√Σ‖g‖²/lr, ‖z‖/τ). For any shares a_i in [0, 1] no θ
of the ball is below 1/n (Σ a_i − τ‖Σ a_i y_i r_i‖), since [t]₊ ≥ a·t. Those taken are how often row i had a slope in
the second half of the steps.

Source: Xiao, "Dual averaging methods for regularized stochastic learning and online optimization" (2010), with steps as
in Steinhardt, Koh and Liang (2017), algorithm 1; the bound is Lagrange's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab.attacker.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Trained(Result):
    """A linear classifier, its loss, and a loss that none in the ball is below.

    Attributes:
        weight, bias: (d,) and ().
        loss: summed hinge loss over n.
        least: no (w, b) of the ball has less.
    """

    weight: Tensor
    bias: Tensor
    loss: float
    least: float


class DualAveraging:
    """θ ← z/λ, and the θ of the least value so far; z sums the steps down, λ = max(√Σ‖step‖²/lr, ‖z‖/max_norm)."""

    def __init__(self, theta: Tensor, max_norm: float, lr: float) -> None:
        self.theta, self.max_norm, self.lr = theta, max_norm, lr
        self.best, self.lowest = theta, torch.full_like(theta[0], torch.inf)
        self._total, self._squares = torch.zeros_like(theta), torch.zeros_like(theta[0])

    def step(self, value: Tensor, down: Tensor) -> None:
        """``value`` and a negative subgradient at the present θ."""
        self.best, self.lowest = torch.where(value < self.lowest, self.theta, self.best), value.minimum(self.lowest)
        self._total, self._squares = self._total + down, self._squares + down @ down
        scale = torch.maximum(self._total.norm() / self.max_norm, self._squares.sqrt() / self.lr)
        self.theta = self._total / scale.clamp_min(1e-300)


def train_linear(
    x: Tensor, y: Tensor, *, n: int | None = None, start: Tensor | None = None, max_norm: float = 10.0,
    steps: int = 1000, lr: float | None = None,
) -> Trained:  # fmt: skip
    """Train a linear classifier by the hinge loss, no worse than where it starts.

    Args:
        x: rows (N, d), float.
        y: (N,) labels 0 or 1, which stand for −1 and +1.
        n: what the summed loss is divided by; None is N.
        start: (d + 1,) θ; None is 0.
        max_norm: τ of (w, b), the bias included.
        steps: of dual averaging.
        lr: rate of the steps, a length of θ; None is max_norm/2.

    Returns:
        A :class:`Trained`; the least loss of the ball is between its ``least`` and its ``loss``.
    """
    rows, sign, n = with_one(x), 2.0 * y.to(x.dtype) - 1, len(x) if n is None else n
    descent = DualAveraging(torch.zeros_like(rows[0]) if start is None else start, max_norm, lr or max_norm / 2)
    often = torch.zeros_like(sign)
    for step in range(steps):
        margin = sign * (rows @ descent.theta)
        slope = sign * (margin < 1)
        descent.step((1 - margin).clamp_min(0).sum() / n, slope @ rows / n)
        often += slope * (step >= steps // 2)
    often /= steps - steps // 2
    least = (often.abs().sum() - max_norm * (often @ rows).norm()) / n
    return Trained(descent.best[:-1], descent.best[-1], float(descent.lowest), max(0.0, float(least)))


def with_one(x: Tensor) -> Tensor:
    """A last column of ones, for the bias."""
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
