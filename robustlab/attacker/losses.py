"""The attacker's losses g of survey section 2.2, one number per sample, and the pieces that they share.

An attacker MINIMIZES g. With logits z, label y, target t and confidence κ:

    name        untargeted                             targeted
    "ce"        −CE(z, y)                               CE(z, t)
    "margin"    max{z_y − max_{k≠y} z_k + κ, 0}         max{max_{k≠t} z_k − z_t + κ, 0}
    "logprob"   the same with log softmax(z)            the same
    "prob"      the same with softmax(z)                the same
    "dlr"       (z_y − max_{k≠y} z_k) / (z_(1) − z_(3)) (z_y − z_t) / (z_(1) − (z_(3) + z_(4))/2)

where z_(1) ≥ z_(2) ≥ … are the sorted logits. The label is masked with −∞ in every maximum, so that adding a constant
to all logits changes nothing.

A function of your own, ``loss(logits, y, target, kappa)``, gives one number per sample, the smaller the better for the
attacker: cross-entropy is maximized as ``-F.cross_entropy(logits, y, reduction="none")``.

Source: Chen and Liu (2022), section 2.2; Carlini and Wagner (2017b), section V; Croce and Hein (2020), "Reliable
evaluation of adversarial robustness", equations (6) and (7), for DLR.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks

LossName = Literal["ce", "margin", "logprob", "prob", "dlr"]
LossFunction = Callable[..., Tensor]
"""``loss(logits, y, target=None, kappa=0.0) -> (N,)``, to be minimized by the attacker."""


@dataclass(frozen=True)
class AttackerLoss:
    """A loss, its name and the number of classes that it needs without and with a target."""

    name: str
    function: LossFunction
    min_classes: int = 2
    min_classes_targeted: int = 2

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        return self.function(logits, y, target, kappa)


def log_mean_probabilities(logits: Tensor, dim: int, weights: Tensor | None = None) -> Tensor:
    """log of the mean of softmax(logits) over one dimension of several answers; classes are the last dimension.

    ``weights`` (m,), of sum 1, are those of the m answers in ``dim``, which is 0; None for equal ones.
    """
    logs = logits.log_softmax(dim=-1)
    if weights is None:
        return logs.logsumexp(dim=dim) - math.log(logits.shape[dim])
    return (logs + weights.log().reshape(-1, *[1] * (logs.dim() - 1))).logsumexp(dim=dim)


def at_its_end(loss: LossFunction, value: Tensor, target: Tensor | None, kappa: float = 0.0) -> Tensor | None:
    """Where a loss of probabilities has the value beyond which it tells nothing, since they round to 1 and 0, (N,).

    None for a loss that has no such end: another one, or one with a target.
    """
    end = {"ce": 0.0, "prob": 1.0 + kappa}.get(loss.name if isinstance(loss, AttackerLoss) else "")
    return None if end is None or target is not None else value == end


def best_other(logits: Tensor, label: Tensor) -> Tensor:
    """max_{k ≠ label} z_k, (N,)."""
    return logits.scatter(1, label.unsqueeze(1), -torch.inf).amax(dim=1)


def rivals(logits: Tensor, label: Tensor) -> Tensor:
    """The classes other than the label, (N, K − 1), the one of the largest logit first.

    The label is told by its place: by a logit of −∞ it would tie with classes that are masked.
    """
    ranked = logits.argsort(dim=1, descending=True, stable=True)
    return ranked[ranked != label.unsqueeze(1)].reshape(len(logits), -1)


def compared(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The logits that a margin compares: z_label and max_{k ≠ label} z_k, both (N,)."""
    return logits.gather(1, label.unsqueeze(1)).squeeze(1), best_other(logits, label)


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """z_label − max_{k ≠ label} z_k, (N,): positive exactly where the label wins."""
    own, other = compared(logits, label)
    return own - other


def goal_margin(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """How clearly the attacker's goal is met, (N,): −margin(y), or margin(target). Positive = met."""
    return -margin(logits, y) if target is None else margin(logits, target)


def ce(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """Cross-entropy: −CE(z, y), or CE(z, t). ``kappa`` plays no part."""
    if target is None:
        return -F.cross_entropy(logits, y, reduction="none")
    return F.cross_entropy(logits, target, reduction="none")


def truncated_margin(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """The truncated class margin loss: max{κ − goal margin, 0}."""
    return (kappa - goal_margin(logits, y, target)).clamp_min(0)


def log_probability_margin(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """The margin loss on log f_θ, which is what a soft-label black box shows."""
    return truncated_margin(F.log_softmax(logits, dim=1), y, target, kappa)


def logit_size(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """max(|z_l|, |z_r|, median_k |z_k|), (n,): l is the label or the target, r the best of the other classes.

    Not the largest, which may be that of a class masked by −1e9. Infinite logits count as 0.
    """
    label = y if target is None else target
    size = logits.abs().nan_to_num(0.0, 0.0)
    pair = torch.stack([label, rivals(logits, label)[:, 0]], dim=1)
    return torch.maximum(size.gather(1, pair).amax(dim=1), size.median(dim=1).values)


def logit_change(logits: Tensor, other: Tensor) -> Tensor:
    """How far two answers of one input are apart, relative to the size of the first, (n,); equal infinities are 0."""
    gap = (logits - other).abs().masked_fill(logits == other, 0.0).amax(dim=1)
    return gap / logit_size(logits, logits.argmax(dim=1)).clamp_min(torch.finfo(logits.dtype).tiny)


def spare(own: Tensor, other: Tensor, at_x: Tensor, dtype: torch.dtype) -> Tensor:
    """The margin by which a success must be won for rounding not to undo it, (n,).

        1e-4 · max(|z_l|, |z_r|, s)

    where z_l and z_r are the logits ``own`` and ``other`` that are :func:`compared`, and s is :func:`logit_size` at x.
    Rounding grows with the numbers that are compared and with those that they were computed from, of which s tells also
    where both logits are near 0. Where the ``dtype`` of the model is half precision, it is two of its last places.
    """
    with torch.no_grad():
        size = torch.maximum(own.abs(), other.abs())
        return max(1e-4, 2 * torch.finfo(dtype).eps) * torch.maximum(size, at_x)


def probability_margin(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """The margin loss on the softmax output f_θ."""
    return truncated_margin(F.softmax(logits, dim=1), y, target, kappa)


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """Difference of logits ratio: blind to the scale of the logits as well as to their shift."""
    top = logits.topk(3 if target is None else 4, dim=1).values
    if target is None:
        numerator, scale = margin(logits, y), top[:, 0] - top[:, 2]
    else:
        numerator = (logits.gather(1, y[:, None]) - logits.gather(1, target[:, None])).squeeze(1)
        scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return numerator / scale.clamp_min(torch.finfo(logits.dtype).tiny)


ATTACKER_LOSSES: dict[LossName, AttackerLoss] = {
    "ce": AttackerLoss("ce", ce),
    "margin": AttackerLoss("margin", truncated_margin),
    "logprob": AttackerLoss("logprob", log_probability_margin),
    "prob": AttackerLoss("prob", probability_margin),
    "dlr": AttackerLoss("dlr", dlr, min_classes=3, min_classes_targeted=4),
}


def attacker_loss(loss: LossName | LossFunction) -> AttackerLoss:
    """The loss of that name, or a function of your own with the same arguments."""
    if isinstance(loss, AttackerLoss):
        return loss
    if callable(loss):
        return AttackerLoss(getattr(loss, "__name__", "custom"), _own(loss))
    if loss not in ATTACKER_LOSSES:
        raise ValueError(f"loss: want one of {sorted(ATTACKER_LOSSES)} or a function, got {loss!r}")
    return ATTACKER_LOSSES[loss]


def _own(loss: LossFunction) -> LossFunction:
    """The caller's function; raises unless it takes what an attack passes, and gives one number per sample.

    A mean over the batch would have the right gradient, and yet keep each sample's points by what others did.
    """
    checks.takes("loss", loss, "(logits, y, target, kappa), which the attack minimizes", None, None, None, 0.0)

    def checked(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        value = loss(logits, y, target, kappa)
        if isinstance(logits, Tensor) and (not isinstance(value, Tensor) or value.shape != logits.shape[:1]):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f'loss: want one number per sample, shape ({len(logits)},), got {got}; say reduction="none"'
            )
        return value

    return checked


def classification_loss(logits: Tensor, y: Tensor) -> Tensor:
    """loss(f_θ(x), y) of survey Table 1: cross-entropy, (N,). A trainer minimizes its mean."""
    return F.cross_entropy(logits, y, reduction="none")
