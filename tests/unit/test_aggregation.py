"""Robust aggregators against brute force, SciPy and NumPy; and what the theorems say of outliers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from robustlab.defenses import coordinate_median, krum, krum_scores, multi_krum, norm_clipping, trimmed_mean

RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "krum": partial(krum, f=1),
    "multi_krum": partial(multi_krum, f=1),
    "median": coordinate_median,
    "trimmed_mean": partial(trimmed_mean, f=1),
    "norm_clipping": partial(norm_clipping, bound=1.0, sigma=0.1, seed=3),
}
each = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_scores(updates: Tensor, f: int) -> list[float]:
    """The least sum over all sets of n − f − 2 others."""
    n = len(updates)
    squares = [[float((a - b).square().sum()) for b in updates] for a in updates]
    return [
        min(sum(squares[i][j] for j in chosen) for chosen in combinations(set(range(n)) - {i}, n - f - 2))
        for i in range(n)
    ]


@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (6, 0), (6, 1)])
def test_krum_is_the_least_over_all_neighborhoods(n: int, f: int) -> None:
    for seed in range(5):
        updates = rows(n, 4, seed)
        scores = brute_scores(updates, f)
        np.testing.assert_allclose(krum_scores(updates, f=f).numpy(), scores, rtol=1e-12)
        assert torch.equal(krum(updates, f=f), updates[int(np.argmin(scores))])
        best = np.argsort(scores)[: n - f - 2]
        torch.testing.assert_close(multi_krum(updates, f=f), updates[best].mean(dim=0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(multi_krum(updates, f=0, m=n), updates.mean(dim=0))


def test_median_and_trimmed_mean_are_those_of_numpy_and_scipy() -> None:
    for n in (5, 6, 9):
        updates = rows(n, 7, n)
        torch.testing.assert_close(coordinate_median(updates), torch.from_numpy(np.median(updates.numpy(), axis=0)))
        for f in range((n - 1) // 2 + 1):
            want = stats.trim_mean(updates.numpy(), (f + 1e-9) / n, axis=0)
            torch.testing.assert_close(trimmed_mean(updates, f=f), torch.from_numpy(want), rtol=1e-12, atol=1e-14)


def test_clipping_by_hand() -> None:
    updates = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(norm_clipping(updates, bound=1.0), torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(norm_clipping(updates, bound=10.0), updates.mean(dim=0))
    noise = norm_clipping(torch.zeros(3, 20_000), bound=1.0, sigma=0.2, seed=1)
    assert stats.kstest(noise.numpy() / 0.2, "norm").pvalue > 1e-4
    other = norm_clipping(torch.zeros(3, 20_000), bound=1.0, sigma=0.2, seed=2)
    assert abs(float((noise * other).mean())) < 0.002


@each
def test_the_order_of_the_clients_does_not_matter(rule: Callable[[Tensor], Tensor]) -> None:
    for updates in (rows(5, 3), rows(5, 3).round(), rows(5, 1).sign()):  # ties among them
        results = [rule(updates[list(order)]) for order in permutations(range(5))]
        torch.testing.assert_close(torch.stack(results), results[0].expand(120, -1), rtol=1e-12, atol=1e-12)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_updates_give_that_update(rule: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    one = 0.1 * rows(1, 6).to(dtype)
    merged = rule(one.repeat(5, 1))
    assert merged.dtype == dtype
    if rule is not RULES["norm_clipping"]:
        torch.testing.assert_close(merged, one[0])


@pytest.mark.parametrize("far", [1e3, -1e9])
def test_few_outliers_stay_without_power(far: float) -> None:
    """f of n = 2f + 3: median and trimmed mean stay in the range of the honest, Krum takes one of them."""
    for f in (1, 2, 3):
        honest = rows(f + 3, 5, f)
        for bad in (torch.full((f, 5), far, dtype=torch.float64), far * rows(f, 5, 9).sign()):
            updates = torch.cat([bad, honest])
            low, high = honest.amin(dim=0), honest.amax(dim=0)
            for merged in (coordinate_median(updates), trimmed_mean(updates, f=f)):
                assert bool(((low <= merged) & (merged <= high)).all())
            assert bool((krum(updates, f=f) == honest).all(dim=1).any())
            assert float(norm_clipping(updates, bound=1.0).norm()) <= 1 + 1e-12
        assert float(updates.mean(dim=0).abs().max()) > 100


def test_more_outliers_than_half_break_the_median() -> None:
    updates = torch.cat([rows(2, 3), torch.full((3, 3), 50.0, dtype=torch.float64)])
    assert (coordinate_median(updates) == 50).all() and (trimmed_mean(updates, f=1) > 20).all()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda u: krum(u[:4], f=1), "updates"),
        (lambda u: krum(u, f=-1), "f"),
        (lambda u: multi_krum(u, f=1, m=5), "m"),
        (lambda u: multi_krum(u, f=1, m=0), "m"),
        (lambda u: trimmed_mean(u, f=3), "f"),
        (lambda u: norm_clipping(u, bound=0.0), "bound"),
        (lambda u: norm_clipping(u, bound=1.0, sigma=-1.0), "sigma"),
        (lambda u: coordinate_median(u[0]), "updates"),
        (lambda u: coordinate_median(u[:0]), "updates"),
        (lambda u: coordinate_median(u.long()), "updates"),
        (lambda u: coordinate_median(u * torch.nan), "updates"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[Tensor], Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{named}: want .*"):
        call(rows(5, 3))
