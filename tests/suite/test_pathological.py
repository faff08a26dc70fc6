"""Models that break naive attacks: saturated, constant, with broken gradients or broken outputs.

Nothing is asked for here but an honest result: it ends, stays in the box, holds no NaN, and its success is true.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from tests.suite.cases import Case, batch, over
from tests.suite.models import GradientOf, Then

BROKEN: dict[str, Callable[[nn.Module], nn.Module]] = {
    "saturated": lambda model: Then(model, lambda z: z * 1e6),
    "huge": lambda model: Then(model, lambda z: z * 1e150),
    "tiny": lambda model: Then(model, lambda z: z * 1e-12),
    "flat": lambda model: Then(model, lambda z: z.detach() + 0 * z),
    "nan-gradient": lambda model: GradientOf(model, torch.nan),
    "inf-gradient": lambda model: GradientOf(model, torch.inf),
    "zero-gradient": lambda model: GradientOf(model, 0.0),
}


def check_honest(case: Case, model: nn.Module, x: Tensor, y: Tensor, **changes: object) -> AttackResult:
    result = case.run(model, x, y, **changes)
    assert bool(((result.x_adv >= 0) & (result.x_adv <= 1)).all()), "outside the box, or NaN"
    with torch.no_grad():
        logits = model(result.x_adv)
    met = case.goal(logits, y) & ~logits.isnan().any(dim=1)
    assert torch.equal(result.success, met), "success is not what the model says"
    assert all(not bool(d.isnan().any()) for d in result.distances.values())
    if case.row.min_norm:
        assert torch.equal(result.x_adv[~result.success], x[~result.success])
    return result


def check_broken_model(case: Case, device: torch.device, kind: str = "nan-gradient") -> None:
    model, x, y = batch(case, device, n=4)
    check_honest(case, BROKEN[kind](model), x, y)


def check_constant_model(case: Case, device: torch.device) -> None:
    """No attack can succeed on a model that always says the same; a tie is no target reached."""
    _, x, _ = batch(case, device, n=4)
    y = torch.zeros(4, dtype=torch.int64, device=device)
    for height in (0.0, 5.0):
        model = _Constant(torch.tensor([height] + [0.0] * (case.classes - 1), dtype=x.dtype, device=device))
        result = check_honest(case, model, x, y)
        assert not bool(result.success.any())


def check_nan_away_from_x(case: Case, device: torch.device) -> None:
    """A model that answers NaN everywhere but at x: NaN is never a success, and the search ends."""
    model, x, y = batch(case, device, n=4)
    result = check_honest(case, _NaNAway(model, x), x, y)
    if case.has_budget:
        assert not bool(result.success.any())


def check_nan_rows(case: Case, device: torch.device) -> None:
    """NaN at some x costs these samples alone, and one warning names them; the others get what they get anyway."""
    model, x, y = batch(case, device, n=5)
    plain = case.run(model, x, y)
    with pytest.warns(UserWarning, match=r"^model: want numbers at x, got NaN in rows \[1, 3\]") as told:
        result = check_honest(case, _NaNAt(model, x[[1, 3]]), x, y)
    about = [str(one.message).partition(":")[0] for one in told]
    assert about.count("model") == 1, "one warning, not one for each question"
    assert not bool(result.success[[1, 3]].any()) and torch.equal(result.x_adv[[1, 3]], x[[1, 3]])
    assert result.queries[[1, 3]].tolist() == [1, 1] and result.gradients[[1, 3]].tolist() == [0, 0]
    others = torch.tensor([0, 2, 4], device=device)
    assert torch.equal(result.success[others], plain.success[others])
    torch.testing.assert_close(result.x_adv[others], plain.x_adv[others], rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match=r"got NaN in rows \[0\]"):
        alone = case.run(_NaNAt(model, x[[1]]), x[[1]], y[[1]])
    assert not bool(alone.success) and torch.equal(alone.x_adv, x[[1]])


def check_infinite_logits(case: Case, device: torch.device) -> None:
    model, x, y = batch(case, device, n=4)
    check_honest(case, Then(model, lambda z: torch.where(z == z.amax(1, keepdim=True), torch.inf, z)), x, y)


def check_probabilities(case: Case, device: torch.device) -> None:
    """``output="probs"``: the logarithm stands in for the logits; probabilities of exactly 0 break nothing."""
    model, x, y = batch(case, device, n=4)
    probabilities = Then(model, lambda z: z.softmax(dim=1))
    result = case.run(Victim(probabilities, output="probs"), x, y)
    plain = case.run(Then(model, lambda z: z.log_softmax(dim=1)), x, y)
    torch.testing.assert_close(result.x_adv, plain.x_adv, rtol=0, atol=1e-5)
    hard = Then(model, lambda z: (z * 1e4).softmax(dim=1))
    result = case.run(Victim(hard, output="probs"), x, y)
    assert bool(((result.x_adv >= 0) & (result.x_adv <= 1)).all())


class _Constant(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)


class _NaNAway(nn.Module):
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.model, self.x = model, x

    def forward(self, x: Tensor) -> Tensor:
        far = (x[:, None] - self.x).flatten(2).abs().amax(dim=2).amin(dim=1) > 1e-4
        return self.model(x).masked_fill(far[:, None], torch.nan)


class _NaNAt(nn.Module):
    """NaN at these very points."""

    def __init__(self, model: nn.Module, points: Tensor) -> None:
        super().__init__()
        self.model, self.points = model, points.clone()

    def forward(self, x: Tensor) -> Tensor:
        there = (x[:, None] == self.points).flatten(2).all(dim=2).any(dim=1)
        return self.model(x).masked_fill(there[:, None], torch.nan)


@over(slow=True, kind=tuple(BROKEN))
def test_broken_model(case: Case, device: torch.device, kind: str) -> None:
    check_broken_model(case, device, kind)


@pytest.mark.slow
@over()
def test_constant_model(case: Case, device: torch.device) -> None:
    check_constant_model(case, device)


@pytest.mark.slow
@over()
def test_nan_away_from_x(case: Case, device: torch.device) -> None:
    check_nan_away_from_x(case, device)


@pytest.mark.slow
@over()
def test_nan_rows(case: Case, device: torch.device) -> None:
    check_nan_rows(case, device)


@pytest.mark.slow
@over()
def test_infinite_logits(case: Case, device: torch.device) -> None:
    check_infinite_logits(case, device)


@over(slow=True)
def test_probabilities(case: Case, device: torch.device) -> None:
    check_probabilities(case, device)
