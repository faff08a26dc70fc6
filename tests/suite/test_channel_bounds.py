"""A box of its own for every channel, as data normalized channel by channel have it, and boxes in other units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustlab.attacker.victim import Victim
from tests.suite.cases import CASES, EPS, Case, batch, over
from tests.suite.models import Counting, Then


class Shifted(Then):
    """The model behind a normalization that is undone: x ↦ model(σ·x + μ), one μ and one σ per channel."""

    def __init__(self, model: torch.nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__(model, lambda z: z)
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x * self.std + self.mean)


def per_channel(case: Case, values: tuple[float, ...], like: Tensor) -> Tensor:
    """(C, 1, 1), or one for each element of a flat sample."""
    size = case.shape[0]
    column = torch.tensor([values[i % len(values)] for i in range(size)]).to(like)
    return column.reshape(size, *[1] * (len(case.shape) - 1))


def check_equal_ends(case: Case, device: torch.device) -> None:
    """Ends that are tensors of the same number everywhere are that number."""
    model, x, y = batch(case, device, n=6)
    zero, one = per_channel(case, (0.0,), x), per_channel(case, (1.0,), x)
    plain, ours = case.run(model, x, y), case.run(Victim(model, bounds=(zero, one)), x, y)
    torch.testing.assert_close(ours.x_adv, plain.x_adv, rtol=0, atol=1e-9)
    assert torch.equal(ours.success, plain.success) and torch.equal(ours.queries, plain.queries)


def check_normalized(case: Case, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Every question and every result are inside the box, success is true; samples come from the corners too."""
    model, x, y = batch(case, device, n=6)
    mu, sigma = per_channel(case, mean, x), per_channel(case, std, x)
    low, high = (0 - mu) / sigma, (1 - mu) / sigma
    points = torch.clamp((x - mu) / sigma, low, high)
    seen = Boxed(Shifted(model, mu, sigma), low, high)
    result = case.run(Victim(seen, bounds=(low, high)), points, y)
    assert not seen.strayed, "a query outside the box"
    assert bool(((result.x_adv >= low) & (result.x_adv <= high)).all()), "outside the box"
    assert int(result.queries.sum()) == seen.forwards
    with torch.no_grad():
        logits = seen.model(result.x_adv)
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-9
    assert torch.equal(case.goal(logits, y)[clear], result.success[clear])
    if case.has_budget and case.norm:
        assert bool((case.length(result.x_adv - points) <= EPS[case.norm] * (1 + 1e-9)).all())


def check_translated(case: Case, device: torch.device) -> None:
    """Boxes of width 1 that begin elsewhere in each channel: the same attack, translated."""
    model, x, y = batch(case, device, n=8)
    x = (x * 64).round() / 64  # no sum below is rounded then
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    mu, sigma = per_channel(case, (0.25, -0.5), x), per_channel(case, (1.0,), x)
    plain = case.run(model, x, y)
    ours = case.run(Victim(Shifted(model, mu, sigma), bounds=(0 - mu, 1 - mu)), x - mu, y)
    assert torch.equal(ours.success, plain.success)
    torch.testing.assert_close(ours.x_adv + mu, plain.x_adv, rtol=0, atol=1e-6)


def check_scaled(case: Case, device: torch.device, width: float = 256.0) -> None:
    """In a box that is as many times as wide: the same attack in other units. Powers of two round nothing."""
    model, x, y = batch(case, device, n=8)
    mu, sigma = per_channel(case, (0.0,), x), per_channel(case, (1 / width,), x)
    plain = case.run(model, x, y)
    radius = {"eps": width * EPS[case.norm or "linf"]} if case.has_budget and case.norm != "l0" else {}
    ours = case.run(Victim(Shifted(model, mu, sigma), bounds=(0.0, width)), width * x, y, **radius)
    assert torch.equal(ours.success, plain.success) and torch.equal(ours.queries, plain.queries)
    torch.testing.assert_close(ours.x_adv / width, plain.x_adv, rtol=0, atol=1e-6)


class Boxed(Counting):
    """Notes whether a question was outside the box."""

    def __init__(self, model: torch.nn.Module, low: Tensor, high: Tensor) -> None:
        super().__init__(model)
        self.ends, self.strayed = (low, high), False

    def forward(self, x: Tensor) -> Tensor:
        points = x.detach()
        self.strayed |= not bool(((points >= self.ends[0]) & (points <= self.ends[1])).all())
        return super().forward(x)


@pytest.mark.slow
@over(*CASES)
def test_equal_ends(case: Case, device: torch.device) -> None:
    check_equal_ends(case, device)


@pytest.mark.slow
@over(*CASES)
def test_normalized(case: Case, device: torch.device) -> None:
    check_normalized(case, device, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262))


@pytest.mark.slow
@over(*(case for case in CASES if not case.takes("density")))  # a density is told of points of one box
def test_translated(case: Case, device: torch.device) -> None:
    check_translated(case, device)


@pytest.mark.slow
@over(*(case for case in CASES if not case.takes("density")))  # a density is told of points of one box
def test_scaled(case: Case, device: torch.device) -> None:
    check_scaled(case, device)
