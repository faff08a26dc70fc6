"""Each check of the edges, seen to fail on a verifier that is broken on purpose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import Certificate
from tests.suite.verification import test_edges as edges
from tests.suite.verification.cases import CASES, Case

CPU = torch.device("cpu")
Verifier = Callable[..., Certificate]


def planted(bug: Callable[[Verifier], Verifier]) -> Case:
    """CROWN in ℓ∞ with a bug."""
    good = next(case for case in CASES if str(case) == "crown-linf")
    return replace(good, verifier=functools.wraps(good.verifier)(bug(good.verifier)))


def everything(certificate: Certificate) -> Certificate:
    """The certificate that says "verified" of all samples."""
    yes = torch.ones_like(certificate.verified)
    return replace(certificate, verified=yes, falsified=~yes)


def nothing_at_zero(verifier: Verifier) -> Verifier:
    """A strict inequality between the ends of the box: a point is an empty box, and all holds on it."""

    def broken(model: nn.Module, x: Tensor, y: Tensor, *, eps: Any, **kw: Any) -> Certificate:
        found = verifier(model, x, y, eps=eps, **kw)
        return everything(found) if bool((torch.as_tensor(eps) == 0).any()) else found

    return broken


def nan_is_no_complaint(verifier: Verifier) -> Verifier:
    """Asks whether a margin is at most 0, which NaN is not; or takes +∞ for a proof."""

    def broken(model: nn.Module, x: Tensor, y: Tensor, **kw: Any) -> Certificate:
        found = verifier(model, x, y, **kw)
        return everything(found) if isinstance(model, edges.Overflowing) else found

    return broken


def swallows(verifier: Verifier) -> Verifier:
    """Takes the absence of a complaint for a proof."""

    def broken(model: nn.Module, x: Tensor, y: Tensor, *, eps: Any, **kw: Any) -> Certificate:
        try:
            return verifier(model, x, y, eps=eps, **kw)
        except (RuntimeError, ValueError):
            return everything(verifier(model, x, y, eps=eps, **kw))

    return broken


@pytest.mark.parametrize(
    ("bug", "check"),
    [
        (nothing_at_zero, edges.check_point_boxes),
        (nan_is_no_complaint, edges.check_bounds_that_are_not_finite),
        (swallows, edges.check_errors_inside_bounding),
    ],
    ids=["points", "not finite", "errors"],
)
def test_broken_verifiers_are_seen(bug: Callable[[Verifier], Verifier], check: Callable[..., None]) -> None:
    check(planted(lambda verifier: lambda *args, **kw: verifier(*args, **kw)), CPU)
    with pytest.raises(AssertionError, match=r"verified|verdict|decided"):
        check(planted(bug), CPU)
