"""Spectral scores of features, held to features whose singular vectors are known because they are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, blame, require_shape

Scores = Callable[[Tensor], Tensor]
"""features (N, d) → (N,)."""
SIZES = (5.0, 3.0, 2.0, 1.0)
"""The singular values of the centered features."""


def spectral_scores(function: Scores, *, seed: int = 0, hints: int = 1) -> None:
    """Check the scores of spectral signatures: prints one line where all holds.

    Args:
        function: called as ``function(features)`` with features (N, d) in double precision; returns ⟨r − r̄, v⟩² for
            each row r, (N,), where v is the first right singular vector of the centered rows.
        seed: of the features (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    try:
        for number, (n, d) in enumerate([(30, 8), (9, 20)]):
            _scored(function, n, d, torch.Generator().manual_seed(seed + number))
    except Wrong as wrong:
        raise wrong.shown_as("spectral_scores", hints) from None
    print("spectral_scores: holds, for more rows than features and for fewer")


def _scored(function: Scores, n: int, d: int, generator: torch.Generator) -> None:
    """Features = mean + U·diag(s)·Vᵀ, with columns of U that are orthogonal to each other and to the ones."""

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    columns = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), drawn(n, len(SIZES))], dim=1)).Q[:, 1:]
    directions, mean = torch.linalg.qr(drawn(d, len(SIZES))).Q, 3 * drawn(d)
    rows = (columns * torch.tensor(SIZES, dtype=torch.float64)) @ directions.T + mean
    expected = (columns[:, 0] * SIZES[0]).square()
    out = require_shape(function(rows.clone()), (n,), "one score per row", "Return a tensor (N,).").double()
    if torch.allclose(out, expected, atol=1e-8):
        return
    blame("the scores are others than ⟨r − r̄, v⟩²", _slips(rows), lambda scores: torch.allclose(out, scores, atol=1e-8))
    raise Wrong(
        f"the scores are off by up to {float((out - expected).abs().max()):.2g}",
        "another direction or another product",
        "v is the first right singular vector, one number per feature: the first row of Vᵀ.",
        "_, _, Vh = torch.linalg.svd(rows, full_matrices=False); v = Vh[0].",
    )


def _slips(rows: Tensor) -> Iterator[tuple[Any, ...]]:
    """The scores of likely slips, each with its cause and hints."""
    centered = rows - rows.mean(dim=0)
    _, sizes, v = torch.linalg.svd(centered, full_matrices=False)
    yield (
        (rows @ torch.linalg.svd(rows, full_matrices=False).Vh[0]).square(),
        "the rows are not centered",
        "The largest direction of rows with a mean is about that of the mean.",
        "rows - rows.mean(dim=0).",
    )
    yield (
        (rows @ v[0]).square(),
        "the direction is that of centered rows, the products are with rows that are not",
        "A score says how far a row is from the mean.",
        "Use the centered rows in both places.",
    )
    yield (centered @ v[0]).abs(), "no square", "The score is the square of the product."
    yield (
        (centered @ v[0] / sizes[0]).square(),
        "the left singular vector, without the singular value",
        "⟨r − r̄, v⟩ is σ₁ times the entry of the left singular vector.",
        "(rows @ v).square().",
    )
    yield (
        centered.square().sum(dim=1),
        "the length in all directions",
        "Most directions are those in which clean rows differ, too.",
        "Project onto the first right singular vector.",
    )
    yield (
        (centered @ v[len(SIZES) - 1]).square(),
        "the last direction, not the first",
        "eigh sorts its values from small to large, svd from large to small.",
    )
    yield (centered @ v[1]).square(), "the second direction", "Counting starts at 0."
