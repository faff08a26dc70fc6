"""Spectral signatures.

Tran, Li and Madry, "Spectral signatures in backdoor attacks" (2018), algorithm 1. Where a class holds poisoned
samples, its features are a mixture of two groups. If the two means are far enough apart, the direction in which the
class varies most separates them:

    τ_i = ⟨R(x_i) − R̄, v⟩²,   v the top right singular vector of the rows R(x_i) − R̄,   R̄ their mean

and the 1.5·ε·n samples of the highest τ are removed, class by class, before a new model is trained from scratch on
the rest. The centering is not a detail: without it, v points at the class's mean, and poisons whose features lean
away from it get the *lowest* scores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.models.probing import Layer, count_outputs, read_features


def spectral_signatures(
    model: nn.Module, data: Pairs, *, rate: float, layer: Layer | None = None, batch_size: int = 500
) -> Detection[dict[str, Tensor]]:
    """Find the poisoned samples of a training set in the features of the model that was trained on it.

        τ_i = ⟨R(x_i) − R̄_c, v_c⟩²,   c = y_i;   flagged are the ⌈1.5·rate·n_c⌉ highest of each class c

    Args:
        model: trained on the data, with logits (N, K). It is only looked at.
        data: the training set as it was trained on: a Dataset, whose training part is used, a pair (x, y) of inputs
            (N, ...) and labels (N,), or a loader, whose batches are collected.
        rate: ε, an upper bound on the poisoned fraction of a class, in (0, 2/3). A class is a class of y: 200 poisons
            among the 600 samples that bear the target's label are a rate of 1/3, whatever part of all data they are.
        layer: whose output is R, a module of the model or its name. None takes the input of the linear layer that
            gives the logits; where that is not clear, the layer must be named.
        batch_size: rows per forward pass.

    Returns:
        A Detection whose score for a sample is τ over the highest τ that its class keeps, so that the threshold is 1
        for all classes. ``details`` has ``"tau"`` (N,) itself, and ``"spread"`` (K,), the standard deviation of each
        class along v_c (NaN for a class without samples). ``layer`` says what was taken for R. To repair, train a
        fresh model on ``x[~flagged], y[~flagged]``.

        The method does not ask whether there is poison at all: in a clean training set it flags the share
        ``false_alarm_rate`` of the samples, Σ_c ⌈1.5·rate·n_c⌉ / N, by construction (fewer where scores
        are equal, and never a whole class).

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Tran et al. (2018), algorithm 1. Their bound is a number of samples, here it is a fraction of each class, so
        that classes of different sizes lose the same part.
    """
    checks.positive("rate", rate)
    if rate >= 2 / 3:
        raise ValueError(f"rate: want below 2/3, so that 1.5·rate leaves something, got {rate}")
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    checks.unit_pixels("data", x)
    features, taken = read_features(model, x, batch_size, layer)
    checks.in_classes("y", y, count_outputs(model, x))
    tau = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    scores = torch.zeros_like(tau)
    spread = tau.new_full((int(y.max()) + 1,), torch.nan)
    removed = 0
    for c in y.unique().tolist():
        rows = (y == c).nonzero().flatten()
        tau[rows], spread[c] = spectral_scores(features[rows])
        remove = min(math.ceil(1.5 * rate * len(rows) - 1e-9), len(rows) - 1)
        removed += remove
        kept = tau[rows].sort(descending=True).values[remove]
        scores[rows] = tau[rows] / kept.clamp_min(torch.finfo(tau.dtype).tiny)
    details = {"tau": tau, "spread": spread}
    stated = removed / len(y)
    return Detection(scores, scores > 1, 1.0, details, false_alarm_rate=stated, level="sample", layer=taken)


def spectral_scores(features: Tensor) -> tuple[Tensor, Tensor]:
    """The scores τ (n,) of the features (n, d) of one class, and the standard deviation along v; both float64."""
    centered = features.double() - features.double().mean(dim=0)
    _, values, directions = torch.linalg.svd(centered, full_matrices=False)
    return (centered @ directions[0]).square(), values[0] / math.sqrt(len(features))
