"""What says nothing about robustness changes none of it: a class that is masked, the unit of the logits."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from robustlab.attacks import pgd
from tests.suite.cases import CASES, Case, batch, over
from tests.suite.models import Then

MINIMUM_NORM = [case for case in CASES if case.row.min_norm]
# The steps of these depend on the logits by signs and by ratios of margins alone.
BY_RATIOS = [case for case in CASES if case.row.key in ("deepfool", "fab", "fmn")]
BY_LOSS = [case for case in CASES if case.row.key in ("fgsm", "bim", "pgd", "apgd", "square")]
# These weigh a loss against a distance, or turn by a cross-entropy, so that the unit plays a part in their steps.
WEIGHED = [case for case in MINIMUM_NORM if case not in BY_RATIOS]


def masked(z: Tensor, value: float) -> Tensor:
    """One more class, which always has this logit."""
    return torch.cat([z, torch.full_like(z[:, :1], value)], dim=1)


def check_masked(case: Case, device: torch.device, value: float = -torch.inf) -> None:
    """A class that never leads counts for nothing, however low it is."""
    model, x, y = batch(case, device, n=6)
    plain = case.run(Then(model, lambda z: masked(z, -20.0)), x, y)
    ours = case.run(Then(model, lambda z: masked(z, value)), x, y)
    assert torch.equal(ours.success, plain.success), "a masked class decides about success"
    if case.row.min_norm:
        name, won = case.norm or "l2", plain.success
        torch.testing.assert_close(ours.distances[name][won], plain.distances[name][won], rtol=2e-2, atol=1e-9)


def check_scaled(case: Case, device: torch.device, scale: float = 2.0**-17, **changes: str) -> None:
    """Logits in another unit, a power of 2, so that nothing is rounded otherwise: the same points."""
    model, x, y = batch(case, device, n=6)
    plain, ours = case.run(model, x, y, **changes), case.run(Then(model, lambda z: z * scale), x, y, **changes)
    assert torch.equal(ours.success, plain.success), "the unit of the logits decides about success"
    torch.testing.assert_close(ours.x_adv, plain.x_adv, rtol=0, atol=1e-9)


def check_weighed(case: Case, device: torch.device, scale: float = 2.0**-17) -> None:
    """Where the unit plays a part, a small one still lets no success count for nothing."""
    model, x, y = batch(case, device, n=6)
    ours = case.run(Then(model, lambda z: z * scale), x, y)
    assert not bool(ours.x_adv.isnan().any())
    met = case.goal(model(ours.x_adv).detach(), y)
    assert torch.equal(ours.success, met)
    weighs = any(name in case.arguments() or case.takes(name) for name in ("c", "gamma"))  # the loss against a distance
    if not weighs:
        assert torch.equal(ours.success, case.run(model, x, y).success)


def check_saturated(case: Case, device: torch.device) -> None:
    """Probabilities that float32 rounds to 1 and 0 cost no success, or a warning says what to take."""
    model, x, y = batch(case, device, n=6, dtype=torch.float32)
    plain = case.run(model, x, y)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ours = case.run(Then(model, lambda z: 1e5 * z), x, y)
    assert int(ours.success.sum()) >= int(plain.success.sum()) or any('loss="margin"' in str(t.message) for t in told)


@pytest.mark.slow
@over(*MINIMUM_NORM, value=(-1e4, -1e9, -torch.inf))
def test_masked(case: Case, device: torch.device, value: float) -> None:
    check_masked(case, device, value)


@over(*BY_LOSS, value=(-1e9, -torch.inf))
def test_masked_in_a_loss(case: Case, device: torch.device, value: float) -> None:
    check_masked(case, device, value)


@over(*BY_RATIOS, scale=(2.0**-17, 2.0**10))
def test_scaled(case: Case, device: torch.device, scale: float) -> None:
    check_scaled(case, device, scale)


@over(*BY_LOSS, scale=(2.0**-17, 2.0**10))
def test_scaled_margin_loss(case: Case, device: torch.device, scale: float) -> None:
    check_scaled(case, device, scale, loss="margin")


@over(*(case for case in BY_LOSS if not case.targeted), scale=(2.0**-17, 2.0**10))
def test_scaled_dlr(case: Case, device: torch.device, scale: float) -> None:
    check_scaled(case, device, scale, loss="dlr")


@pytest.mark.slow
@over(*WEIGHED)
def test_small_logits(case: Case, device: torch.device) -> None:
    check_weighed(case, device)


@pytest.mark.slow
@over(*[case for case in CASES if case.row.access == "white" and not case.targeted])
def test_what_saturates_is_told(case: Case, device: torch.device) -> None:
    check_saturated(case, device)


def test_a_saturated_loss_is_told_once() -> None:
    """Cross-entropies of 0 and gradients of 0 in float32; the margin has none of it."""
    case = next(case for case in CASES if str(case) == "pgd-linf")
    model, x, y = batch(case, torch.device("cpu"), n=6, dtype=torch.float32)
    sure = Then(model, lambda z: 1e5 * z)
    with pytest.warns(UserWarning, match=r"loss: 'ce' has a gradient of exactly 0 on \d of 6.*loss=\"margin\"") as told:
        pgd(sure, x, y, eps=0.1, steps=5)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pgd(sure, x, y, eps=0.1, steps=5, loss="margin")
        pgd(model, x, y, eps=0.1, steps=5)
