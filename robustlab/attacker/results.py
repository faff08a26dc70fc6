"""What methods return. All are frozen; every field that has one value a sample is a tensor of shape (N,)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from robustlab.attacker.parts import every, size
from robustlab.geometry.norms import get_norm


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    return value


class _Movable:
    def to(self, device: torch.device | str) -> Any:
        """The same result with every tensor on ``device``."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class AttackResult(_Movable):
    """The outcome of an attack on a batch of N samples.

    Attributes:
        x_adv: shape, dtype and device of x, a tuple where x is one; inside the domain and, for a budget attack, the
            budget.
        success: bool; the goal is met by ``x_adv``, recomputed at the end on the caller's own model.
        distances: ``"l0"``, ``"l1"``, ``"l2"``, ``"linf"`` → ‖x_adv − x‖; of other inputs those of their domain.
        queries: forward rows spent on each sample, the clean and the final check included.
        gradients: input-gradient rows spent on each sample.
        first_success: queries spent when the goal was first met, −1 if it never was.
        trace: optional, per-step tensors of shape (steps, N).
    """

    x_adv: Tensor
    success: Tensor
    distances: dict[str, Tensor]
    queries: Tensor
    gradients: Tensor
    first_success: Tensor
    trace: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return size(self.x_adv)

    def radius(self, norm: str) -> Tensor:
        """The distance in ``norm`` where the attack succeeded, ∞ elsewhere: an upper bound of the robust radius.

        Raises:
            ValueError: if no distance is called so.
        """
        name = norm if norm in self.distances else get_norm(norm).name
        if name not in self.distances:
            raise ValueError(f"norm: want one of {', '.join(self.distances)}, got {norm!r}")
        return torch.where(self.success, self.distances[name], torch.inf)

    def summary(self) -> str:
        """One line: how many succeeded, at which median distances, at what cost."""
        n, won = len(self), int(self.success.sum())
        if n == 0:
            return "0 samples"
        text = f"{won} of {n} succeeded ({100 * won / n:.1f} %)"
        if won:
            medians = (f"{name} {float(d[self.success].median()):.3g}" for name, d in self.distances.items())
            text += ", median distance " + ", ".join(medians)
        mean_q, mean_g = float(self.queries.double().mean()), float(self.gradients.double().mean())
        return text + f"; mean queries {mean_q:.1f}, mean gradients {mean_g:.1f}"

    @staticmethod
    def cat(parts: Sequence[AttackResult]) -> AttackResult:
        """Join the results of several batches, in order. Traces of different lengths are padded with NaN."""
        if not parts:
            raise ValueError("parts: want at least one AttackResult, got none")
        joined = {
            name: every(lambda *of_parts: torch.cat(of_parts), *(getattr(p, name) for p in parts))
            for name in ("x_adv", "success", "queries", "gradients", "first_success")
        }
        distances = {k: torch.cat([p.distances[k] for p in parts]) for k in parts[0].distances}
        traces = [p.trace for p in parts if p.trace is not None]
        trace = None
        if len(traces) == len(parts):
            trace = {key: _cat_padded([t[key] for t in traces]) for key in traces[0]}
        return AttackResult(**joined, distances=distances, trace=trace)


def _cat_padded(parts: Sequence[Tensor]) -> Tensor:
    """Join (steps_i, N_i) tensors along samples."""
    steps = max(p.shape[0] for p in parts)
    filled = [torch.cat([p, p.new_full((steps - p.shape[0], p.shape[1]), torch.nan)]) for p in parts]
    return torch.cat(filled, dim=1)


@dataclass(frozen=True, eq=False)
class UniversalResult(_Movable):
    """One perturbation for many samples.

    Attributes:
        delta: the perturbation, the shape of one sample.
        success: bool, per sample: ``x + delta`` (clipped to the box) meets the goal.
        distances: lengths of ``delta``, one number each.
        queries, gradients: per sample.
    """

    delta: Tensor
    success: Tensor
    distances: dict[str, Tensor]
    queries: Tensor
    gradients: Tensor
    trace: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Certificate(_Movable):
    """A guarantee, per sample.

    Attributes:
        status: a list of ``"verified"``, ``"falsified"`` or ``"unknown"``.
        radius: certified radius, 0 where the sample is misclassified or the method abstains.
        norm: in which the radius is measured.
        method: the catalogue key.
        confidence: 1 if deterministic, else 1 − α.
        counterexample: where falsified, a replayed input; None if there is none.
    """

    status: list[str]
    radius: Tensor
    norm: str
    method: str
    confidence: float = 1.0
    counterexample: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Estimate(_Movable):
    """A number per sample that is NOT a guarantee (CLEVER, for example)."""

    value: Tensor
    norm: str
    method: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Detection(_Movable):
    """What a detector says.

    Attributes:
        scores: (N,), higher is more suspicious.
        flagged: bool, (N,).
        threshold: above which a score is flagged.
        details: whatever else the method found; ``"false_alarm_rate"`` is what it states of clean samples or models
            (None where its threshold is none of theory's), as a share of what ``"level"`` names.
    """

    scores: Tensor
    flagged: Tensor
    threshold: float
    details: dict[str, Any] = field(default_factory=dict)

    def score(self, is_poison: Tensor) -> dict[str, float]:
        """Compare with the truth, which enters here and nowhere else.

        Returns ``auroc`` (ties count half), ``true_positive_rate``, ``false_positive_rate`` and ``precision``; NaN
        where a rate has no samples.
        """
        truth = is_poison.to(device=self.scores.device, dtype=torch.bool)
        if truth.shape != self.scores.shape:
            raise ValueError(f"is_poison: want shape {tuple(self.scores.shape)}, got {tuple(truth.shape)}")
        positive, negative = self.scores[truth].double(), self.scores[~truth].double()

        def rate(part: Tensor) -> float:
            return float(part.double().mean()) if part.numel() else float("nan")

        wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
        return {
            "auroc": rate(wins),
            "true_positive_rate": rate(self.flagged[truth]),
            "false_positive_rate": rate(self.flagged[~truth]),
            "precision": rate(truth[self.flagged]),
        }
