"""Activation clustering.

Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy and Srivastava, "Detecting backdoor attacks on deep neural
networks by activation clustering" (2018), algorithm 1: in a poisoned class two kinds of samples bear one label, and
the last hidden layer holds them for different reasons. So, class by class, reduce the activations to a few
independent components, split them in two by 2-means, and suspect the smaller part where the two lie well apart
(silhouette) and one is small.

Different here: the paper reduces by independent component analysis, ours is whitened principal components. The former
is a rotation of the latter, and rotations do not change what k-means does, so the clusters are the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import Layer, count_outputs, read_features


def activation_clustering(
    model: nn.Module,
    data: Pairs,
    *,
    components: int = 10,
    largest: float = 0.35,
    silhouette: float = 0.1,
    restarts: int = 10,
    layer: Layer | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> Detection[dict[str, Tensor]]:
    """Split each class of a training set in two, and suspect small clusters that lie apart from the rest.

        flagged: the members of a class's smaller cluster C, where |C| ≤ largest·n and the mean silhouette > s₀

    Args:
        model: trained on the data. It is only looked at.
        data: the training set as it was trained on: a Dataset, whose training part is used, a pair (x, y) of inputs
            (N, ...) and labels (N,), or a loader, whose batches are collected.
        components: to which the activations are reduced, at least 1; fewer where the data have fewer.
        largest: the largest part of its class that a suspicious cluster may be, in (0, 1/2].
        silhouette: s₀ in [−1, 1], which the mean silhouette of the two clusters must exceed.
        restarts: runs of 2-means from random pairs of samples, of which the tightest clusters are kept; at least 1.
        layer: whose output are the activations, a module of the model or its name. None takes the input of the linear
            layer that gives the logits; where that is not clear, the layer must be named.
        seed: of the restarts.
        batch_size: rows per forward pass.

    Returns:
        A Detection. A sample's score is its class's mean silhouette if it is in a smaller cluster of a fitting size,
        and −1 otherwise; the threshold is s₀. ``details`` has ``"cluster"`` (N,), True in the smaller cluster, and for
        each class ``"share"`` of the smaller one and ``"silhouette"``, (K,). A class of fewer than three samples, or
        whose activations are equal up to rounding, is not split: nothing in it is flagged, and the two are NaN.
        ``layer`` says which activations were taken.

        ``false_alarm_rate`` is `largest`: by construction no more than this share of a clean training set
        is flagged. How often a clean *class* is suspected cannot be stated: both limits are rules of thumb, and the
        silhouette of a clean class depends on how its own features fall into groups.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Chen et al. (2018), algorithm 1, and the criteria of relative size and silhouette; the two defaults
        are those of the authors' public code.
    """
    for name, value in (("components", components), ("restarts", restarts)):
        checks.at_least(name, value, 1, integer=True)
    checks.positive("largest", largest)
    if largest > 0.5:
        raise ValueError(f"largest: want at most 0.5, got {largest}")
    checks.at_least("silhouette", silhouette, -1.0)
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    checks.unit_pixels("data", x)
    features, taken = read_features(model, x, batch_size, layer)
    checks.in_classes("y", y, count_outputs(model, x))
    dtype, features = features.dtype, features.double()
    classes = int(y.max()) + 1
    scores, cluster = features.new_full((len(x),), -1.0), torch.zeros_like(y, dtype=torch.bool)
    share, apart = features.new_full((2, classes), torch.nan)
    for c in y.unique().tolist():
        rows = (y == c).nonzero().flatten()
        if len(rows) < 3 or not spread_out(features[rows], torch.finfo(dtype).eps):
            continue  # nothing to split
        reduced = whitened(features[rows], components, torch.finfo(dtype).eps)
        small = two_means(reduced, restarts, seed)
        cluster[rows] = small
        share[c], apart[c] = small.double().mean(), mean_silhouette(reduced, small)
        if share[c] <= largest:
            scores[rows[small]] = apart[c]
    details = {"cluster": cluster, "share": share, "silhouette": apart}
    return Detection(
        scores, scores > silhouette, silhouette, details, false_alarm_rate=largest, level="sample", layer=taken
    )


def spread_out(rows: Tensor, rounding: float) -> bool:
    """Whether rows (n, d) differ by more than rounding: of equal inputs, too, the features depend on their batch."""
    return bool((rows - rows.mean(dim=0)).norm() > 32 * rounding * rows.norm())


def whitened(rows: Tensor, components: int, rounding: float | None = None) -> Tensor:
    """Principal components of rows (n, d), each with variance 1, as many as asked for and as exceed rounding.

    Those of rounding alone, as of a layer behind a narrower one, would drown the others once they have variance 1.
    Rounding is relative, by default that of the rows' own dtype.
    """
    rounding = torch.finfo(rows.dtype).eps if rounding is None else rounding
    left, values, _ = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    there = int((values > 32 * rounding * rows.norm()).sum())
    return left[:, : max(1, min(components, there))] * math.sqrt(len(rows))


def two_means(rows: Tensor, restarts: int, seed: int, rounds: int = 100) -> Tensor:
    """Lloyd's algorithm with two centers, all restarts at once; True (n,) marks the smaller cluster."""
    noise = Noise(seed, torch.arange(restarts, device=rows.device))
    centers = rows[noise.permutation(0, len(rows))[:, :2]]  # (restarts, 2, d)
    for _ in range(rounds):
        second = torch.cdist(rows, centers).argmin(dim=2) == 1  # (restarts, n)
        member = torch.stack([~second, second], dim=1).to(rows)
        count = member.sum(dim=2, keepdim=True)
        moved = torch.where(count > 0, member @ rows / count.clamp_min(1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    else:
        checks.warn(f"2-means has not come to rest after {rounds} rounds: the clusters are not settled")
    within = torch.cdist(rows, centers).amin(dim=2).square().sum(dim=1)
    best = torch.cdist(rows, centers[within.argmin()]).argmin(dim=1) == 1
    return best if 2 * int(best.sum()) <= len(rows) else ~best


def mean_silhouette(rows: Tensor, second: Tensor) -> Tensor:
    """Mean over the rows of (b − a) / max(a, b), by Rousseeuw (1987); 0 for a cluster of one.

    a is the mean distance to the rest of a row's own cluster, b that to the other one. Takes n² numbers of memory.
    """
    member = torch.stack([~second, second], dim=1).to(rows)  # (n, 2)
    count = member.sum(dim=0)
    if not bool(count.all()):
        return rows.new_zeros(())
    total = torch.cdist(rows, rows) @ member  # sums of distances to either cluster
    own, other = second.long()[:, None], 1 - second.long()[:, None]
    a = (total.gather(1, own) / (count[own] - 1).clamp_min(1)).flatten()
    b = (total.gather(1, other) / count[other]).flatten()
    value = (b - a) / torch.maximum(a, b).clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.where(count[own].flatten() > 1, value, 0.0).mean()
