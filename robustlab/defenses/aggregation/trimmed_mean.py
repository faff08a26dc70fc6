"""The trimmed mean of each coordinate.

Yin, Chen, Ramchandran and Bartlett, "Byzantine-robust distributed learning: Towards optimal statistical rates" (2018),
definition 2. Without the f largest and the f smallest numbers, what f malicious clients can reach lies within the range
of the honest, coordinate by coordinate.

Different here: the paper trims a fraction β of the clients at both ends; here f of them, a whole number.
"""

from __future__ import annotations

from torch import Tensor

from robustlab import checks
from robustlab.defenses.aggregation.vectors import stacked

__all__ = ["trimmed_mean"]


def trimmed_mean(updates: Tensor, *, f: int) -> Tensor:
    """The mean of each coordinate without its f smallest and its f largest numbers.

        1/(n − 2f) · Σ_{k=f+1}^{n−f} δ_{(k),j}      δ_{(k),j}: the k-th smallest of δ_{1,j}, …, δ_{n,j}

    Args:
        updates: δ (n, d), one row per client.
        f: how many are trimmed at each end, 0 ≤ f < n/2; 0 is the mean.

    Returns:
        (d,).

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Yin et al. (2018), definition 2.
    """
    stacked(updates)
    checks.at_least("f", f, 0, integer=True)
    n = len(updates)
    if 2 * f >= n:
        raise ValueError(f"f: want fewer than half of {n} clients, got {f}")
    return updates.sort(dim=0).values[f : n - f].mean(dim=0)
