"""Wilson's interval against scipy, its defining equation, and its coverage by exact summation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, binomtest

from robustlab.intervals import wilson


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 17, 200, 5000])
def test_equals_scipy(n: int, confidence: float) -> None:
    counts = sorted({0, 1, n // 3, n // 2, n - 1, n})
    low, high = wilson(torch.tensor(counts), n, confidence)
    for i, k in enumerate(counts):
        want = binomtest(k, n).proportion_ci(confidence, method="wilson")
        assert float(low[i]) == pytest.approx(want.low, abs=1e-12)
        assert float(high[i]) == pytest.approx(want.high, abs=1e-12)


def test_ends_solve_the_score_equation() -> None:
    """|p̂ − p| = z·√(p(1 − p)/n) at both ends, with z known by heart."""
    for k in range(1, 30):
        for end in wilson(k, 30, 0.95):
            p = float(end)
            assert abs(k / 30 - p) == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / 30), rel=1e-9)


def test_none_and_all() -> None:
    low, high = wilson(torch.tensor([0, 40]), 40)
    assert float(low[0]) == 0.0 and 0 < float(high[0]) < 0.1
    assert float(high[1]) == 1.0 and 0.9 < float(low[1]) < 1


@pytest.mark.parametrize("n", [30, 200])
def test_covers_the_truth_as_often_as_it_says(n: int) -> None:
    """Mean coverage over p, by summing the binomial: a one-sided z or a Wald interval is off by more than this."""
    low, high = (end.numpy() for end in wilson(torch.arange(n + 1), n, 0.95))
    shares = [(i + 0.5) / 400 for i in range(400)]
    counts = range(n + 1)
    covered = [float(binom.pmf(counts, n, p)[(low <= p) & (p <= high)].sum()) for p in shares]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.008)
    assert min(covered) > 0.82


def test_simulated_coverage() -> None:
    generator = torch.Generator().manual_seed(0)
    for p in (0.02, 0.3, 0.9):
        counts = (torch.rand(4000, 150, generator=generator) < p).sum(dim=1)
        low, high = wilson(counts, 150, 0.9)
        assert float(((low <= p) & (p <= high)).double().mean()) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((1, 0), "n"), ((-1, 4), "successes"), ((5, 4), "successes"), ((1, 4, 0.0), "conf"), ((1, 4, 1.0), "conf")],
)
def test_bad_input(arguments: tuple, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        wilson(*arguments)
