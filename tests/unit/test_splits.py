"""Divisions of data among clients: each row to one client, the shares of Dirichlet, the classes per client."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor

from robustlab.training.splits import dirichlet_split, even_split, label_split

Y = torch.arange(600) % 10


def partition(parts: list[Tensor]) -> bool:
    return torch.equal(torch.cat(parts).sort().values, torch.arange(len(Y)))


def test_every_row_goes_to_one_client() -> None:
    for parts in (
        even_split(Y, 7, seed=1),
        dirichlet_split(Y, 7, alpha=0.5, seed=1),
        label_split(Y, 7, classes=3, seed=1),
    ):
        assert len(parts) == 7 and partition(parts) and min(map(len, parts)) > 0
    assert {len(part) for part in even_split(Y, 7)} == {85, 86}
    for split in (lambda seed: even_split(Y, 4, seed=seed), lambda seed: dirichlet_split(Y, 4, alpha=1.0, seed=seed)):
        assert all(torch.equal(a, b) for a, b in zip(split(3), split(3), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(split(3), split(4), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 5.0])
def test_shares_are_those_of_dirichlet(alpha: float) -> None:
    """One share of Dirichlet(α, …, α) over n clients is Beta(α, (n − 1)·α): a test of 2,000 at 1e-4."""
    n, many = 5, 2000
    y = torch.arange(many).repeat_interleave(500)
    shares = torch.stack([torch.bincount(y[part], minlength=many) for part in dirichlet_split(y, n, alpha=alpha)]) / 500
    assert torch.allclose(shares.sum(dim=0), torch.ones(many))
    spread = torch.tensor([-0.5, 0.5]).add(0).tolist()  # counts are rounded to 1/500
    dithered = (
        shares[0].double()
        + torch.empty(many, dtype=torch.float64).uniform_(*spread, generator=torch.Generator().manual_seed(0)) / 500
    )
    exact = torch.from_numpy(stats.beta(alpha, (n - 1) * alpha).rvs(many, random_state=1)).mul(500).round().div(500)
    blurred = (
        exact
        + torch.empty(many, dtype=torch.float64).uniform_(*spread, generator=torch.Generator().manual_seed(1)) / 500
    )
    assert stats.ks_2samp(dithered.numpy(), blurred.numpy()).pvalue > 1e-4
    variance = (n - 1) / (n * n * (n * alpha + 1))
    assert float(shares[0].double().var()) == pytest.approx(variance, rel=0.1)


def test_small_alpha_gives_few_classes_large_alpha_all() -> None:
    few, many = (
        sum(len(Y[part].unique()) for part in dirichlet_split(Y, 10, alpha=a, seed=2)) / 10 for a in (0.1, 1e4)
    )
    assert few < 6 and many == 10


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
def test_each_client_has_so_many_classes(classes: int) -> None:
    parts = label_split(Y, 10, classes=classes, seed=5)
    assert all(len(Y[part].unique()) == classes for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= classes + 10


def test_what_cannot_be_divided_is_refused() -> None:
    for call, named in (
        (lambda: even_split(Y, 0), "clients"),
        (lambda: even_split(Y, 601), "clients"),
        (lambda: even_split(Y.float(), 3), "y"),
        (lambda: dirichlet_split(Y, 3, alpha=0.0), "alpha"),
        (lambda: dirichlet_split(Y[:12], 12, alpha=0.01), "alpha: .*none of 100"),
        (lambda: label_split(Y, 3, classes=11), "classes"),
        (lambda: label_split(Y, 3, classes=2), "clients: want at least 5"),
        (lambda: label_split(Y[:40], 20, classes=10), "y: want at least 20"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"^{named}"):
            call()
