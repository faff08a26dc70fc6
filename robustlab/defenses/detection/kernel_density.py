"""Kernel density in the last hidden layer.

Feinman, Curtin, Shintre and Gardner, "Detecting adversarial samples from artifacts" (2017), section 3.1: an input is
strange if few training samples of the class t that it is taken for are near it in the features φ,

    score(x) = −log( 1/|X_t| Σ_{x_i ∈ X_t} exp(−‖φ(x) − φ(x_i)‖₂² / (2h²)) ),   t = argmax_k z_k(x)

Different here: their second feature, the variance under dropout, is left out, since our nets have none; so is their
logistic regression of both on adversarial examples. The bandwidth h maximizes the likelihood of the training features,
each told by the others of its class, as the paper chooses it, over a grid of our own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs
from robustlab.defenses.detection.by_score import Scored, judged, read_x_and_clean, training_features
from robustlab.models.probing import Layer, Probe

__all__ = ["Density", "kernel_density"]


class Density(nn.Module):
    """−log of the kernel density among the training samples of the predicted class: (N, ...) to (N,).

    It is differentiable where the predicted class does not change. A class without training samples has density 0.

    Args:
        model: logits (N, K).
        layer: of the features; None is the penultimate one.
        features: (M, d), of the training samples.
        y: (M,), their labels.
        bandwidth: h > 0.
    """

    known: Tensor
    y: Tensor

    def __init__(self, model: nn.Module, layer: Layer | None, features: Tensor, y: Tensor, bandwidth: float) -> None:
        super().__init__()
        self.model, self.layer, self.bandwidth = model, layer, bandwidth
        self.register_buffer("known", features)
        self.register_buffer("y", y)

    def forward(self, x: Tensor) -> Tensor:
        with Probe(self.model, self.layer) as probe:
            logits, features = probe.features(x)
        exponent = -_squared_distances(features, self.known) / (2 * self.bandwidth**2)
        own = self.y == logits.argmax(dim=1)[:, None]
        count = own.sum(dim=1).clamp_min(1).to(exponent.dtype)
        least = math.log(torch.finfo(exponent.dtype).tiny)
        density = exponent.masked_fill(~own, -torch.inf).logsumexp(dim=1)
        return count.log() - torch.where(own.any(dim=1), density, exponent.new_tensor(least))


def kernel_density(
    model: nn.Module,
    x: Tensor | Pairs,
    data: Pairs,
    clean: Tensor | Pairs,
    *,
    bandwidth: float | None = None,
    layer: Layer | None = None,
    rejection_rate: float = 0.05,
    batch_size: int = 500,
) -> Detection[Scored]:
    """Flag the inputs near whose features there are few training samples of the class they are taken for.

    Args:
        model: logits (N, K). It is only looked at.
        x: inputs to be judged, (N, ...), or labeled data (of a Dataset the test part), whose labels are not looked at.
        data: the labeled training data, at least two of a class.
        clean: clean inputs that set the threshold, or labeled data; they should be none of ``data``.
        bandwidth: h > 0 in units of the features; None chooses it.
        layer: whose output are the features; None takes the input of the linear layer that gives the logits.
        rejection_rate: share of clean inputs that may be flagged, in (0, 1), default 0.05. Fewer than
            1/rejection_rate − 1 clean inputs set no threshold, and nothing is flagged.
        batch_size: inputs in one forward.

    Returns:
        A Detection; ``details.score`` is the score as a module. The ``false_alarm_rate`` is the rejection rate.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Feinman et al. (2017), section 3.1. Departures: see the module.
    """
    x, clean = read_x_and_clean(model, x, clean, rejection_rate, batch_size)
    if bandwidth is not None:
        checks.positive("bandwidth", bandwidth)
    features, y, taken = training_features(model, data, batch_size, layer)
    h = best_bandwidth(features, y) if bandwidth is None else float(bandwidth)
    return judged(Density(model, layer, features, y, h), x, clean, rejection_rate, batch_size, taken)


def best_bandwidth(features: Tensor, y: Tensor, most: int = 1000) -> float:
    """The bandwidth of the highest likelihood of features (M, d), each told by the others of its class.

    The grid is 2^(j/2) times the median distance to the nearest one of the class, j = −4 … 8. Of each class at most
    ``most`` samples are looked at, the first ones.

    Raises:
        ValueError: if no class has two samples, or those of all classes are equal.
    """
    squared = []
    for c in y.unique().tolist():
        rows = features[y == c][:most].double()
        if len(rows) > 1:
            squared.append(_squared_distances(rows, rows).fill_diagonal_(torch.inf))
    nearest = torch.cat([part.amin(dim=1) for part in squared]) if squared else features.new_zeros(0)
    if not len(nearest) or not float(nearest.median()) > 0:
        raise ValueError("data: want at least two different samples of a class, to choose a bandwidth, got fewer")
    dimensions = features.shape[1]
    grid = [float(nearest.median()) ** 0.5 * 2 ** (j / 2) for j in range(-4, 9)]

    def likelihood(h: float) -> float:
        told = [(-part / (2 * h * h)).logsumexp(dim=1) - math.log(len(part) - 1) for part in squared]
        return float(torch.cat(told).mean()) - dimensions * math.log(h)

    return max(grid, key=likelihood)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M). By differences, since the product loses the digits of small distances."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
