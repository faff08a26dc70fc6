"""The threshold of detectors by score: of exchangeable scores, each judged by the others, the stated share passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses.detection.by_score import judged, threshold_at


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("n", [20, 41, 100])
def test_the_rate_is_kept_and_used_up(rate: float, n: int) -> None:
    """n scores, each judged by the n − 1 others: ⌊rate·n⌋ are flagged, not one more and not one less."""
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    flagged = sum(float(scores[i]) > threshold_at(rate, torch.cat([scores[:i], scores[i + 1 :]])) for i in range(n))
    assert flagged == math.floor(rate * n + 1e-9)


def test_ties_and_too_few_scores_raise_no_alarm() -> None:
    assert threshold_at(0.2, torch.tensor([0.0] * 9 + [1.0] * 5)) == 1.0
    assert math.isinf(threshold_at(0.05, torch.zeros(18))) and threshold_at(0.05, torch.zeros(19)) == 0.0


class Root(nn.Module):
    """A score that is no number below 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].sqrt()


def test_a_score_that_is_no_number_is_an_alarm() -> None:
    x, clean = torch.tensor([[0.25], [-1.0], [4.0]]), torch.linspace(0, 1, 40)[:, None]
    found = judged(Root(), x, clean, 0.1, batch_size=2)
    assert found.flagged.tolist() == [False, True, True] and math.isnan(found.scores[1])
