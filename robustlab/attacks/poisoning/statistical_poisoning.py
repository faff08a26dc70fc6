"""The statistical attack on regression: no gradient, no training data, a few queries.

Jagielski, Oprea, Biggio, Liu, Nita-Rotaru and Li, "Manipulating machine learning: Poisoning attacks and countermeasures
for regression learning" (2018), the attack StatP. Optimized poisons lie in corners of the box. So draw features that
look like the data, round them to the nearest corner, and give each the response, 0 or 1, that is further from the
victim's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.poisoning.added_rows import Groups, check_table, mix_in, round_one_hot
from robustlab.data.pairs import Pairs, read_pair
from robustlab.geometry.keyed import Noise
from robustlab.models.modes import evaluating

__all__ = ["statistical_poisoning"]


def statistical_poisoning(
    data: Pairs,
    *,
    model: Callable[[Tensor], Tensor],
    rate: float,
    one_hot: Groups = (),
    seed: int = 0,
) -> Poisoned:
    """Add points of the data's mean and covariance, rounded to corners, with the response that is further off.

        x_c = round(clip(a, 0, 1)),  a ~ N(mean(x), cov(x)),      y_c = 1 if model(x_c) < ½ else 0

    Args:
        data: a pair (x, y): clean features (n, d) and responses (n,), both in [0, 1]. Only mean and covariance of the
            features are used; the responses are but returned.
        model: the victim, from features (p, d) to responses (p,), asked once for each poison.
        rate: number of poisons as a fraction of n, in (0, 1]: round(rate·n) rows are added.
        one_hot: groups of columns of which the largest becomes 1 and the others 0.
        seed: of the draws.

    Returns:
        :class:`~robustlab.attacker.poisoned_data.Poisoned`: the clean rows and the poisons, mixed.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work.

    Source:
        Jagielski et al. (2018), StatP in section IV.
    """
    x, y = read_pair(data)
    p = check_table(x, y, rate, one_hot)
    mean = x.mean(dim=0)
    values, vectors = torch.linalg.eigh((x - mean).mT @ (x - mean) / len(x))
    normal = Noise(seed, torch.arange(p, device=x.device)).normal(0, (x.shape[1],), x.dtype)
    drawn = mean + (normal * values.clamp_min(0).sqrt()) @ vectors.mT
    corners = drawn.clamp(0, 1).round()
    for group in one_hot:  # the draw itself decides: rounded columns of a group may tie
        corners[:, list(group)] = round_one_hot(drawn[:, list(group)], (tuple(range(len(group))),))
    with torch.no_grad(), evaluating(model, device=x.device):
        heard = model(corners)
    if heard.shape != (p,):
        raise ValueError(f"model: want responses (p,), here ({p},), got shape {tuple(heard.shape)}")
    response = (heard < 0.5).to(y.dtype)
    return mix_in(x, y, corners, response, original_y=response, seed=seed)
