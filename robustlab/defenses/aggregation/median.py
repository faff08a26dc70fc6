"""The median of each coordinate.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-robust distributed learning: Towards optimal statistical rates" (2018),
definition 1. As long as malicious clients are fewer than half, each coordinate lies within the range of the honest.
"""

from __future__ import annotations

from torch import Tensor

from robustlab.defenses.aggregation.vectors import stacked

__all__ = ["coordinate_median"]


def coordinate_median(updates: Tensor) -> Tensor:
    """The median of each coordinate over the clients; of an even number the mean of the two in the middle.

        med(δ)_j = median( δ_{1,j}, …, δ_{n,j} )

    Args:
        updates: δ (n, d), one row per client.

    Returns:
        (d,).

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Yin et al. (2018), definition 1.
    """
    stacked(updates)
    ordered, n = updates.sort(dim=0).values, len(updates)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
