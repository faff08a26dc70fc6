"""Krum and multi-Krum: the update whose neighbors are nearest.

Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine learning with adversaries: Byzantine tolerant gradient descent"
(2017), section 4. Honest updates are near each other, so that one among them has n − f − 2 others close by; an update
far from all has not. Multi-Krum takes the mean of the m best.

Different here: equal scores are broken by the updates themselves (the lexicographic order of their numbers) and not by
the client's number, so that the outcome does not depend on the order of the clients. Flower's strategies of these names
(1.42) choose the same from the same numbers, but depart from the paper where ours does not: they take fewer clients
than 2f + 3, weigh the chosen of multi-Krum by the sample counts that clients report of themselves, and compute
distances of whole models in their own precision as ‖x‖² + ‖y‖² − 2x·y, which in float32 loses what is small beside the
models.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.defenses.aggregation.vectors import lexicographic, stacked

__all__ = ["krum", "krum_scores", "multi_krum"]


def krum(updates: Tensor, *, f: int) -> Tensor:
    """The update with the smallest sum of squared distances to its n − f − 2 nearest others.

        argmin_i Σ_{j → i} ‖δ_i − δ_j‖²      j → i: the n − f − 2 nearest others of i

    Args:
        updates: δ (n, d), one row per client; n ≥ 2f + 3, as the paper's theorem asks.
        f: how many clients may be malicious, at least 0.

    Returns:
        (d,), one of the rows.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Blanchard et al. (2017), section 4.
    """
    return multi_krum(updates, f=f, m=1)


def multi_krum(updates: Tensor, *, f: int, m: int | None = None) -> Tensor:
    """The mean of the m updates with the smallest scores of :func:`krum`.

    Args:
        updates: δ (n, d).
        f: how many clients may be malicious; n ≥ 2f + 3.
        m: how many are taken, 1 to n − f; None is n − f − 2, the most for which the paper states its guarantee.

    Returns:
        (d,).

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Blanchard et al. (2017), sections 4 and 6.
    """
    scores = krum_scores(updates, f=f)
    n = len(updates)
    m = max(1, n - f - 2) if m is None else m
    checks.at_least("m", m, 1, integer=True)
    checks.at_most("m", m, n - f)
    order = lexicographic(torch.cat([scores[:, None], updates.to(scores.dtype)], dim=1))
    return updates[order[:m]].mean(dim=0)


def krum_scores(updates: Tensor, *, f: int) -> Tensor:
    """For each update the sum of squared distances to its n − f − 2 nearest others, (n,).

    Distances are taken of the differences themselves, in chunks, since the product form loses small ones by rounding.

    Raises:
        ValueError, TypeError: for a wrong argument.
    """
    stacked(updates)
    checks.at_least("f", f, 0, integer=True)
    n = len(updates)
    if n < 2 * f + 3:
        raise ValueError(f"updates: want at least 2f + 3 = {2 * f + 3} clients, got {n}")
    wide = updates.to(torch.float64)
    squares = torch.stack([(wide - row).square().sum(dim=1) for row in wide])
    squares.fill_diagonal_(torch.inf)  # nobody is their own neighbor
    return squares.sort(dim=1).values[:, : n - f - 2].sum(dim=1)
