"""Activation clustering: planted clusters, brute-force 2-means, the silhouette by its definition."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses.detection.activation_clustering import (
    activation_clustering,
    mean_silhouette,
    two_means,
    whitened,
)

DIM = 6


def cloud(n: int, seed: int, dim: int = DIM) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def within(rows: Tensor, second: Tensor) -> float:
    parts = [rows[second], rows[~second]]
    return sum(float((part - part.mean(dim=0)).square().sum()) for part in parts if len(part))


def test_two_means_finds_the_best_split() -> None:
    for seed in range(5):
        rows = cloud(9, seed, dim=2)
        best = min(within(rows, torch.tensor(split)) for split in product([True, False], repeat=9) if any(split))
        found = two_means(rows, restarts=40, seed=0)
        assert within(rows, found) == pytest.approx(best)
        assert 2 * int(found.sum()) <= 9


def test_silhouette_by_its_definition() -> None:
    rows = cloud(12, 0)
    second = torch.tensor([i in (1, 4, 5, 9) for i in range(12)])
    total = 0.0
    for i in range(12):
        mine = [float((rows[i] - rows[j]).norm()) for j in range(12) if j != i and second[j] == second[i]]
        theirs = [float((rows[i] - rows[j]).norm()) for j in range(12) if second[j] != second[i]]
        a, b = sum(mine) / len(mine), sum(theirs) / len(theirs)
        total += (b - a) / max(a, b)
    assert float(mean_silhouette(rows, second)) == pytest.approx(total / 12)


def test_whitening_gives_independent_components_up_to_a_rotation() -> None:
    """Independent component analysis rotates whitened rows, and 2-means does not see rotations."""
    rows = cloud(50, 1) @ cloud(DIM, 2)
    white = whitened(rows, DIM)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(DIM, dtype=torch.float64))
    rotation = torch.linalg.qr(cloud(DIM, 3))[0]
    assert torch.equal(two_means(white, 10, seed=0), two_means(white @ rotation, 10, seed=0))
    assert whitened(rows[:, :1].expand(50, 4), 10).shape == (50, 1)  # no more than there are


def planted() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Class 1 holds 40 poisons beside 160 honest samples; class 0 is clean."""
    x = torch.cat([cloud(200, 0), cloud(200, 1)])
    is_poison = torch.zeros(400, dtype=torch.bool)
    is_poison[220:260] = True
    x[is_poison] += 15.0
    y = torch.arange(400) // 200
    return nn.Sequential(nn.Flatten(), nn.Linear(DIM, 2)).double(), x, y, is_poison


def test_planted_poisons_are_flagged_and_nothing_else() -> None:
    model, x, y, is_poison = planted()
    found = activation_clustering(model, (x, y), components=2)
    assert torch.equal(found.flagged, is_poison)
    assert float(found.details["share"][1]) == pytest.approx(0.2)
    assert float(found.details["silhouette"][1]) > float(found.details["silhouette"][0])


def test_a_large_cluster_is_no_suspect() -> None:
    model, x, y, _ = planted()
    assert not activation_clustering(model, (x, y), components=2, largest=0.15).flagged.any()


def test_no_more_of_clean_data_is_flagged_than_stated() -> None:
    """Where every class is suspected it loses its smaller cluster, and none loses more than `largest`."""
    for largest in (0.1, 0.35, 0.5):
        found = activation_clustering(
            nn.Sequential(nn.Flatten(), nn.Linear(DIM, 8)).double(), (cloud(240, 5), torch.arange(240) % 8),
            components=3, largest=largest, silhouette=-1.0,
        )  # fmt: skip
        assert found.false_alarm_rate == largest
        for k in range(8):
            assert float(found.flagged[torch.arange(240) % 8 == k].double().mean()) <= largest
    assert found.flagged.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_without_spread_is_not_split(dtype: torch.dtype) -> None:
    """Equal inputs, whose features differ by rounding at most; and the other class is split as it would be alone."""
    model, x, y, _ = planted()
    model, x = model.to(dtype), x.to(dtype)
    alone = activation_clustering(model, (x, y), components=2)
    x = torch.where((y == 0).view(-1, *[1] * (x.dim() - 1)), x[:1], x)
    found = activation_clustering(model, (x, y), components=2, batch_size=7)
    assert not found.flagged[y == 0].any() and (found.scores[y == 0] == -1).all()
    assert found.details["share"][0].isnan() and found.details["silhouette"][0].isnan()
    assert torch.equal(found.flagged[y != 0], alone.flagged[y != 0])


def test_rounding_is_no_component() -> None:
    """Features of three dimensions in a layer of 32 numbers: in float32 the rest is rounding, which is not split."""
    _, x, y, is_poison = planted()
    layers = nn.Linear(3, 32), nn.Dropout(0.5), nn.Linear(32, 2)
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        layers[0].weight.copy_(cloud(32, 2, dim=3))
        layers[0].bias.copy_(3 * cloud(32, 3, dim=1)[:, 0])
    for scale in (1.0, 0.01):
        found = [
            activation_clustering(model.to(dtype), (scale * x[:, :3].to(dtype), y), layer="0")
            for dtype in (torch.float64, torch.float32)
        ]
        assert all(torch.equal(each.flagged, is_poison) for each in found)
        torch.testing.assert_close(found[1].details["silhouette"], found[0].details["silhouette"], rtol=0.01, atol=0)


@pytest.mark.parametrize("change", [{"components": 0}, {"restarts": 0}, {"largest": 0.6}, {"silhouette": -2.0}])
def test_bad_arguments(change: dict[str, float]) -> None:
    model, x, y, _ = planted()
    with pytest.raises(ValueError, match=next(iter(change))):
        activation_clustering(model, (x, y), **change)  # type: ignore[arg-type]
