"""CROWN-IBP training: its loss by explicit matrices, and its slopes on both sides of the lines.

Schedules, cost of nothing, errors and the growth of the certificate are tested with those of ``ibp_training``.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.defenses import crown_ibp
from tests.unit.test_ibp_training import batch, by_signs, clean_surprise, hidden_box, small_net, surprise


def formula(
    model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, eps: float, beta: float, kappa: float = 0.5
) -> Tensor:
    """Sample by sample: below softplus the tangent at the middle of its interval, above it the chord."""
    lost, last = [], model[-1]
    for one, label in zip(x, y.tolist(), strict=True):
        weight, offset, low, high = hidden_box(model, one, eps)
        rows = last.weight[label] - torch.cat([last.weight[:label], last.weight[label + 1 :]])
        shift = last.bias[label] - torch.cat([last.bias[:label], last.bias[label + 1 :]])
        intervals = by_signs(rows, shift, F.softplus(low), F.softplus(high))[0]
        middle = (low + high) / 2
        tangent, chord = middle.sigmoid(), (F.softplus(high) - F.softplus(low)) / (high - low)
        under, over = F.softplus(middle) - tangent * middle, F.softplus(low) - chord * low
        plus, minus = rows.clamp_min(0), rows.clamp_max(0)
        slopes = plus * tangent + minus * chord
        constant = plus @ under + minus @ over + slopes @ offset + shift
        ends = (one - eps).clamp(0, 1).flatten(), (one + eps).clamp(0, 1).flatten()
        lines = by_signs(slopes @ weight, constant, *ends)[0]
        lost.append(surprise(beta * lines + (1 - beta) * intervals))
    return kappa * clean_surprise(model, x, y) + (1 - kappa) * torch.stack(lost).mean()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_margins_are_mixed(beta: float) -> None:
    """m = β·m_CROWN-IBP + (1 − β)·m_IBP, class by class."""
    model, (x, y) = small_net(), batch(4)
    linear, interval, mixed = (crown_ibp(eps=0.05, beta=b).worst(model, x, y, 0.05) for b in (1.0, 0.0, beta))
    torch.testing.assert_close(mixed, beta * linear + (1 - beta) * interval)
    assert float((linear - interval).detach().abs().max()) > 1e-3, "the test could not tell"


def test_wrong_arguments_are_named() -> None:
    for beta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"^beta"):
            crown_ibp(eps=0.1, beta=beta)
