"""Adding mislabeled samples, or deleting good ones.

Goldblum, Tsipras, Xie, Chen, Schwarzschild, Song, Madry, Li and Goldstein, "Data security for machine learning: Data
poisoning, backdoor attacks, and defenses" (2020), on what an attacker with access to a data collection may do. Who can
only contribute adds; who can only suppress deletes. Neither touches the samples that stay.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from robustlab import checks
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacks.poisoning.added_rows import mix_in, rate_to_count
from robustlab.attacks.poisoning.label_flipping import count_classes, label_flipping
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise


def add_delete(
    data: Pairs,
    *,
    rate: float,
    operation: Literal["add", "delete"] = "add",
    from_class: int | None = None,
    classes: int | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
) -> Poisoned:
    """Add round(rate·n) mislabeled copies of training samples, or delete round(rate·n) of the samples.

        add:     D ∪ {(x_i, k_i) : i ∈ I},   |I| = round(rate·n),  k_i ≠ y_i
        delete:  D \\ {(x_i, y_i) : i ∈ I}

    Args:
        data: a Dataset, whose training part is used, or a pair (x, y).
        rate: number of samples added or deleted, as a fraction of N, in (0, 1]; below 1 for deletion.
        operation: ``"add"`` or ``"delete"``.
        from_class: I is drawn from this class alone; None draws from all. Deletion then starves one class.
        classes: K; None takes the largest label + 1 (or the Dataset's classes).
        model: a surrogate, for ``"add"``: copies and labels are chosen as by
            :func:`~robustlab.attacks.poisoning.label_flipping.label_flipping`; None draws them.
        seed: of the draws, and of the order in which added samples are mixed in.

    Returns:
        :class:`~robustlab.attacker.poisoned_data.Poisoned`. Deleted samples are missing from ``row``, and nothing is
        then marked as
        poison: what is left is clean.

    Raises:
        ValueError, TypeError: for an argument out of its range, before any work; ValueError where ``from_class`` has
            too few samples.

    Source:
        Goldblum et al. (2020).
    """
    x, y = read_labeled(data)
    checks.one_of("operation", operation, ("add", "delete"))
    count = rate_to_count(rate, len(x))
    k = count_classes(data, y, classes)
    if operation == "delete" and model is not None:
        raise ValueError("model: want None for operation 'delete', got a model")
    if from_class is not None and not 0 <= from_class < k:
        raise ValueError(f"from_class: want a class in 0 … {k - 1}, got {from_class}")
    pool = torch.arange(len(x), device=x.device)
    pool = pool if from_class is None else pool[y == from_class]
    most = len(pool) - (operation == "delete" and len(pool) == len(x))  # deletion leaves one
    if count > most:
        whose = "" if from_class is None else f" of class {from_class}"
        raise ValueError(f"rate: want at most {most} samples{whose}, got {rate} of {len(x)}, which is {count}")
    if operation == "add":
        flipped = label_flipping((x[pool], y[pool]), rate=count / len(pool), classes=k, model=model, seed=seed)
        chosen = flipped.is_poison
        return mix_in(x, y, flipped.x[chosen], flipped.y[chosen], original_y=flipped.original_y[chosen], seed=seed)
    order = Noise(seed, torch.zeros(1, dtype=torch.int64, device=x.device)).permutation(0, len(pool))[0]
    keep = torch.ones(len(x), dtype=torch.bool, device=x.device).index_fill(0, pool[order[:count]], False)
    row = keep.nonzero()[:, 0]
    return Poisoned(x[row], y[row], is_poison=torch.zeros_like(row, dtype=torch.bool), original_y=y[row], row=row)
