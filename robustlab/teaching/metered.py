"""A model behind a counter, as an assignment hands it out: it tells what an API tells, as far as a budget goes.

In the grader the model, the counter and the budget stay in the judge's process, and a function of the student's gets a
callable that asks over a socket. At home a :class:`Metered` is asked directly: the same answers and the same refusals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Tells = Literal["scores", "labels", "top"]


class Refused(RuntimeError):
    """A question that gets no answer: it is beyond the budget, or malformed."""


class Metered:
    """A model that is asked in rows, (n, ...) → its answers, and counts them.

    Args:
        model: (n, ...) → logits (n, K).
        shape: of one input.
        budget: rows that are answered, in all. A question that would go beyond it is refused whole.
        tells: ``"scores"``, the probabilities (n, K); ``"labels"``, the labels (n,); or ``"top"``, (n, 2): the label
            and its probability, rounded to one decimal.
        box: whether inputs outside of [0, 1] are refused.

    Attributes:
        used: rows answered so far.
        refused: questions refused so far.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        budget: int,
        *,
        tells: Tells = "labels",
        box: bool = True,
    ) -> None:
        self.model, self.shape, self.budget, self.tells, self.box = model, tuple(shape), budget, tells, box
        self.used = self.refused = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The answers to rows x (n, ...).

        Raises:
            Refused: they are beyond the budget or malformed, and why. Nothing is counted then.
        """
        why = self._against(x)
        if why:
            self.refused += 1
            raise Refused(why)
        self.used += len(x)
        with torch.no_grad():
            z = self.model(x.detach().float())
        if self.tells == "labels":
            return z.argmax(dim=1)
        scores = z.softmax(dim=1)
        if self.tells == "scores":
            return scores
        best = scores.max(dim=1)
        return torch.stack([best.indices.to(scores), (10 * best.values).round() / 10], dim=1)

    def _against(self, x: object) -> str:
        """Why a question is refused; empty where it is not."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or tuple(x.shape[1:]) != self.shape or x.dim() < 1:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            return f"want a batch of inputs of shape {self.shape}, got {got}"
        if not bool(x.isfinite().all()) or (self.box and len(x) and (x.min() < -1e-6 or x.max() > 1 + 1e-6)):
            return "an input is outside of the box [0, 1], or not finite"
        if self.used + len(x) > self.budget:
            return f"{len(x)} more rows are beyond the budget: {self.used} of {self.budget} are used"
        return ""
