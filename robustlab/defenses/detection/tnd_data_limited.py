"""Data-limited TrojanNet detector (DL-TND).

Wang, Zhang, Liu, Chen, Xiong and Wang, "Practical detection of trojan neural networks: Data-limited and data-free
cases" (2020), the data-limited detector. In a backdoored network a universal perturbation and perturbations made for
one image each find the same shortcut, so that they leave the same logits behind. Both live in the mask model
x̂(m, δ) = (1 − m)·x + m·δ. With one clean image per class, for each candidate class k:

    universal:   minimize over one (m, δ)
        Σ_{y_i ≠ k} max{f_{y_i} − max_{t ≠ y_i} f_t, −κ} + Σ_{y_i = k} max{max_{t ≠ k} f_t − f_k, −κ}  at x̂_i,  + λ‖m‖₁
    per image:   minimize over one (m_i, δ_i) for each image with y_i ≠ k
        max{max_{t ≠ k} f_t − f_k, −κ}  at x̂_i,  + λ‖m_i‖₁

The universal one moves all other images away from their labels, to wherever it likes, while images of class k stay;
the others are told to go to k. The statistic of class k is the 25 % quantile over the images of
cos(f(x̂_i universal), f(x̂_i per image)), and above 0.75 the class is flagged. At the end, as in the authors' code, the
classes with the smallest patches are looked at once more: of all universal perturbations tried for such a class, those
of less than 1.1 times the smallest mask that works for any class, the one with the highest statistic counts.

The ℓ1 term is handled by its proximal step, as in the authors' code. They take it after a step of Adam, which divides
the gradient of every pixel by its own size, so that no mask becomes sparse; here the gradient of a mask is divided by
its largest entry. Then λ lies in (0, 1), in units of that entry. It is bisected, for each perturbation on its own, to
the largest at which the perturbation works.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.few_channels import FewChannels
from robustlab.attacker.losses import margin
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.models.probing import Probe

Goal = Callable[[Tensor], Tensor]  # logits (R, K) → (R,)
QUANTILE = 0.25
SMALL = 1.1  # times the smallest mask of all classes: up to there a class is looked at once more


class Stated(TypedDict, total=False):
    """What a threshold states of clean models; see :class:`robustlab.attacker.results.Detection`."""

    false_alarm_rate: float
    level: Literal["class"]


def tnd_data_limited(
    model: nn.Module,
    data: Pairs,
    *,
    steps: int = 100,
    searches: int = 5,
    lr: float = 0.1,
    kappa: float = 15.0,
    required: float = 0.7,
    threshold: float = 0.75,
    calibration: Tensor | None = None,
) -> Detection[dict[str, Tensor]]:
    """Flag the classes that a universal perturbation and perturbations for single images reach in the same way.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K). It is only looked at.
        data: clean images (N, C, H, W) and their true labels, a Dataset (its training part), a pair (x, y) or a loader,
            whose batches are collected. One per class is enough. All classes are candidates.
        steps: for each value of λ, at least 1.
        searches: values of λ that are tried, at least 1.
        lr: largest change of a pixel of a mask, and change of each pixel of a pattern, in one step.
        kappa: κ ≥ 0, the lead in logits beyond which an image no longer counts in the loss.
        required: share of images that a universal perturbation must move (or keep) to count as working, in (0, 1].
        threshold: for the cosine, in [−1, 1]; the paper's is 0.75.
        calibration: (M,), the highest score of each of M clean models of the same kind, found with the same
            arguments. If given, their maximum takes the place of `threshold`.

    Returns:
        A Detection with the statistic of each class as its score, (K,), −1 for a class of which no other class has an
        image. ``details`` has ``"cosines"`` (K, N), NaN where y_i = k; ``"masks"`` (K, 1, H, W) and ``"patterns"``
        (K, C, H, W) of the smallest universal perturbations that work, ``"success"`` (K,), the share of images each
        moves or keeps, and ``"converged"`` (K,) bool: the universal perturbation works, and so does the share
        `required` of those for single images. A warning names the other classes, about which nothing is known.

        No false-alarm rate is known for 0.75: nothing is known of this statistic on clean models. With a
        `calibration` there is one, ``false_alarm_rate`` = 1/(M + 1): that some class of one more clean
        model of the same kind is flagged is no more likely.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Wang et al. (2020), the data-limited detector, and the authors' code for the last selection. Departures: the
        steps, see the module; λ is bisected for the perturbations of single images too; in the last selection a
        perturbation must work, and the highest statistic counts, where the code takes the last one above the median of
        the first cosines.
    """
    x, y = read_labeled(data)
    checks.images(x, (0.0, 1.0), takes=None)
    checks.pictures(x)
    checks.at_home(model, x, "data")
    for name, value in (("steps", steps), ("searches", searches)):
        checks.at_least(name, value, 1, integer=True)
    for name, number in (("lr", lr), ("required", required)):
        checks.positive(name, number)
    checks.at_least("kappa", kappa, 0.0)
    checks.at_least("threshold", threshold, -1.0)
    threshold, stated = clean_threshold(threshold, calibration)
    with torch.inference_mode(False), torch.enable_grad(), Probe(model) as probe:
        classes = probe(x[:1]).shape[1]
        checks.in_classes("y", y, classes)
        image = torch.arange(len(x), device=x.device).repeat(classes)  # one row for each candidate and image
        candidate = torch.arange(classes, device=x.device).repeat_interleave(len(x))
        rows, label, stays = x[image], y[image], y[image] == candidate

        def universal(logits: Tensor) -> Tensor:
            lead = margin(logits, label)
            return torch.where(stays, -lead, lead)

        def single(logits: Tensor) -> Tensor:
            return -margin(logits, candidate)

        settings = (steps, searches, lr, kappa, required)
        together = _sparsest(probe, rows, candidate, universal, *settings)
        alone = _sparsest(probe, rows, torch.arange(len(rows), device=x.device), single, *settings)
    reached = (single(alone.logits) < 0).to(x).masked_fill(stays, torch.nan).view(classes, -1).nanmean(dim=1)
    success = (universal(together.logits) < 0).to(x).view(classes, -1).mean(dim=1)
    converged = (success >= required) & ~(reached < required)
    if not bool(converged.all()):
        without = (~converged).nonzero().flatten().tolist()
        checks.warn(
            f"tnd_data_limited: no perturbations that work were found for classes {without}; their scores are no "
            "verdict, take more steps"
        )
    cosines = torch.stack(
        [torch.cosine_similarity(z, alone.logits, dim=1).masked_fill(stays, torch.nan).view(classes, -1)
         for z in (together.logits, *together.tried_logits)]
    )  # fmt: skip
    tried = cosines.nanquantile(QUANTILE, dim=2).nan_to_num(nan=-1.0)  # (1 + searches, K)
    again = together.tried_sizes < SMALL * together.tried_sizes.min()  # ∞ where a perturbation does not work
    tried[1:] = tried[1:].masked_fill(~again, -torch.inf)
    scores, chosen = tried.max(dim=0)
    cosines = cosines[chosen, torch.arange(classes, device=x.device)]
    details = {
        "cosines": cosines, "masks": together.masks, "patterns": together.patterns, "success": success,
        "converged": converged,
    }  # fmt: skip
    return Detection(scores, scores > threshold, threshold, details, **stated)


def clean_threshold(threshold: float, calibration: Tensor | None) -> tuple[float, Stated]:
    """The threshold that clean models set, and the rate at which another one passes it.

    Of M + 1 exchangeable numbers each is the highest with probability 1/(M + 1), or less where some are equal.
    """
    if calibration is None:
        return threshold, Stated()
    highest = torch.as_tensor(calibration).flatten()
    if not len(highest) or not bool(highest.isfinite().all()):
        raise ValueError(f"calibration: want the highest scores of at least one clean model, got {calibration}")
    return float(highest.max()), Stated(false_alarm_rate=1 / (len(highest) + 1), level="class")


@dataclass(frozen=True)
class _Found:
    """The smallest perturbations that work, and what else was tried.

    Attributes:
        masks, patterns: of P perturbations.
        logits: (R, K), of the rows under them.
        tried_sizes: (searches, P), ‖m‖₁ for each λ, ∞ where it does not work.
        tried_logits: one (R, K) for each λ.
    """

    masks: Tensor
    patterns: Tensor
    logits: Tensor
    tried_sizes: Tensor
    tried_logits: list[Tensor]


def _sparsest(
    probe: Probe, rows: Tensor, owner: Tensor, goal: Goal, steps: int, searches: int, lr: float, kappa: float,
    required: float,
) -> _Found:  # fmt: skip
    """The perturbations with the smallest mask found that work; the first ones where none does.

    Row r is moved by perturbation owner[r]; goal(logits) (R,) is negative where a row is where it should be.
    """
    count = int(owner.max()) + 1
    shape = (count, 1, 1, 1)
    share = torch.zeros(count, device=rows.device, dtype=rows.dtype).index_add(0, owner, rows.new_ones(len(rows)))
    low, high = rows.new_zeros(count), rows.new_ones(count)
    best_size = rows.new_full((count,), torch.inf)
    best_mask = best_pattern = best_logits = rows.new_empty(0)
    sizes, each = [], []
    for search in range(searches):
        weight = (low + high) / 2 if search else rows.new_full((count,), 0.1)
        mask, pattern, logits = _descend(probe, rows, owner, goal, weight, steps, lr, kappa)
        won = torch.zeros_like(share).index_add(0, owner, (goal(logits) < 0).to(rows)) / share
        works, size = won >= required, mask.sum(dim=(1, 2, 3))
        sizes.append(size.masked_fill(~works, torch.inf))
        each.append(logits)
        better = (works & (size < best_size)) | (best_size.isinf() & (works | (search == 0)))
        best_size = torch.where(better & works, size, best_size)
        if not search:
            best_mask, best_pattern, best_logits = mask, pattern, logits
        best_mask = torch.where(better.view(shape), mask, best_mask)
        best_pattern = torch.where(better.view(shape), pattern, best_pattern)
        best_logits = torch.where(better[owner][:, None], logits, best_logits)
        low, high = torch.where(works, weight, low), torch.where(works, high, weight)
    return _Found(best_mask, best_pattern, best_logits, torch.stack(sizes), each)


def _descend(
    probe: Probe, rows: Tensor, owner: Tensor, goal: Goal, weight: Tensor, steps: int, lr: float, kappa: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Proximal descent on masks (from 0), sign descent on patterns (from gray)."""
    mask = rows.new_zeros(len(weight), 1, *rows.shape[2:])
    pattern = rows.new_full((len(weight), *rows.shape[1:]), 0.5)
    shrink = lr * weight[:, None, None, None]
    for _ in range(steps):
        mask, pattern = mask.requires_grad_(), pattern.requires_grad_()
        with FewChannels():
            logits = probe((1 - mask[owner]) * rows + mask[owner] * pattern[owner])
        loss = goal(logits).clamp_min(-kappa).sum()
        of_mask, of_pattern = torch.autograd.grad(loss, (mask, pattern))
        largest = of_mask.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        mask = (mask.detach() - lr * of_mask / largest - shrink).clamp(0, 1)
        pattern = (pattern.detach() - lr * of_pattern.sign()).clamp(0, 1)
    with torch.no_grad():
        logits = probe((1 - mask[owner]) * rows + mask[owner] * pattern[owner])
    return mask, pattern, logits
