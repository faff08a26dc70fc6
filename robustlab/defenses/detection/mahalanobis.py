"""Mahalanobis distance to the nearest class.

Lee, Lee, Lee and Shin, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks"
(2018), section 2: where the features φ of each class are Gaussian with one covariance for all, as a softmax classifier
takes them to be, an input is as strange as it is far from the nearest class's mean,

    score(x) = min_c (φ(x) − μ_c)ᵀ Σ⁻¹ (φ(x) − μ_c),   Σ = 1/N Σ_i (φ(x_i) − μ_{y_i})(φ(x_i) − μ_{y_i})ᵀ

Different here: one layer. The paper adds up several, weighted by a logistic regression on the very adversarial examples
that are to be found, and moves the input by a gradient step before it looks; neither is known before the attack is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs
from robustlab.defenses.detection.by_score import Scored, judged, read_x_and_clean, training_features
from robustlab.models.probing import Layer, Probe

__all__ = ["NearestClass", "mahalanobis"]


class NearestClass(nn.Module):
    """The squared Mahalanobis distance to the nearest class: inputs (N, ...) to (N,). It is differentiable.

    Args:
        model: logits (N, K).
        layer: of the features; None is the penultimate one.
        means: (C, d), of the classes.
        whitening: (d, r), a matrix W with W·Wᵀ = Σ⁻¹.
    """

    means: Tensor
    whitening: Tensor

    def __init__(self, model: nn.Module, layer: Layer | None, means: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.register_buffer("means", means)
        self.register_buffer("whitening", whitening)

    def forward(self, x: Tensor) -> Tensor:
        with Probe(self.model, self.layer) as probe:
            features = probe.features(x)[1].to(self.means.dtype)
        apart = features[:, None] - self.means
        return (apart @ self.whitening).square().sum(dim=2).amin(dim=1).to(x.dtype)


def mahalanobis(
    model: nn.Module,
    x: Tensor | Pairs,
    data: Pairs,
    clean: Tensor | Pairs,
    *,
    layer: Layer | None = None,
    rejection_rate: float = 0.05,
    batch_size: int = 500,
) -> Detection[Scored]:
    """Flag the inputs whose features are far from every class.

    Args:
        model: logits (N, K). It is only looked at.
        x: inputs to be judged, (N, ...), or labeled data (of a Dataset the test part), whose labels are not looked at.
        data: the labeled training data, from which means and covariance are computed.
        clean: clean inputs that set the threshold, or labeled data; they should be none of ``data``.
        layer: whose output are the features; None takes the input of the linear layer that gives the logits.
        rejection_rate: share of clean inputs that may be flagged, in (0, 1), default 0.05. Fewer than
            1/rejection_rate − 1 clean inputs set no threshold, and nothing is flagged.
        batch_size: inputs in one forward.

    Returns:
        A Detection; ``details.score`` is the score as a module. The ``false_alarm_rate`` is the rejection rate.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Lee et al. (2018), equations (1) and (2). Departures: see the module. Directions in which the training features
        do not vary, or by no more than their dtype's rounding, count for nothing (the pseudo-inverse of Σ).
    """
    x, clean = read_x_and_clean(model, x, clean, rejection_rate, batch_size)
    features, y, taken = training_features(model, data, batch_size, layer)
    means, whitening = gaussian_classes(features, y)
    if not whitening.shape[1]:
        raise ValueError("data: want a class of samples whose features differ, to tell far from near, got none")
    return judged(NearestClass(model, layer, means, whitening), x, clean, rejection_rate, batch_size, taken)


def gaussian_classes(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The means (C, d) of the classes in y, and W (d, r) with W·Wᵀ the pseudo-inverse of their covariance; float64."""
    rounding = 32 * torch.finfo(features.dtype).eps
    features, classes = features.double(), y.unique()
    means = torch.stack([features[y == c].mean(dim=0) for c in classes.tolist()])
    apart = features - means[torch.searchsorted(classes, y)]
    values, directions = torch.linalg.eigh(apart.mT @ apart / len(apart))
    product = values.amax() * len(values) * torch.finfo(values.dtype).eps * 10  # rounding of Σ, and of the features
    kept = values > torch.maximum(product, (rounding * features.norm()) ** 2 / len(features))
    return means, directions[:, kept] * values[kept].rsqrt()
