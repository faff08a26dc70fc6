"""Detectors that watch the same pictures: what a print does to their boxes, and the opponent who weighs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustlab.attacker.composition import boxed
from robustlab.attacker.results import PhysicalResult
from robustlab.attacks.physical.expectation import Beside, Expected, Stage
from robustlab.attacks.physical.printing import printed
from robustlab.attacks.universal.minmax_universal import answered
from robustlab.models.boxes import candidates, detected, overlap


@dataclass(frozen=True, eq=False, repr=False)
class ShirtResult(PhysicalResult):
    """A print for a shirt, and which detectors it hides from; ``success`` is that all of them miss the wearer.

    Attributes:
        hidden: (K, N, T) bool: whether each of K detectors misses the person of each held-out frame in each view.
        weights: (K,), ≥ 0 and of sum 1: how the opponent weighs the detectors in the end.
    """

    hidden: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.bool))
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class Confidence:
    """f(x), (n,), of what a detector says; the persons' boxes stand in the place of labels."""

    nu: float
    iou: float
    unit: float = 1.0

    def __call__(self, answer: Any, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        boxes, scores = candidates(answer)
        near = overlap(boxes.detach(), y[:, None].to(boxes))[..., 0] > self.iou
        return ((scores.clamp_min(self.nu) - self.nu) * near).sum(dim=1) / self.unit


@dataclass
class Hidden:
    """The goal: nothing that a detector is sure of overlaps the person's box."""

    threshold: float
    iou: float
    boxes: Tensor | None = None

    def __call__(self, answer: Any, rows: Tensor) -> Tensor:
        if self.boxes is None:  # asked about the frames themselves, of which the boxes may come
            return torch.zeros_like(rows, dtype=torch.bool)
        return ~detected(answer, self.boxes[rows], threshold=self.threshold, iou=self.iou)

    def found(self, name: str, answer: Any, given: Tensor | None) -> Tensor:
        """The persons' boxes (N, 4): as given, or where the detector is surest; raises where nobody is found."""
        boxes, scores = candidates(answer)
        best = scores.argmax(dim=1, keepdim=True)[..., None].expand(-1, -1, 4)
        wish = boxes.gather(1, best)[:, 0] if given is None else given.to(boxes)
        lost = (~detected(answer, wish, threshold=self.threshold, iou=self.iou)).nonzero().flatten().tolist()
        if lost:
            more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
            raise ValueError(
                f"{name}: want frames in which each detector finds the person, no box found in rows {lost[:10]}{more}; "
                "robustlab.models.boxes.detected tells which to keep"
            )
        return wish.detach()


@dataclass
class Watched(Stage):
    """Several detectors that watch the same pictures, and the opponent who weighs them.

    Attributes:
        stages: one per detector.
        persons: for each, the boxes (M, 4) in the held-out frames.
        weights: w, (K,).
        told: of each step the losses and weights.
    """

    stages: list[Stage]
    persons: list[Tensor]
    threshold: float
    iou: float
    weights: Tensor
    weight_step: float
    gamma: float
    told: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def look(self, texture: Tensor, step: int, beside: Beside | None = None) -> Expected:
        """Each detector's expected loss; the opponent answers each move of the print, then weighs them."""
        for stage in self.stages:  # any of which may be interrupted
            stage.session.keep_texture(texture, self.mask)
        losses, grads = (torch.stack(each) for each in zip(*(s.look(texture, step) for s in self.stages), strict=True))
        if self.told:
            self.weights = answered(self.weights, losses, self.weight_step, self.gamma)
        self.told.append((losses, self.weights))
        return Expected(self.weights @ losses, torch.einsum("k,k...->...", self.weights, grads))

    def affords(self, step: int) -> bool:
        """Whether every detector may be asked about another step."""
        return all(stage.affords(step) for stage in self.stages)

    def result(self, texture: Tensor, trace: list[Tensor] | None = None) -> ShirtResult:
        """Print the texture and judge it, before every detector."""
        final = printed(texture, self.mask, self.colors)
        final = final.to(self.session._dtype or final.dtype)
        images, views = self.held_out[0].detach(), self.held_out[1]
        pictures = [view(images, final, self.mask) for view in views]
        hidden = torch.stack(
            [
                torch.stack([_missed(stage, part, who, self.threshold, self.iou) for part in pictures], dim=1)
                for stage, who in zip(self.stages, self.persons, strict=True)
            ]
        )
        kept = None
        if trace is not None:
            losses, weights = (torch.stack(each) for each in zip(*self.told, strict=True))
            kept = {"loss": torch.stack(trace), "losses": losses, "weights": weights}
        whole = vars(self.session.physical_result(final, self.mask, hidden.all(dim=0), kept))
        for name in ("queries", "gradients"):
            whole[name] = torch.stack([getattr(stage.session, name) for stage in self.stages]).sum(dim=0)
        return ShirtResult(**whole, hidden=hidden, weights=self.weights)


def _missed(stage: Stage, pictures: Tensor, boxes: Tensor, threshold: float, iou: float) -> Tensor:
    """(M,): whether a detector misses the persons of pictures."""
    asked = boxed(pictures, stage.session.low, stage.session.high)
    parts = zip(asked.split(250), boxes.split(250), strict=True)
    return torch.cat(
        [~detected(stage.session.answer_of(part), who, threshold=threshold, iou=iou) for part, who in parts]
    )


def held_out_persons(
    stages: list[Stage], images: Tensor, given: Tensor | None, threshold: float, iou: float
) -> list[Tensor]:
    """For each detector the boxes of the held-out frames' persons, all of whom it finds."""
    hidden = Hidden(threshold, iou)
    return [hidden.found("held_out", stage.session.answer_of(images), given) for stage in stages]
