"""Boxes: how much two overlap, which of many are kept, and how good a detector's are.

A box is (left, top, right, bottom) in pixels. A detector says a set of candidates with a score each: a pair (boxes
(N, J, 4), scores (N, J)), or as torchvision's detectors do, a list of one dict per image with ``"boxes"`` and
``"scores"``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.models.modes import evaluating


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (…, J, M) of boxes (…, J, 4) and (…, M, 4), in [0, 1]; 0 where both are empty.

    IoU(a, b) = |a ∩ b| / |a ∪ b|
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    both = sides.clamp_min(0).prod(dim=-1)
    union = area(a) + area(b) - both
    return both / union.clamp_min(torch.finfo(both.dtype).tiny)


def area(boxes: Tensor) -> Tensor:
    """(…): the area of boxes (…, 4); 0 where an end is before its beginning."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(dim=-1)


def present(boxes: Tensor) -> Tensor:
    """(…): which of the boxes (…, 4) are of something; zeros fill up where there are fewer."""
    return boxes[..., 2] > boxes[..., 0]


def candidates(answer: Any) -> tuple[Tensor, Tensor]:
    """What a detector said, as boxes (N, J, 4) and scores (N, J).

    Lists of one dict per image, as torchvision's detectors return, are filled up with empty boxes of score 0.

    Raises:
        TypeError, ValueError: for another answer; the message names ``model``.
    """
    wish = "model: want boxes (N, J, 4) with scores (N, J), or a list of dicts with 'boxes' and 'scores'"
    if (
        isinstance(answer, list)
        and answer
        and all(isinstance(one, dict) and {"boxes", "scores"} <= set(one) for one in answer)
    ):
        most = max(len(one["scores"]) for one in answer)
        rows = [torch.cat([one["boxes"], one["boxes"].new_zeros(most - len(one["boxes"]), 4)]) for one in answer]
        told = [torch.cat([one["scores"], one["scores"].new_zeros(most - len(one["scores"]))]) for one in answer]
        answer = torch.stack(rows), torch.stack(told)
    if not isinstance(answer, tuple | list) or len(answer) != 2 or not all(isinstance(part, Tensor) for part in answer):
        raise TypeError(f"{wish}, got {type(answer).__name__}")
    boxes, scores = answer
    if boxes.dim() != 3 or boxes.shape[2] != 4 or scores.shape != boxes.shape[:2]:
        raise ValueError(f"{wish}, got shapes {tuple(boxes.shape)} and {tuple(scores.shape)}")
    return boxes, scores


def kept(boxes: Tensor, scores: Tensor, *, threshold: float = 0.5, most: float = 0.45) -> Tensor:
    """Which candidates are told, (N, J) bool: non-maximum suppression.

    From the highest score down, a candidate above the threshold is kept unless it overlaps one that was kept before by
    more than ``most``. Of equal scores the first goes first.

    Args:
        boxes: (N, J, 4).
        scores: (N, J).
        threshold: a candidate of this score or less is not told.
        most: IoU in [0, 1].
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    here = boxes.gather(1, order[..., None].expand_as(boxes))
    clash = overlap(here, here) > most
    keep = scores.gather(1, order) > threshold
    for j in range(boxes.shape[1]):  # all images at once, candidate by candidate
        later = clash[:, j] & keep[:, j, None]
        later[:, : j + 1] = False
        keep &= ~later
    return torch.zeros_like(keep).scatter(1, order, keep)


def detected(answer: Any, boxes: Tensor, *, threshold: float = 0.5, iou: float = 0.3) -> Tensor:
    """Whether a detector finds an object at boxes (N, 4), one per image: (N,) bool.

    It does if a candidate with a score above the threshold overlaps the box by more than ``iou``; NaN finds nothing.
    """
    said, scores = candidates(answer)
    near = overlap(said, boxes[:, None].to(said))[..., 0]
    return ((scores > threshold) & (near > iou)).any(dim=1)


def average_precision(
    found: tuple[Tensor, Tensor], truth: Tensor, *, iou: float = 0.5, overlapping: float = 0.45
) -> float:
    """How good a detector's boxes are: the area under its curve of precision over recall.

        AP = Σ_k (R_k − R_{k−1})·max_{k' ≥ k} P_{k'}

    Candidates survive non-maximum suppression and are gone through from the highest score down, over all images. One is
    a hit if of the boxes of its image that nobody found yet the one it overlaps most is overlapped by ``iou`` or more;
    else it is a false alarm. Equal scores are gone through in the order of images.

    Args:
        found: boxes (N, J, 4) and scores (N, J) in [0, 1].
        truth: (N, P, 4), filled up with zeros.
        iou: the least IoU of a hit, in (0, 1].
        overlapping: for :func:`kept`.

    Returns:
        In [0, 1].

    Raises:
        ValueError, TypeError: for shapes that do not fit, or no true box at all.

    Source:
        Everingham et al., "The Pascal visual object classes challenge" (2010), section 4.2, with the area under the
        whole curve instead of eleven places on it, as from 2010 on.
    """
    boxes, scores = candidates(found)
    checks.positive("iou", iou)
    checks.at_most("iou", iou, 1.0)
    if truth.dim() != 3 or truth.shape[::2] != (len(boxes), 4):
        raise ValueError(f"truth: want shape ({len(boxes)}, P, 4), got {tuple(truth.shape)}")
    there = present(truth)
    total = int(there.sum())
    if not total:
        raise ValueError("truth: want at least one box, got none")
    keep = kept(boxes, scores, threshold=0.0, most=overlapping)
    order = scores.masked_fill(~keep, -1).argsort(dim=1, descending=True, stable=True)
    near = overlap(boxes, truth).gather(1, order[..., None].expand(-1, -1, truth.shape[1]))
    free, hits = there.clone(), []
    for j in range(boxes.shape[1]):  # all images at once, candidate by candidate
        best, which = near[:, j].masked_fill(~free, -1).max(dim=1)
        hit = (best >= iou) & keep.gather(1, order[:, j : j + 1])[:, 0]
        free[hit.nonzero().flatten(), which[hit]] = False
        hits.append(hit)
    hit = torch.zeros_like(keep).scatter(1, order, torch.stack(hits, dim=1))
    ranked = hit[keep][scores[keep].argsort(descending=True, stable=True)].double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1, device=ranked.device)
    envelope = precision.flip(0).cummax(0).values.flip(0) if len(ranked) else precision
    return float((envelope * ranked).sum() / total)


def detections(model: nn.Module, images: Tensor, *, rows: int = 250) -> tuple[Tensor, Tensor]:
    """What a detector says of images (N, C, H, W), so many in one forward: boxes (N, J, 4) and scores (N, J)."""
    with torch.no_grad(), evaluating(model):
        parts = [candidates(model(part)) for part in images.split(rows)]
    return torch.cat([boxes for boxes, _ in parts]), torch.cat([scores for _, scores in parts])
