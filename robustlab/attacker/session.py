"""One attack's conversation with a model: questions that are counted, goals, and the checked result.

Opened by :meth:`robustlab.attacker.victim.Victim.session`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import goal_margin, spare
from robustlab.attacker.results import AttackResult
from robustlab.geometry.keyed import Noise
from robustlab.geometry.norms import measure

Access = Literal["white", "soft", "hard"]
LEVEL = {"hard": 0, "soft": 1, "white": 2}
Found = TypeVar("Found")


class Answer(NamedTuple):
    """What the victim said of some rows; ``loss`` and ``grad`` only where a gradient was asked for."""

    logits: Tensor
    met: Tensor
    loss: Tensor
    grad: Tensor


class Session:
    """One attack's conversation with a victim over a fixed batch of N samples.

    Attributes:
        x, y, target, ids: the batch; ``target`` is None for an untargeted attack.
        low, high: the box, numbers.
        active: int64 indices of the samples whose goal is not met at ``x``; the attack works on these only.
        clean: logits at ``x``, (N, K), or None for an empty batch or under hard access.
        queries, gradients, first_success: int64 (N,), kept up by every question.
    """

    def __init__(
        self,
        forward: Callable[[Tensor, bool], Tensor],
        bounds: tuple[float, float],
        access: Access,
        budget: int | None,
        x: Tensor,
        y: Tensor | None,
        target: Tensor | None,
        ids: Tensor,
        kappa: float,
        min_classes: int,
    ) -> None:
        n = x.shape[0]
        self._forward, self.access, self.budget = forward, access, budget
        self.low, self.high = bounds
        self.x, self.target, self.ids, self.kappa = x, target, ids, kappa
        self.queries = torch.zeros(n, dtype=torch.int64, device=x.device)
        self.gradients = torch.zeros_like(self.queries)
        self.first_success = torch.full_like(self.queries, -1)
        self.y = torch.zeros_like(self.queries) if y is None else y
        self.clean: Tensor | None = None
        self.active = torch.arange(n, device=x.device)
        self._fast = x.dim() == 4 and x.dtype == torch.float32 and x.device.type == "cpu"  # channels-last may be faster
        if n == 0:
            return
        logits = self._forward(x, False)
        classes = self._check_output(logits, n, min_classes)
        for name, label in (("y", y), ("target", target)):
            if label is not None:
                checks.in_classes(name, label, classes)
        if y is None:
            self.y = logits.argmax(dim=1)
        self.clean = None if self.access == "hard" else logits.to(x.dtype)
        self.active = (~self._count(logits, self.active)).nonzero().flatten()

    def _check_output(self, logits: Tensor, n: int, min_classes: int) -> int:
        if logits.dim() != 2 or logits.shape[0] != n or not logits.is_floating_point():
            raise ValueError(f"model: want output of shape ({n}, K), got {tuple(logits.shape)} of {logits.dtype}")
        if bool(logits.isnan().any()):
            raise ValueError("model: want numbers at x, got NaN")
        if logits.shape[1] < min_classes:
            raise ValueError(f"model: this attack needs at least {min_classes} classes, got {logits.shape[1]}")
        return logits.shape[1]

    # Questions -------------------------------------------------------------------------------------------------

    def ask(self, points: Tensor, rows: Tensor) -> Answer:
        """Scores of ``points``, which belong to the samples ``rows``; one query each."""
        self._need("soft")
        logits = self._scores(points)
        empty = logits.new_empty(0)
        return Answer(logits, self._count(logits, rows), empty, empty)

    def ask_labels(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The top label of each point and whether the goal is met there; one query each. All that hard access shows."""
        if self.kappa:
            raise ValueError("kappa: want 0 under hard access, where no scores are seen")
        logits = self._scores(points)
        return logits.argmax(dim=1), self._count(logits, rows)

    def ask_many(self, points: Tensor, rows: Tensor) -> Answer:
        """Scores of m points a sample, (n, m, ...) → logits (n, m, K) and met (n, m); m queries each, in this order."""
        self._need("soft")
        n, m = points.shape[:2]
        logits = self._scores(points.flatten(0, 1))
        met = self.met(logits, rows.repeat_interleave(m)).reshape(n, m)
        first = met.any(dim=1) & (self.first_success[rows] < 0)
        self.first_success[rows[first]] = (self.queries[rows] + met.int().argmax(dim=1) + 1)[first]
        self.queries[rows] += m
        empty = logits.new_empty(0)
        return Answer(logits.reshape(n, m, -1), met, empty, empty)

    def gradient(self, points: Tensor, rows: Tensor, loss: Callable[..., Tensor]) -> Answer:
        """Scores, loss and input gradient of the loss at ``points``; one query and one gradient each."""
        self._need("white")
        points = self._inside(points).detach().requires_grad_(True)

        def work(fast: bool) -> tuple[Tensor, Tensor, Tensor]:
            logits = self._logits(points, fast)
            value = loss(logits, self.y[rows], None if self.target is None else self.target[rows], self.kappa)
            (grad,) = _input_gradient(value.sum(), points)
            return logits, value, grad

        with torch.enable_grad():
            logits, value, grad = self._search(work)
        self.gradients[rows] += 1
        logits = logits.detach()
        return Answer(logits, self._count(logits, rows), value.detach(), grad)

    def jacobian(
        self, points: Tensor, rows: Tensor, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Answer, Tensor, Tensor]:
        """How the logits of chosen classes move against that of the first of them.

        Returns the answer, the classes (n, C) = choose(logits), and the gradients of z_k − z_first for the others,
        (n, C − 1, ...). One query and C − 1 gradients a row.
        """
        self._need("white")
        points = self._inside(points).detach().requires_grad_(True)

        def work(fast: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
            logits = self._logits(points, fast)
            classes = choose(logits.detach())
            chosen = logits.gather(1, classes)
            chosen = (chosen[:, 1:] - chosen[:, :1]).sum(dim=0)
            parts = [_input_gradient(part, points, retain=i + 1 < len(chosen))[0] for i, part in enumerate(chosen)]
            return logits, classes, parts

        with torch.enable_grad():
            logits, classes, parts = self._search(work)
        self.gradients[rows] += len(parts)
        logits = logits.detach()
        empty = logits.new_empty(0)
        return Answer(logits, self._count(logits, rows), empty, empty), classes, torch.stack(parts, dim=1)

    # Goals -----------------------------------------------------------------------------------------------------

    def goal_margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """How clearly the goal is met by logits of the samples ``rows``; positive means met."""
        return goal_margin(logits, self.y[rows], None if self.target is None else self.target[rows])

    def met(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Goal met: argmax ≠ y or argmax = target, and, where κ > 0, with a margin of at least κ. NaN never wins."""
        top, label = logits.max(dim=1)  # NaN is taken for the largest
        won = label != self.y[rows] if self.target is None else label == self.target[rows]
        if self.kappa > 0:
            won &= self.goal_margin(logits, rows) >= self.kappa
        return won & ~top.isnan()

    def secure(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Goal met with κ + 1e-4·max(1, largest |logit|) to spare, so that rounding cannot undo it."""
        return self.goal_margin(logits, rows) >= self.kappa + spare(logits)

    def check_toward(self, label: Tensor) -> None:
        """Raises unless every ``label`` (N,), at which an untargeted attack aims, is one of the others."""
        if self.clean is not None:
            checks.in_classes("toward", label, self.clean.shape[1])
            checks.other_than_y("toward", label, self.y)

    # Means -----------------------------------------------------------------------------------------------------

    def noise(self, seed: int) -> Noise:
        """Randomness keyed by the samples' ids."""
        return Noise(seed, self.ids)

    def can_pay(self, rows: Tensor, cost: int = 1) -> Tensor:
        """Which of ``rows`` have ``cost`` more queries in their budget, and still one for the final check; bool."""
        if self.budget is None:
            return torch.ones_like(rows, dtype=torch.bool)
        return self.queries[rows] + cost + 1 <= self.budget

    def result(
        self, x_adv: Tensor, *, asked: bool = False, revert: bool = False, trace: dict[str, Tensor] | None = None
    ) -> AttackResult:
        """Check ``x_adv`` (N, ...) once more and wrap it up.

        Samples that met the goal at x are returned as they were, without another query. With ``asked``, all points of
        ``x_adv`` have been asked about before, so only the successes among them are checked again. With ``revert``
        (minimum-norm attacks) a sample whose attack failed gets x back.
        """
        success = torch.ones_like(self.queries, dtype=torch.bool)
        success[self.active] = False
        final = self.x.clone() if revert else torch.where(beside(success, self.x), self.x, x_adv.to(self.x.dtype))
        rows = self.active[self.first_success[self.active] >= 0] if asked else self.active
        if rows.numel():
            points = x_adv[rows].to(self.x.dtype)
            success[rows] = won = self._count(self._forward(self._inside(points), False), rows)
            final[rows[won]] = points[won]
        return AttackResult(
            x_adv=final,
            success=success,
            distances=measure(final - self.x),
            queries=self.queries,
            gradients=self.gradients,
            first_success=self.first_success,
            trace=trace,
        )

    def _scores(self, points: Tensor) -> Tensor:
        points = self._inside(points)
        return self._search(lambda fast: self._logits(points, fast))

    def _logits(self, points: Tensor, fast: bool) -> Tensor:
        """In the dtype that the attack computes in; the judge sees a more precise model's as they are."""
        return self._forward(points, fast).to(points.dtype)

    def _search(self, work: Callable[[bool], Found]) -> Found:
        """``work(True)``, in channels-last; a model that cannot bear that is asked in the caller's layout from then on.

        Such a model has a line like ``x.view(len(x), -1)`` after a convolution. What fails there is not counted.
        """
        if self._fast:
            try:
                return work(True)
            except RuntimeError:
                pass  # what fails in either layout raises below
        found = work(False)
        self._fast = False
        return found

    def _count(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Book one query for each row; note first successes; return whether the goal is met."""
        self.queries[rows] += 1
        met = self.met(logits, rows)
        if bool(met.any()):
            first = rows[met & (self.first_success[rows] < 0)]
            self.first_success[first] = self.queries[first]
        return met

    def _need(self, access: Access) -> None:
        if LEVEL[self.access] < LEVEL[access]:
            raise ValueError(f"access: this question needs {access!r} access, the victim grants {self.access!r}")

    def _inside(self, points: Tensor) -> Tensor:
        """Nothing outside the box is ever asked: a point outside is a bug of the attack, not of its user."""
        low, high = torch.aminmax(points)
        if not bool((low >= self.low) & (high <= self.high)):
            raise RuntimeError(f"query outside the box [{self.low}, {self.high}]: [{float(low)}, {float(high)}]")
        return points


def beside(values: Tensor, like: Tensor) -> Tensor:
    """``values`` (n,) as (n, 1, ..., 1), to broadcast with ``like`` (n, ...)."""
    return values.reshape((-1,) + (1,) * (like.dim() - 1))


def part_of(value: Any, rows: Tensor, n: int) -> Any:
    """What of an argument belongs to ``rows``: those of a tensor with one row for each of n samples, else all of it."""
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == (n,) else value


def _input_gradient(value: Tensor, points: Tensor, retain: bool = False) -> tuple[Tensor, ...]:
    """d value / d points, with NaN and infinities (from a saturated loss) set to 0."""
    if not value.requires_grad:
        raise ValueError("model: want an output that is differentiable in its input, got one that is cut off from it")
    grads = torch.autograd.grad(value, points, retain_graph=retain)
    return tuple(g.nan_to_num(0.0, 0.0, 0.0) for g in grads)  # not in place: a gradient may be an expanded view
