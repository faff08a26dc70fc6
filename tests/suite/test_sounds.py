"""Attacks on what is heard in sounds, under the concerns of the suite that ask for no classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import bypass_temporal, transcript
from robustlab.attacks.whitebox.transcript import Heard
from robustlab.models import transcripts
from tests.pretend.twins import twins
from tests.suite.models import Counting
from tests.suite.other_inputs import FRAMES, Hears
from tests.suite.test_no_side_effects import assert_unchanged, snapshot

T = 4 * FRAMES
Attack = Callable[..., AttackResult]
each = pytest.mark.parametrize("attack", [transcript], ids=["transcript"])
WAYS = ("segment", "concatenation", "combination")


def sounds(n: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n, T, generator=generator, dtype=torch.float64) * 1.6 - 0.8).to(dtype)


def other(model: nn.Module, x: Tensor) -> Tensor:
    """As targets, what is heard halfway to another sound."""
    return transcripts(model(mixed(x)))


def mixed(x: Tensor) -> Tensor:
    return 0.5 * x + 0.5 * x.roll(1, 0)


def parts(model: nn.Module, x: Tensor) -> dict[str, object]:
    """The first half is to be heard as it was, whatever is heard of the whole."""
    mask = (torch.arange(T) < T // 2).expand(len(x), -1)
    return {"target": other(model, x), "also": [Heard(mask, transcripts(model(x * mask)))]}


@each
@pytest.mark.parametrize("with_part", [False, True])
def test_counts(attack: Attack, with_part: bool) -> None:
    model, x = Hears().double(), sounds()
    told = parts(model, x) if with_part else {"target": other(model, x)}
    model, share = Counting(model), 1 + with_part
    result = attack(model, x, eps=0.3, steps=15, **told)
    assert model.forwards == int(result.queries.sum()) and model.backwards == int(result.gradients.sum())
    failed = ~result.success
    assert (result.queries[failed] == 17 * share).all() and (result.gradients[failed] == 16 * share).all()
    won = result.success & (result.queries > share)
    assert bool(won.any()) and torch.equal(result.first_success[won], result.queries[won] - share)
    assert (result.first_success[failed] == -1).all()
    for budget in (2 * share, 3 * share, 7 * share):
        spent = attack(Victim(model.model, bounds=(-1, 1), answer="sequence", budget=budget), x, eps=0.3, **told)
        assert int(spent.queries.max()) <= budget
    done = attack(model, x, target=transcripts(model(x)), eps=0.3)
    assert done.success.all() and (done.queries == 1).all() and torch.equal(done.x_adv, x)


@each
def test_what_is_heard_at_x_is_asked_once(attack: Attack) -> None:
    """Where nobody says what is said, the look at x is the one by which that is known."""
    model, x = Counting(Hears().double()), sounds()
    result = attack(model, x, eps=0.3, steps=6)
    assert model.forwards == int(result.queries.sum()) and (result.queries > 1).all() and bool(result.success.any())


@each
def test_an_answer_that_is_no_number_is_no_success(attack: Attack) -> None:
    class Broken(Hears):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where((x == start).all(dim=1)[:, None, None], super().forward(x), torch.nan)

    start = sounds(4)
    result = attack(Broken().double(), start, eps=0.3, steps=3)
    assert not result.success.any() and bool(torch.isfinite(result.x_adv).all())


@each
def test_a_sound_is_attacked_as_if_it_were_alone(attack: Attack) -> None:
    model, x = Hears().double(), sounds(6)
    told = parts(model, x)
    part = told["also"][0]  # type: ignore[index]
    whole = attack(model, x, eps=0.3, steps=12, seed=4, **told)
    torch.manual_seed(7)  # the global generator has no part in it
    again = attack(model, x, eps=0.3, steps=12, seed=4, **told)
    assert torch.equal(whole.x_adv, again.x_adv)
    for i in range(6):
        row = slice(i, i + 1)
        own = {"target": told["target"][row], "also": [Heard(part.mask[row], part.target[row])]}  # type: ignore[index]
        one = attack(model, x[row], eps=0.3, steps=12, seed=4, ids=torch.tensor([i]), **own)
        assert torch.allclose(one.x_adv, whole.x_adv[row], atol=1e-9) and one.queries[0] == whole.queries[i]


@each
def test_nothing_of_the_callers_is_changed(attack: Attack) -> None:
    model, x = nn.Sequential(Hears().double(), nn.Dropout(0.2)).train(), sounds(4)
    target, mask = torch.tensor([[0, 1]] * 4), torch.ones(4, T, dtype=torch.bool)
    before = snapshot(model, x, target, mask)
    attack(model, x, target=target, eps=0.2, steps=3, movable=mask)
    assert_unchanged(before, model, x, target, mask)


@each
def test_where_the_sounds_are(attack: Attack) -> None:
    """On the pretend device, as on the CPU."""

    def run(device: torch.device) -> AttackResult:
        model, x = Hears().double(), sounds(4)
        told = parts(model, x)
        part = told["also"][0]  # type: ignore[index]
        also = [Heard(part.mask.to(device), part.target.to(device))]
        target = told["target"].to(device)  # type: ignore[attr-defined]
        return attack(model.to(device), x.to(device), target=target, also=also, eps=0.3, steps=5)

    twins(run, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("way", [pytest.param(way, id=f"bypass_temporal-{way}") for way in WAYS])
def test_every_way_past_temporal_dependency(way: Any) -> None:
    """Counts, each sound as if it were alone, the same on the pretend device, and nothing of the caller's changed."""
    model, x, share = Hears().double(), sounds(5), torch.tensor([24, 20, 24, 16, 24])
    target = other(model, x)
    seen = Counting(model.train())
    before = snapshot(model, x, target)
    result = bypass_temporal(seen, x, target=target, way=way, lengths=share, eps=0.6, steps=8, seed=2)
    assert_unchanged(before, model, x, target)
    assert seen.forwards == int(result.queries.sum()) and seen.backwards == int(result.gradients.sum())
    for budget in (6, 9, 14):
        counted = Counting(seen.model)
        victim = Victim(counted, bounds=(-1, 1), answer="sequence", budget=budget)
        spent = bypass_temporal(victim, x, target=target, way=way, lengths=share, eps=0.6, seed=2)
        assert int(spent.queries.max()) <= budget == victim.budget
        assert counted.forwards == int(spent.queries.sum())
    for i in range(5):
        row = slice(i, i + 1)
        told = {"target": target[row], "way": way, "lengths": share[row], "ids": torch.tensor([i])}
        one = bypass_temporal(model, x[row], eps=0.6, steps=8, seed=2, **told)
        assert torch.allclose(one.x_adv, result.x_adv[row], atol=1e-9) and one.queries[0] == result.queries[i]

    def run(device: torch.device) -> AttackResult:
        told = {"target": target.to(device), "way": way, "lengths": share.to(device)}
        return bypass_temporal(Hears().double().to(device), x.to(device), eps=0.6, steps=4, **told)

    twins(run, rtol=1e-9, atol=1e-9)
