"""Spectral signatures against planted mixtures, and against the covariance matrix written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import Detection
from robustlab.defenses.detection.spectral_signatures import spectral_scores, spectral_signatures

DIM, CLEAN, POISON = 12, 380, 20  # 5 % poison


def auroc(scores: Tensor, is_poison: Tensor) -> float:
    return Detection(scores, scores > 0, 0.0).score(is_poison)["auroc"]


def mixture(direction: Tensor, mean: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A class around `mean`, of which 5 % are shifted by `direction`, and which they are."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(CLEAN + POISON, DIM, generator=draw, dtype=torch.float64) + mean
    is_poison = torch.zeros(CLEAN + POISON, dtype=torch.bool)
    is_poison[torch.randperm(len(rows), generator=draw)[:POISON]] = True
    return rows + is_poison[:, None] * direction, is_poison


def directions() -> list[Tensor]:
    """All axes both ways, along and against the class's mean among them, and random directions."""
    axes = [sign * axis for axis in torch.eye(DIM, dtype=torch.float64) for sign in (1, -1)]
    draw = torch.Generator().manual_seed(1)
    others = torch.randn(12, DIM, generator=draw, dtype=torch.float64)
    return axes + list(others / others.norm(dim=1, keepdim=True))


def test_planted_mixtures_are_found_in_every_direction() -> None:
    mean = torch.zeros(DIM, dtype=torch.float64)
    mean[0] = 30.0  # features are activations: far from the origin
    for i, direction in enumerate(directions()):
        rows, is_poison = mixture(12 * direction, mean, seed=i)
        assert auroc(spectral_scores(rows)[0], is_poison) > 0.99


def test_without_centering_poisons_that_lean_against_the_mean_get_the_lowest_scores() -> None:
    """Why the centering is there: what widely used code leaves out."""
    mean = torch.zeros(DIM, dtype=torch.float64)
    mean[0] = 30.0
    rows, is_poison = mixture(-0.4 * mean, mean)
    uncentered = (rows @ torch.linalg.svd(rows, full_matrices=False)[2][0]).square()
    assert auroc(uncentered, is_poison) < 0.01
    assert auroc(spectral_scores(rows)[0], is_poison) > 0.99


def test_translation_and_rotation_change_nothing() -> None:
    rows, _ = mixture(torch.full((DIM,), 3.0, dtype=torch.float64), torch.zeros(DIM, dtype=torch.float64))
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(2)).double())[0]
    tau, spread = spectral_scores(rows)
    for moved in (rows + 100.0, rows @ rotation, rows.flip(0).flip(0)):
        torch.testing.assert_close(spectral_scores(moved)[0], tau, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(spectral_scores(moved)[1], spread)


def test_scores_are_those_of_the_covariance_matrix() -> None:
    rows, _ = mixture(torch.ones(DIM, dtype=torch.float64), torch.ones(DIM, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))
    tau, spread = spectral_scores(rows)
    torch.testing.assert_close(tau, ((rows - rows.mean(dim=0)) @ vectors[:, -1]).square())
    torch.testing.assert_close(spread.square(), values[-1])
    torch.testing.assert_close(tau.mean(), values[-1])  # the mean of τ is the variance along v


def identity_net(classes: int) -> nn.Module:
    """A net whose penultimate features are its inputs."""
    return nn.Sequential(nn.Flatten(), nn.Linear(DIM, classes)).double()


def test_each_class_on_its_own_loses_its_share() -> None:
    zero = torch.zeros(DIM, dtype=torch.float64)
    first, is_poison = mixture(12 * torch.eye(DIM, dtype=torch.float64)[3], zero + 5)
    second = 50 * torch.randn(77, DIM, generator=torch.Generator().manual_seed(3)).double()  # wide, but clean
    x = torch.cat([first, second])
    y = torch.cat([torch.full((400,), 2), torch.zeros(77, dtype=torch.int64)])
    found = spectral_signatures(identity_net(3), (x, y), rate=0.05)
    assert int(found.flagged[y == 2].sum()) == 30  # 1.5 · 0.05 · 400
    assert int(found.flagged[y == 0].sum()) == 6  # ⌈1.5 · 0.05 · 77⌉
    assert torch.equal(found.flagged, found.scores > found.threshold)
    assert bool(found.flagged[:400][is_poison].all())
    assert found.details["spread"].isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found.details["tau"][y == 2], spectral_scores(first)[0])


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.66])
def test_the_stated_false_alarm_rate_is_the_share_of_clean_data_that_is_lost(rate: float) -> None:
    """Classes of 400, 77, 3 and 1 samples without any poison."""
    y = torch.tensor([0] * 400 + [1] * 77 + [2] * 3 + [3])
    x = torch.randn(481, DIM, generator=torch.Generator().manual_seed(4)).double()
    found = spectral_signatures(identity_net(4), (x, y), rate=rate)
    assert int(found.flagged.sum()) == round(481 * found.false_alarm_rate)
    assert not bool(found.flagged[-1])


def test_identical_samples_are_not_flagged() -> None:
    x, y = torch.ones(10, DIM, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)
    assert not spectral_signatures(identity_net(2), (x, y), rate=0.1).flagged.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rate": 0}, "rate"), ({"rate": 0.7}, "rate: want below 2/3"), ({"y": torch.zeros(3, dtype=torch.int64)}, "y")],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    given = {"x": torch.zeros(10, DIM).double(), "y": torch.zeros(10, dtype=torch.int64), "rate": 0.1} | change
    x, y = given.pop("x"), given.pop("y")
    with pytest.raises((ValueError, TypeError), match=message):
        spectral_signatures(identity_net(2), (x, y), **given)  # type: ignore[arg-type]
