"""STRIP: strong intentional perturbation.

Gao, Xu, Wang, Chen, Ranasinghe and Nepal, "STRIP: A defence against trojan attacks on deep neural networks" (2019):
lay other clean images over an input. The label of an honest input then changes from overlay to overlay;
that of an input with a trigger does not, because the trigger shows through. So the entropy of the predictions is low
where there is a trigger:

    H(x) = 1/M Σ_m H_m,   H_m = −Σ_k p_k log₂ p_k,   p = softmax(model(clip(x + overlay_m)))

Different here: the paper fits a normal distribution to the entropies of clean inputs and takes its quantile at the
false rejection rate. Ours is the order statistic that keeps the rate for any distribution, if clean inputs and new
ones are exchangeable.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs, read_inputs
from robustlab.defenses.detection.by_score import passes, threshold_at
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import Probe


def strip(
    model: nn.Module,
    x: Tensor | Pairs,
    clean: Tensor | Pairs,
    *,
    overlays: int = 50,
    laid_over: Tensor | Pairs | None = None,
    rejection_rate: float = 0.01,
    seed: int = 0,
    ids: Tensor | None = None,
    rows: int = 1000,
) -> Detection[dict[str, Tensor]]:
    """Flag the inputs whose prediction does not care what is laid over them.

    Args:
        model: maps inputs in [0, 1] to logits (N, K). It is only looked at.
        x: inputs to be judged, (N, ...), as they come in at test time; or labeled data (of a Dataset the test part),
            whose labels are not looked at.
        clean: clean inputs (M', ...), at least 2, or labeled data (of a Dataset the training part): they serve as
            overlays, unless `laid_over` does, and their own entropies set the threshold.
        overlays: M, how many are laid over each input, drawn with replacement; at least 1.
        laid_over: other clean inputs to draw the overlays from, at least 1; None draws them from `clean`.
        rejection_rate: share of clean inputs that may be flagged, in (0, 1). With fewer than 1/rejection_rate − 1
            clean inputs no threshold keeps it, and nothing is flagged.
        seed: of the draws.
        ids: (N,), the identities of the inputs; None means 0 … N − 1. What is drawn for an input depends on it alone.
        rows: inputs in one forward.

    Returns:
        A Detection with the scores −H(x), in bits. ``details`` has ``"clean_entropies"`` (M',). The
        ``false_alarm_rate`` is the rejection rate: a clean input is flagged no more often, on average over the draw of
        the clean inputs. Given one draw of M' of them the rate itself is random, with the distribution
        Beta(k, M' + 1 − k), k = ⌊rejection_rate·(M' + 1)⌋. Both are exact where the overlays come from `laid_over`,
        with other inputs than those that set the threshold; without it each clean input serves as both, which adds a
        little where they are few.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Gao et al. (2019). Departure: the threshold, see the module.
    """
    x, clean = read_inputs(x, "x", "test"), read_inputs(clean, "clean")
    pool = clean if laid_over is None else read_inputs(laid_over, "laid_over")
    for name, images in (("x", x), ("clean", clean), ("laid_over", pool)):
        checks.at_home(model, images, name)
        checks.images(images, (0.0, 1.0), name, takes=None)
    if clean.shape[1:] != x.shape[1:] or len(clean) < 2:
        raise ValueError(f"clean: want at least 2 inputs of shape {tuple(x.shape[1:])}, got {tuple(clean.shape)}")
    if pool.shape[1:] != x.shape[1:] or not len(pool):
        raise ValueError(f"laid_over: want at least 1 input of shape {tuple(x.shape[1:])}, got {tuple(pool.shape)}")
    checks.at_least("overlays", overlays, 1, integer=True)
    checks.at_least("rows", rows, 1, integer=True)
    checks.positive("rejection_rate", rejection_rate)
    checks.below("rejection_rate", rejection_rate, 1)
    ids = torch.arange(len(x), device=x.device) if ids is None else ids
    own = torch.arange(len(clean), device=x.device)
    with torch.inference_mode(False), torch.no_grad(), Probe(model) as probe:
        drawn = Noise(seed, ids, x.device).integers(0, (overlays,), len(pool))
        entropies = _entropies(probe, x, pool, drawn, rows)
        if laid_over is None:  # a clean input is not laid over itself: the others are 1 … M' − 1 places further on
            others = 1 + Noise(seed, own).integers(1, (overlays,), len(clean) - 1)
            drawn = (own[:, None] + others) % len(clean)
        else:
            drawn = Noise(seed, own).integers(1, (overlays,), len(pool))
        reference = _entropies(probe, clean, pool, drawn, rows)
    scores, threshold = -entropies, threshold_at(rejection_rate, -reference)
    details = {"clean_entropies": reference}
    return Detection(
        scores, passes(scores, threshold), threshold, details, false_alarm_rate=rejection_rate, level="sample"
    )


def _entropies(probe: Probe, x: Tensor, pool: Tensor, drawn: Tensor, rows: int) -> Tensor:
    """The mean entropy (N,) of the predictions on x (N, ...) under the overlays pool[drawn], drawn (N, M); in bits."""
    total = x.new_zeros(len(x))
    for overlay in drawn.unbind(dim=1):
        for first in range(0, len(x), rows):
            part = slice(first, first + rows)
            logits = probe((x[part] + pool[overlay[part]]).clamp(max=1))
            total[part] += torch.special.entr(logits.softmax(dim=1)).sum(dim=1) / math.log(2)
    return total / drawn.shape[1]
