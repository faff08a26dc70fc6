"""What methods return. All are frozen; every field that has one value per sample is a tensor of shape (N,)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from robustlab.attacker.parts import every, size
from robustlab.geometry.norms import ProperNorm

Details = TypeVar("Details")
Status = Literal["verified", "falsified", "unknown"]


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})
    return value


def _shown(value: Any) -> str:
    """A value in a few words; of a tensor only its shape, dtype and device, but a number as it is."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{value.item():.4g}" if value.dim() == 0 else f"{kind} {tuple(value.shape)}{place}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(part)}" for key, part in value.items()) + "}"
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, tuple | list):
        inside = ", ".join(_shown(part) for part in value[:4])
        return f"({inside}{', …' if len(value) > 4 else ''})"
    text = repr(value)
    if isinstance(value, Result):  # within another one: in one line
        known = ((f.name, getattr(value, f.name)) for f in fields(value))
        text = f"{type(value).__name__}({', '.join(f'{name}: {_shown(part)}' for name, part in known)})"
    return text if len(text) <= 80 else text[:79] + "…"


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What all results have: ``to(device)``, and a ``repr`` of a line per field that never prints an array whole."""

    def to(self, device: torch.device | str) -> Self:
        """The same result with every tensor on ``device``; modules stay where they are."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})

    def __repr__(self) -> str:
        known = ((f.name, getattr(self, f.name)) for f in fields(self))
        lines = [f"  {name}: {_shown(value)}" for name, value in known if value is not None]
        return "\n".join([f"{type(self).__name__}:", *lines])


@dataclass(frozen=True, eq=False, repr=False)
class AttackResult(Result):
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
        if norm not in self.distances:
            raise ValueError(f"norm: want one of {', '.join(self.distances)}, got {norm!r}")
        return torch.where(self.success, self.distances[norm], torch.inf)

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


def keep_so_far(error: BaseException, result: AttackResult | UniversalResult | PhysicalResult) -> None:
    """Attach to an error what the attack that it ends has found; what an attack inside of this one attached stays."""
    if so_far(error) is None:
        vars(error)["so_far"] = result
        worked = result.queries > 1
        if bool((worked if isinstance(result, PhysicalResult) else result.success & worked).any()):
            error.add_note(f"Nothing found is lost: robustlab.attacker.results.so_far(error) has {result.summary()}")


def so_far(error: BaseException) -> AttackResult | UniversalResult | PhysicalResult | None:
    """What an attack had found when an error of its model, or Ctrl-C, ended it.

    Its ``success`` is what the model said when it was asked: no point was checked again. Queries are those that were
    answered. A sample that was not fooled has the best point that the attack had put aside, or x. A texture that was
    not judged yet has a success of no pictures.

    Args:
        error: what was raised.

    Returns:
        The result, for all samples that the attack was given; None if it had not begun.
    """
    return vars(error).get("so_far")


@dataclass(frozen=True, eq=False, repr=False)
class UniversalResult(Result):
    """One perturbation for many samples.

    Attributes:
        delta: the perturbation, the shape of one sample.
        success: bool, per sample: ``x + delta`` (clipped to the box) meets the goal.
        distances: lengths of ``delta``, one number each.
        queries, gradients: per sample.
        trace: optional, per-step tensors.
    """

    delta: Tensor
    success: Tensor
    distances: dict[str, Tensor]
    queries: Tensor
    gradients: Tensor
    trace: dict[str, Tensor] | None = None

    def summary(self) -> str:
        """One line: how many samples the one perturbation moves, its lengths, and at what cost."""
        won, n = int(self.success.sum()), len(self.success)
        lengths = ", ".join(f"{name} {float(value):.3g}" for name, value in self.distances.items())
        text = f"one perturbation of {lengths}: {won} of {n} succeeded" + (f" ({100 * won / n:.1f} %)" if n else "")
        if not n:
            return text
        mean_q, mean_g = float(self.queries.double().mean()), float(self.gradients.double().mean())
        return text + f"; mean queries {mean_q:.1f}, mean gradients {mean_g:.1f}"


@dataclass(frozen=True, eq=False, repr=False)
class PhysicalResult(Result):
    """Something to print and put into the world.

    Attributes:
        texture: (C, H, W) in [0, 1], colors that can be printed.
        mask: (1, H, W) bool, where the texture is; outside it the world stays as it is.
        success: bool (N, T): the goal is met by each of N held-out images under each of T held-out transforms.
        queries, gradients: per sample of those that the texture was made on.
        trace: optional, per-step tensors.
    """

    texture: Tensor
    mask: Tensor
    success: Tensor
    queries: Tensor
    gradients: Tensor
    trace: dict[str, Tensor] | None = None

    def summary(self) -> str:
        """One line: what is painted, in how many held-out pictures the goal is met, and at what cost."""
        won, n, painted = int(self.success.sum()), self.success.numel(), int(self.mask.sum())
        text = f"a texture of {painted} pixels: " + (
            f"{won} of {n} held-out pictures succeeded ({100 * won / n:.1f} %)" if n else "not judged"
        )
        if not len(self.queries):
            return text
        mean_q, mean_g = float(self.queries.double().mean()), float(self.gradients.double().mean())
        return text + f"; mean queries {mean_q:.1f}, mean gradients {mean_g:.1f}"


@dataclass(frozen=True, eq=False, repr=False)
class Certificate(Result):
    """A guarantee, per sample.

    Attributes:
        verified: bool; the label provably holds within ``radius``.
        falsified: bool; it provably does not. Where neither holds nothing is known; both never hold.
        radius: certified radius, 0 where the sample is misclassified or the method abstains.
        norm: in which the radius is measured.
        method: the catalogue key.
        confidence: 1 if deterministic, else 1 − α.
        counterexample: (N, ...), where falsified a replayed input, else NaN; None if there is none at all.

    Raises:
        ValueError, TypeError: if verified and falsified are not bool (N,), or both hold somewhere.
    """

    verified: Tensor
    falsified: Tensor
    radius: Tensor
    norm: ProperNorm
    method: str
    confidence: float = 1.0
    counterexample: Tensor | None = None

    def __post_init__(self) -> None:
        for name, mask in (("verified", self.verified), ("falsified", self.falsified)):
            if mask.dtype != torch.bool:
                raise TypeError(f"{name}: want torch.bool, got {mask.dtype}")
            if mask.shape != self.radius.shape:
                raise ValueError(f"{name}: want shape {tuple(self.radius.shape)}, got {tuple(mask.shape)}")
        if bool((self.verified & self.falsified).any()):
            rows = (self.verified & self.falsified).nonzero().flatten().tolist()
            raise ValueError(f"verified, falsified: want at most one per sample, got both in rows {rows[:10]}")

    def __len__(self) -> int:
        return len(self.verified)

    @property
    def unknown(self) -> Tensor:
        """(N,) bool: neither verified nor falsified."""
        return ~(self.verified | self.falsified)

    @property
    def status(self) -> list[Status]:
        """The verdicts in words, ``"verified"``, ``"falsified"`` or ``"unknown"``: for print, not for decisions."""
        pairs = zip(self.verified.tolist(), self.falsified.tolist(), strict=True)
        return ["verified" if v else "falsified" if f else "unknown" for v, f in pairs]

    def summary(self) -> str:
        """One line: how many of each."""
        counts = ", ".join(f"{int(getattr(self, name).sum())} {name}" for name in ("verified", "falsified", "unknown"))
        return f"{self.method} in {self.norm}, {len(self)} samples: {counts}"


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Result):
    """A number per sample that is NOT a guarantee (CLEVER, for example)."""

    value: Tensor
    norm: ProperNorm
    method: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Repair(Result, Generic[Details]):
    """A repaired model.

    Attributes:
        model: a copy of what was given, repaired.
        details: what the method says of its work.
    """

    model: nn.Module
    details: Details


@dataclass(frozen=True, eq=False, repr=False)
class Detection(Result, Generic[Details]):
    """What a detector says.

    Attributes:
        scores: (N,), higher is more suspicious; NaN where the method has no verdict.
        flagged: bool, (N,); False where there is no verdict.
        threshold: above which a score is flagged.
        details: whatever else the method found.
        false_alarm_rate: what the method states of clean data or models, as a share of what ``level`` names; None where
            its threshold is none of theory's.
        level: ``"sample"`` or ``"class"``.
        layer: which features the method read, ``"input of NAME"`` or ``"output of NAME"``; None where it reads none.
    """

    scores: Tensor
    flagged: Tensor
    threshold: float
    details: Details = field(default_factory=dict)  # type: ignore[assignment]
    false_alarm_rate: float | None = None
    level: Literal["sample", "class"] | None = None
    layer: str | None = None

    def score(self, is_poison: Tensor) -> dict[str, float]:
        """Compare with the truth, which enters here and nowhere else.

        Returns ``auroc`` (ties count half; NaN if some score is), ``true_positive_rate``, ``false_positive_rate``
        and ``precision``; NaN where a rate has no samples.
        """
        truth = is_poison.to(device=self.scores.device, dtype=torch.bool)
        if truth.shape != self.scores.shape:
            raise ValueError(f"is_poison: want shape {tuple(self.scores.shape)}, got {tuple(truth.shape)}")
        positive, negative = self.scores[truth].double(), self.scores[~truth].double()

        def rate(part: Tensor) -> float:
            return float(part.double().mean()) if part.numel() else float("nan")

        wins = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
        if bool(self.scores.isnan().any()):  # what has no score has no rank
            wins = wins.new_full((1,), torch.nan)
        return {
            "auroc": rate(wins),
            "true_positive_rate": rate(self.flagged[truth]),
            "false_positive_rate": rate(self.flagged[~truth]),
            "precision": rate(truth[self.flagged]),
        }
