"""The model as an attacker meets it: what may be asked, how often, and nothing of the caller's changed.

An attack opens a :class:`Call` on a :class:`Victim` and works through it::

    with Victim.of(model).call(x, y, target=target) as call:
        rows = call.active                           # samples whose goal is not met at x
        answer = call.gradient(points, rows, loss)   # one query and one gradient a row
        return call.result(x_adv)                    # checked once more on the caller's model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.losses import AttackerLoss, goal_margin
from robustlab.noise import Noise
from robustlab.norms import measure
from robustlab.results import AttackResult

Access = Literal["white", "soft", "hard"]
_LEVEL = {"hard": 0, "soft": 1, "white": 2}


class Answer(NamedTuple):
    """What the victim said of some rows; ``loss`` and ``grad`` only where a gradient was asked for."""

    logits: Tensor
    met: Tensor
    loss: Tensor
    grad: Tensor


class Victim:
    """A model under attack.

    Args:
        model: an ``nn.Module`` from (N, ...) to (N, K); under soft or hard access any such callable.
        bounds: the box [low, high] of valid inputs, in the units of ``x``. Normalization is a layer of the model.
        access: ``"white"`` (gradients), ``"soft"`` (scores) or ``"hard"`` (the top label alone).
        budget: forward rows that each sample may cost in one call, the clean and the final check included;
            None for no limit. When it is spent an attack returns its best so far.
        output: what the model returns, ``"logits"`` or ``"probs"`` (whose logarithm then serves as logits).
        mode: ``"eval"`` holds the model in evaluation mode during a call, ``"asis"`` leaves its mode alone.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        access: Access = "white",
        budget: int | None = None,
        output: Literal["logits", "probs"] = "logits",
        mode: Literal["eval", "asis"] = "eval",
    ) -> None:
        checks.one_of("access", access, _LEVEL)
        checks.one_of("output", output, ("logits", "probs"))
        checks.one_of("mode", mode, ("eval", "asis"))
        if isinstance(model, Victim):
            raise TypeError("model: want a model, got a Victim; use it as it is")
        if not callable(model) or (access == "white" and not isinstance(model, nn.Module)):
            wish = "an nn.Module under white access" if access == "white" else "a callable"
            raise TypeError(f"model: want {wish}, got {type(model).__name__}")
        if len(bounds) != 2 or not float(bounds[0]) < float(bounds[1]):
            raise ValueError(f"bounds: want (low, high) with low < high, got {bounds}")
        if budget is not None:
            checks.at_least("budget", budget, 2, integer=True)
        self.model, self.bounds = model, (float(bounds[0]), float(bounds[1]))
        self.access, self.budget, self.output, self.mode = access, budget, output, mode

    @classmethod
    def of(cls, model: Victim | Callable[[Tensor], Tensor]) -> Victim:
        """A Victim as it is; a bare model wrapped with the defaults."""
        return model if isinstance(model, Victim) else cls(model)

    @contextmanager
    def call(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        target: int | Tensor | None = None,
        ids: Tensor | None = None,
        kappa: float = 0.0,
        access: Access = "white",
        loss: AttackerLoss | None = None,
        min_classes: int = 2,
    ) -> Iterator[Call]:
        """Check the inputs, hold the model still, and open a :class:`Call`.

        Args:
            x: (N, ...), floating, inside the box.
            y: (N,) labels; None takes the model's own prediction.
            target: a label, or one a sample, for a targeted attack.
            ids: (N,) identities for the randomness; None means 0 … N − 1.
            kappa: confidence κ ≥ 0 that is part of the goal.
            access: what the attack needs.
            loss: the attack's loss, whose need of classes is checked.
            min_classes: classes that the attack itself needs.
        """
        if _LEVEL[access] > _LEVEL[self.access]:
            raise ValueError(f"access: this attack needs {access!r} access, the victim grants {self.access!r}")
        checks.images(x, self.bounds)
        checks.at_least("kappa", kappa, 0.0)
        y = None if y is None else checks.labels("y", y, x)
        target = None if target is None else checks.labels("target", target, x)
        if target is not None and y is not None and bool((target == y).any()):
            rows = (target == y).nonzero().flatten().tolist()
            raise ValueError(f"target: want a label other than y, got target = y in rows {rows[:10]}")
        ids = torch.arange(x.shape[0]) if ids is None else torch.as_tensor(ids)
        if ids.shape != x.shape[:1] or ids.is_floating_point():
            raise ValueError(f"ids: want {x.shape[0]} integers, got shape {tuple(ids.shape)} of {ids.dtype}")
        self._check_home(x)
        needed = max(min_classes, (loss.min_classes if target is None else loss.min_classes_targeted) if loss else 2)
        with torch.inference_mode(False), torch.no_grad(), self._held(x.device):
            # Tensors made in inference mode cannot take part in autograd; their clones can.
            x, y, target, ids = (t.clone() if t is not None and t.is_inference() else t for t in (x, y, target, ids))
            yield Call(self, x.detach(), y, target, ids.to(x.device), float(kappa), needed)

    def _check_home(self, x: Tensor) -> None:
        """The model's dtype and device must be those of x."""
        weight = next((p for p in self._tensors() if p.is_floating_point()), None)
        if weight is None:
            return
        if weight.dtype != x.dtype:
            short = str(weight.dtype).removeprefix("torch.")
            raise TypeError(
                f"x: want the model's dtype {weight.dtype}, got {x.dtype}; "
                f"say x.to(torch.{short}) or model.to({x.dtype}) (for example model.double() or x.float())"
            )
        if weight.device != x.device:
            raise ValueError(f"x: want the model's device {weight.device}, got {x.device}")

    def _tensors(self) -> Iterator[Tensor]:
        if isinstance(self.model, nn.Module):
            yield from self.model.parameters()
            yield from self.model.buffers()

    @contextmanager
    def _held(self, device: torch.device) -> Iterator[None]:
        """Mode set and parameters frozen; on leaving, everything is as it was."""
        cuda = [device] if device.type == "cuda" else []
        with ExitStack() as undo:
            undo.enter_context(torch.random.fork_rng(devices=cuda))
            if isinstance(self.model, nn.Module):
                modes = [(module, module.training) for module in self.model.modules()]
                frozen = [p for p in self.model.parameters() if p.requires_grad]
                if self.mode == "asis" and any(training for _, training in modes):
                    # A batch norm in training mode would move its statistics at every query.
                    undo.callback(_restore, [(b, b.clone()) for b in self.model.buffers()])
                undo.callback(_thaw, modes, frozen)
                if self.mode == "eval":
                    self.model.eval()
                for p in frozen:
                    p.requires_grad_(False)
            yield

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"Victim({name}, bounds={self.bounds}, access={self.access!r}, budget={self.budget})"


def _restore(saved: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in saved:
        buffer.copy_(value)


def _thaw(modes: list[tuple[nn.Module, bool]], frozen: list[nn.Parameter]) -> None:
    for module, training in modes:
        module.training = training
    for p in frozen:
        p.requires_grad_(True)


class Call:
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
        victim: Victim,
        x: Tensor,
        y: Tensor | None,
        target: Tensor | None,
        ids: Tensor,
        kappa: float,
        min_classes: int,
    ) -> None:
        n = x.shape[0]
        self.victim, self.x, self.target, self.ids, self.kappa = victim, x, target, ids, kappa
        self.low, self.high = victim.bounds
        self.queries = torch.zeros(n, dtype=torch.int64, device=x.device)
        self.gradients = torch.zeros_like(self.queries)
        self.first_success = torch.full_like(self.queries, -1)
        self.y = torch.zeros_like(self.queries) if y is None else y
        self.clean: Tensor | None = None
        self.active = torch.arange(n, device=x.device)
        if n == 0:
            return
        logits = self._forward(x)
        classes = self._check_output(logits, n, min_classes)
        for name, label in (("y", y), ("target", target)):
            if label is not None:
                checks.in_classes(name, label, classes)
        if y is None:
            self.y = logits.argmax(dim=1)
        self.clean = None if victim.access == "hard" else logits
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
        logits = self._forward(self._inside(points))
        empty = logits.new_empty(0)
        return Answer(logits, self._count(logits, rows), empty, empty)

    def ask_labels(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The top label of each point and whether the goal is met there; one query each. All that hard access shows."""
        if self.kappa:
            raise ValueError("kappa: want 0 under hard access, where no scores are seen")
        logits = self._forward(self._inside(points))
        return logits.argmax(dim=1), self._count(logits, rows)

    def gradient(self, points: Tensor, rows: Tensor, loss: Callable[..., Tensor]) -> Answer:
        """Scores, loss and input gradient of the loss at ``points``; one query and one gradient each."""
        self._need("white")
        with torch.enable_grad():
            points = self._inside(points).detach().requires_grad_(True)
            logits = self._forward(points)
            value = loss(logits, self.y[rows], None if self.target is None else self.target[rows], self.kappa)
            (grad,) = _input_gradient(value.sum(), points)
        self.gradients[rows] += 1
        logits = logits.detach()
        return Answer(logits, self._count(logits, rows), value.detach(), grad)

    def jacobian(
        self, points: Tensor, rows: Tensor, choose: Callable[[Tensor], Tensor]
    ) -> tuple[Answer, Tensor, Tensor]:
        """Gradients of chosen logits: the answer, the classes (n, C) = choose(logits), the gradients (n, C, ...).

        One query and C gradients a row.
        """
        self._need("white")
        with torch.enable_grad():
            points = self._inside(points).detach().requires_grad_(True)
            logits = self._forward(points)
            classes = choose(logits.detach())
            chosen = logits.gather(1, classes).sum(dim=0)
            parts = [_input_gradient(part, points, retain=i + 1 < len(chosen))[0] for i, part in enumerate(chosen)]
        self.gradients[rows] += classes.shape[1]
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
        spare = 1e-4 * logits.abs().amax(dim=1).clamp_min(1.0)
        return self.goal_margin(logits, rows) >= self.kappa + spare

    # Means -----------------------------------------------------------------------------------------------------

    def noise(self, seed: int) -> Noise:
        """Randomness keyed by the samples' ids."""
        return Noise(seed, self.ids)

    def can_pay(self, rows: Tensor, cost: int = 1) -> Tensor:
        """Which of ``rows`` have ``cost`` more queries in their budget, and still one for the final check; bool."""
        if self.victim.budget is None:
            return torch.ones_like(rows, dtype=torch.bool)
        return self.queries[rows] + cost + 1 <= self.victim.budget

    def result(
        self, x_adv: Tensor, *, revert: bool = False, trace: dict[str, Tensor] | None = None
    ) -> AttackResult:
        """Check ``x_adv`` (N, ...) once more and wrap it up.

        Samples that met the goal at x are returned as they were, without another query. With ``revert`` (minimum-norm
        attacks) a sample whose attack failed gets x back.
        """
        success = torch.ones_like(self.queries, dtype=torch.bool)
        final = self.x.clone()
        rows = self.active
        if rows.numel():
            points = x_adv[rows].to(self.x.dtype)
            won = self._count(self._forward(self._inside(points)), rows)
            success[rows] = won
            keep = rows[won] if revert else rows
            final[keep] = points[won] if revert else points
        return AttackResult(
            x_adv=final,
            success=success,
            distances=measure(final - self.x),
            queries=self.queries,
            gradients=self.gradients,
            first_success=self.first_success,
            trace=trace,
        )

    def _count(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Book one query for each row; note first successes; return whether the goal is met."""
        self.queries[rows] += 1
        met = self.met(logits, rows)
        if bool(met.any()):
            first = rows[met & (self.first_success[rows] < 0)]
            self.first_success[first] = self.queries[first]
        return met

    def _need(self, access: Access) -> None:
        if _LEVEL[self.victim.access] < _LEVEL[access]:
            raise ValueError(f"access: this question needs {access!r} access, the victim grants {self.victim.access!r}")

    def _inside(self, points: Tensor) -> Tensor:
        """Nothing outside the box is ever asked: a point outside is a bug of the attack, not of its user."""
        low, high = torch.aminmax(points)
        if not bool((low >= self.low) & (high <= self.high)):
            raise RuntimeError(f"query outside the box [{self.low}, {self.high}]: [{float(low)}, {float(high)}]")
        return points

    def _forward(self, points: Tensor) -> Tensor:
        out: Any = self.victim.model(points.clone())  # a copy, since a first layer may work in place
        if not isinstance(out, Tensor):
            raise ValueError(f"model: want a tensor of shape (N, K), got {type(out).__name__}")
        if self.victim.output == "probs" and out.is_floating_point():
            out = out.clamp_min(torch.finfo(out.dtype).tiny).log()
        return out


def _input_gradient(value: Tensor, points: Tensor, retain: bool = False) -> tuple[Tensor, ...]:
    """d value / d points, with NaN and infinities (from a saturated loss) set to 0."""
    if not value.requires_grad:
        raise ValueError("model: want an output that is differentiable in its input, got one that is cut off from it")
    grads = torch.autograd.grad(value, points, retain_graph=retain)
    return tuple(g.nan_to_num(0.0, 0.0, 0.0) for g in grads)  # not in place: a gradient may be an expanded view


def predict(model: Callable[[Tensor], Tensor], x: Tensor, batch_size: int = 500) -> Tensor:
    """Top-1 labels ŷ_θ(x), (N,), in evaluation mode, without gradients; the model's mode is restored."""
    victim = Victim(model, access="soft")
    with torch.inference_mode(False), torch.no_grad(), victim._held(x.device):
        parts = [model(part).argmax(dim=1) for part in x.split(batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=x.device)


def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch_size: int = 500) -> float:
    """The fraction of ``x`` (N, ...) that the model gives its label ``y`` (N,)."""
    return float((predict(model, x, batch_size) == y).double().mean())
