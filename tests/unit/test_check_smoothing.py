"""The checks of smoothing: each diagnosis is that of its mutant, and the closed forms are the shares of draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import beta
from torch import Tensor

from robustlab.teaching import check
from robustlab.teaching.check.smoothing import Kind, distance_at, expected_radius, share_at, threshold_model
from robustlab.teaching.metered import Metered
from tests.every import every
from tests.planted import cause_of, run

KINDS: tuple[Kind, ...] = ("gaussian", "laplace", "uniform")
SCALE = 0.5
NOISE: dict[Kind, Callable[..., Tensor]] = {
    "gaussian": lambda shape: SCALE * torch.randn(shape),
    "laplace": lambda shape: SCALE * torch.distributions.Laplace(0.0, 1.0).sample(shape),
    "uniform": lambda shape: SCALE * (2 * torch.rand(shape) - 1),
}
RADIUS: dict[Kind, Callable[[Tensor], Tensor]] = {
    "gaussian": lambda p: SCALE * torch.special.ndtri(p),
    "laplace": lambda p: -SCALE * torch.log(2 * (1 - p)),
    "uniform": lambda p: SCALE * (2 * p - 1),
}
CERTIFY = """
def certify(api, x, n0, n, alpha):
    first, second = labels(api, x, n0), labels(api, x, n)
    chosen = first.mode(dim=1).values
    bound = lower((second == chosen[:, None]).sum(dim=1), n, alpha)
    return torch.where(bound > 0.5, chosen, -1), radius(bound).clamp(min=0)


def labels(api, x, n):
    rows = x.repeat_interleave(n, dim=0)
    return api(rows + noise(rows.shape)).reshape(len(x), n)
"""
MUTANTS = {
    "more draws than n0 + n per input": ("x, n0), labels(api, x, n)", "x, n0), labels(api, x, 2 * n)[:, :n]"),
    "wrong shape": (".clamp(min=0)", ".clamp(min=0)[:1]"),
    "the votes go to the wrong class or input": ("x.repeat_interleave(n, dim=0)", "x.repeat(n, 1).flip(1)"),
    "radius in wrong units": ("radius(bound)", "(radius(bound) / 0.5)"),
    "a two-sided interval": ("n, alpha)\n    return", "n, alpha / 2)\n    return"),
    "other draws, another noise or another bound than asked for": ("noise(rows.shape)", "noise(rows.shape) / 3"),
    "selected and estimated on the same draws": ("labels(api, x, n0), labels(api, x, n)", "2 * [labels(api, x, n)]"),
    "a radius without a class": ("radius(bound).clamp(min=0)", "radius(bound).abs()"),
    "no abstention": ("torch.where(bound > 0.5, chosen, -1)", "chosen"),
}


def lower(k: Tensor, n: int, alpha: float) -> Tensor:
    found = torch.from_numpy(beta.ppf(alpha, k.clamp(min=1).numpy(), (n - k.clamp(min=1) + 1).numpy()))
    return torch.where(k > 0, found, 0.0)


def certify(kind: Kind, *replaced: tuple[str, str]) -> Any:
    return run(CERTIFY, *replaced, noise=NOISE[kind], radius=RADIUS[kind], lower=lower)["certify"]


@every("kind", KINDS)
def test_right_answers_pass(kind: Kind) -> None:
    torch.manual_seed(0)
    check.lower_bound(lower)
    check.certify(certify(kind), kind=kind, scale=SCALE)


@pytest.mark.slow
@every("cause", [*MUTANTS])
def test_each_mutant_is_named(cause: str) -> None:
    torch.manual_seed(0)
    assert cause_of(check.certify, certify("laplace", MUTANTS[cause]), kind="laplace", scale=SCALE) == cause


def test_a_negative_radius_is_no_abstention() -> None:
    torch.manual_seed(0)
    never = certify("gaussian", ("torch.where(bound > 0.5, chosen, -1)", "chosen"), (".clamp(min=0)", ""))
    assert cause_of(check.certify, never, kind="gaussian", scale=SCALE) == "no abstention"


def test_bounds_are_diagnosed() -> None:
    for bound, cause in (
        (lambda k, n, alpha: lower(k, n, alpha / 2), "a two-sided interval"),
        (lambda k, n, alpha: k.double() / n, "no confidence bound"),
        (lambda k, n, alpha: lower(k, n, alpha) ** 1.1, "another bound than that of Clopper and Pearson"),
        (lambda k, n, alpha: lower(k, n, alpha)[:-1], "wrong shape"),
        (lambda k, n, alpha: 1 - lower(n - k, n, alpha), "the upper end of the interval, not the lower"),
        (lambda k, n, alpha: lower(k, n, 1 - alpha), "confidence and error mixed up"),
        (lambda k, n, alpha: lower((k - 1).clamp(min=0), n, alpha), "off by one vote"),
        (lambda k, n, alpha: lower((k + 1).clamp(max=n), n, alpha) * (k > 0), "off by one vote"),
        (lambda k, n, alpha: lower(k, n, alpha) + 0.1, "the ends are cases of their own"),
    ):
        assert cause_of(check.lower_bound, bound) == cause


@every("kind", KINDS)
def test_the_closed_forms_are_the_shares_of_draws(kind: Kind) -> None:
    """Votes of the model itself, the known radii of the three noises, and the mean over simulated votes."""
    torch.manual_seed(1)
    model, across, labels = threshold_model(kind, 4, torch.Generator().manual_seed(3))
    for far in (0.1, 0.4):
        x = far * across + 3 * (torch.randn(4) * (across == 0) if kind != "gaussian" else 0 * across)
        votes = model(x + NOISE[kind]((40_000, 4))).argmax(dim=1) == labels[1]
        p = float(share_at(kind, SCALE, torch.tensor(far)))
        assert abs(float(votes.double().mean()) - p) < 0.012
        exact = float(RADIUS[kind](torch.tensor(p).double()))
        assert abs(distance_at(kind, SCALE, p) - far) < 1e-5 and abs(exact - far) < 1e-5
        k = torch.distributions.Binomial(100, torch.tensor(p)).sample((20_000,)).long()
        mean = float(RADIUS[kind](lower(k, 100, 0.2)).clamp(min=0).mean())
        assert abs(expected_radius(kind, SCALE, p, 100, 0.2) - mean) < 0.004


def test_a_metered_model_counts_and_refuses() -> None:
    model = Metered(lambda x: torch.stack([x[:, 0], 0.2 * x[:, 1], -x[:, 0]], dim=1), (2,), 4, tells="top")
    told = model(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert torch.allclose(told, torch.tensor([[0.0, 0.7], [1.0, 0.4]]))
    assert Metered(model.model, (2,), 4, tells="scores")(torch.ones(2, 2)).sum() == 2
    with pytest.raises(RuntimeError, match="3 more rows are beyond the budget: 2 of 4 are used"):
        model(torch.rand(3, 2))
    assert (model.used, model.refused) == (2, 1)
