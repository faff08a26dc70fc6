"""Intervals for the fractions that experiments report."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


def wilson(successes: int | Tensor, n: int, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Wilson's score interval for a probability of which ``successes`` in ``n`` trials were seen.

        (p̂ + z²/2n ± z·√(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n),   p̂ = successes/n,   z = Φ⁻¹((1 + confidence)/2)

    Unlike p̂ ± z·√(p̂(1 − p̂)/n) it does not shrink to a point where all trials, or none, succeeded.

    Args:
        successes: a count in 0 … n, or a tensor of them, of any shape.
        n: number of trials, at least 1.
        confidence: two-sided level in (0, 1), nominal: the coverage is near it on average over p.

    Returns:
        Lower and upper end, float64, the shape of ``successes``.

    Raises:
        ValueError: for a count outside 0 … n, n < 1, or a level outside (0, 1).

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if n < 1:
        raise ValueError(f"n: want at least 1 trial, got {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: want a level strictly between 0 and 1, got {confidence}")
    count = torch.as_tensor(successes, dtype=torch.float64)
    if not bool(((count >= 0) & (count <= n)).all()):
        raise ValueError(f"successes: want counts in 0 … {n}, got {successes}")
    share, z = count / n, NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)).sqrt()
    # At 0 and n the ends are 0 and 1 exactly; rounding must not say otherwise.
    low = torch.where(count == 0, 0.0, (middle - half).clamp_min(0))
    high = torch.where(count == n, 1.0, (middle + half).clamp_max(1))
    return low, high


@dataclass(frozen=True)
class Rate:
    """A share of trials, with Wilson's interval of 95 %: ``float(rate)`` is the share, NaN without trials.

    Attributes:
        hits: how many trials had the outcome.
        n: number of trials.
    """

    hits: int
    n: int

    @classmethod
    def of(cls, outcomes: Tensor) -> Rate:
        """From a bool tensor, one entry a trial."""
        return cls(int(outcomes.sum()), outcomes.numel())

    @property
    def value(self) -> float:
        """hits / n."""
        return self.hits / self.n if self.n else float("nan")

    @property
    def low(self) -> float:
        """Lower end of the interval; 0 without trials."""
        return float(wilson(self.hits, self.n)[0]) if self.n else 0.0

    @property
    def high(self) -> float:
        """Upper end of the interval; 1 without trials."""
        return float(wilson(self.hits, self.n)[1]) if self.n else 1.0

    def __float__(self) -> float:
        return self.value

    def __add__(self, other: Rate) -> Rate:
        """The trials of both together."""
        return Rate(self.hits + other.hits, self.n + other.n)

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of {self.n}"
