"""Paraphrases that fool a model, as further training data: the attack's use for augmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.victim import Model
from robustlab.attacks.discrete.paraphrase import paraphrase
from robustlab.data.pairs import Pairs, read_pair
from robustlab.geometry.keyed import Noise

__all__ = ["augmented_by_paraphrases"]


def augmented_by_paraphrases(
    victim: Model, data: Pairs, *, neighbors: Tensor, share: float = 0.2, seed: int = 0, **arguments: Any
) -> tuple[Tensor, Tensor]:
    """A training set and, behind it, paraphrases of a part of it that fool a model, with their true labels.

        D' = D ∪ {(x', y) : (x, y) in a random part of D, x' = paraphrase(model, x, y), model(x') ≠ y}

    To train on it from scratch is the paper's use of the attack for augmentation (section 6).

    Args:
        victim: who is to be fooled, as of :func:`robustlab.attacks.paraphrase`; what it gets wrong anyway is not
            repeated.
        data: a Dataset, whose training part is used, a pair (x, y), or a loader.
        neighbors, arguments: of :func:`robustlab.attacks.paraphrase`.
        share: of the samples that are paraphrased, in (0, 1]; default 0.2.
        seed: of the draw.

    Returns:
        A pair (x, y) for :func:`robustlab.training.fit.fit`.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Lei et al. (2019), section 6.
    """
    checks.positive("share", share)
    checks.at_most("share", share, 1.0)
    x, y = read_pair(data)
    drawn = Noise(seed, torch.arange(len(x))).uniform(0, (), torch.float64)
    rows = drawn.argsort(stable=True)[: max(1, round(share * len(x)))].to(x.device)
    result = paraphrase(victim, x[rows], y[rows], neighbors=neighbors, seed=seed, ids=rows, **arguments)
    new = result.success & (result.x_adv != x[rows]).any(dim=1)
    return torch.cat([x, result.x_adv[new]]), torch.cat([y, y[rows][new]])
