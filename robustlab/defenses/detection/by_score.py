"""Detectors that are a score of one input and a threshold: the threshold that keeps a rate of false alarms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection, Result
from robustlab.data.pairs import Pairs, read_inputs, read_labeled
from robustlab.models.modes import evaluating
from robustlab.models.probing import Layer, count_outputs, read_features


@dataclass(frozen=True, eq=False, repr=False)
class Scored(Result):
    """What a detector by score has besides its verdicts.

    Attributes:
        score: a module from inputs (N, ...) to scores (N,), with which others can be judged, and which an adaptive
            attacker differentiates; see :func:`robustlab.attacks.bypass_detectors`.
        clean_scores: (M,), of the clean inputs that set the threshold.
    """

    score: nn.Module
    clean_scores: Tensor


def threshold_at(rate: float, clean_scores: Tensor) -> float:
    """The smallest of the clean scores that at most ⌊rate·(M + 1)⌋ of M + 1 exchangeable ones pass; ∞ if that is 0."""
    allowed = math.floor(rate * (len(clean_scores) + 1) + 1e-9)
    return float(clean_scores.sort(descending=True).values[allowed - 1]) if allowed else math.inf


def passes(scores: Tensor, threshold: float) -> Tensor:
    """Which scores are alarms: those above the threshold, and those that are no numbers."""
    return ~(scores <= threshold)


def judged(
    score: nn.Module, x: Tensor, clean: Tensor, rejection_rate: float, batch_size: int, layer: str | None = None
) -> Detection[Scored]:
    """Flag the inputs x whose score passes the threshold that clean inputs set, or is no number."""
    with torch.inference_mode(False), torch.no_grad(), evaluating(score, device=x.device):
        scores, reference = (
            torch.cat([score(part) for part in inputs.split(batch_size)]) if len(inputs) else inputs.new_zeros(0)
            for inputs in (x, clean)
        )
    threshold = threshold_at(rejection_rate, reference)
    return Detection(
        scores, passes(scores, threshold), threshold, Scored(score, reference), false_alarm_rate=rejection_rate,
        level="sample", layer=layer,
    )  # fmt: skip


def read_x_and_clean(
    model: nn.Module, x: Tensor | Pairs, clean: Tensor | Pairs, rejection_rate: float, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The inputs to be judged and the clean ones, checked with what all these detectors are told."""
    x, clean = read_inputs(x, "x", "test"), read_inputs(clean, "clean")
    for name, inputs in (("x", x), ("clean", clean)):
        checks.at_home(model, inputs, name)
        checks.finite(name, inputs)
        checks.unit_pixels(name, inputs)
    if clean.shape[1:] != x.shape[1:] or not len(clean):
        raise ValueError(f"clean: want at least 1 input of shape {tuple(x.shape[1:])}, got {tuple(clean.shape)}")
    checks.at_least("batch_size", batch_size, 1, integer=True)
    checks.positive("rejection_rate", rejection_rate)
    checks.below("rejection_rate", rejection_rate, 1)
    return x, clean


def training_features(
    model: nn.Module, data: Pairs, batch_size: int, layer: Layer | None
) -> tuple[Tensor, Tensor, str]:
    """The features of labeled training data (M, d), their labels, and which features were taken; all checked."""
    known, y = read_labeled(data)
    checks.at_home(model, known, "data")
    checks.unit_pixels("data", known)
    checks.in_classes("y", y, count_outputs(model, known))
    features, taken = read_features(model, known, batch_size, layer)
    return features, y, taken
