"""Attacks on tokens under the checks of the suite that ask for no floats, and a random substitution, as a toy method.

What is not checked here asks for floats: ε, norms, gradients, layouts, models that write into their input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tests.suite.test_bad_input as bad_input
import tests.suite.test_batch as in_batch
import tests.suite.test_success as success
from robustlab import checks
from robustlab.attacker.domain import Tokens
from robustlab.attacker.live import Best
from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.teaching.catalogue import Row
from tests.pretend.twins import twins
from tests.suite.any_domain import OF_ANY_DOMAIN, Check
from tests.suite.cases import TOKENS, Case, batch, cases
from tests.suite.models import Counting
from tests.suite.other_inputs import LENGTH, PADDING, VOCABULARY, Words, net, sentences


def substitution(
    victim: Any,
    x: Tensor,
    y: Tensor | None = None,
    *,
    changes: int = 2,
    queries: int = 30,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
) -> AttackResult:
    """Random search over sentences with at most ``changes`` other tokens: the one of smallest margin loss is kept."""
    checks.at_least("changes", changes, 1, integer=True)
    checks.at_least("queries", queries, 1, integer=True)
    g, victim = attacker_loss("margin"), Victim.of(victim)
    with victim.session(x, y, target=target, ids=ids, access="soft", domain=Tokens) as session:
        best, words = Best(session), session.domain.choices(x.device)  # type: ignore[attr-defined]
        live = session.live(noise=session.noise(seed))
        for k in range(queries):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            place = live.noise.permutation((k, 0), LENGTH)[:, :changes]
            word = words[live.noise.integers((k, 1), (changes,), len(words))]
            tried = live.x.scatter(1, place, word)
            live.points = torch.where(session.domain.movable(live.x), tried, live.x)  # type: ignore[attr-defined]
            answer = session.ask(live.points, live, g)
            best.keep(live, live.points, torch.where(answer.met, -torch.inf, answer.loss))
            live.leave(answer.met)
        return session.result(best.points, asked=True)


ROW = Row(
    key="substitution",
    title="Random substitution of tokens",
    cite="",
    kind="attack",
    chapter="14",
    targeted=True,
    access="soft",
    dims=("flat",),
    quick={"queries": 12},
)


@dataclass(frozen=True)
class TokenCase(Case):
    """A case whose inputs are tokens."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (LENGTH,)

    @property
    def domain(self) -> Tokens:
        return Tokens(VOCABULARY, fixed=(PADDING,))

    def net(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        return net(Words, seed).to(dtype)

    def points(self, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        return sentences(n, seed)

    def inside(self, x: Tensor) -> bool:
        return bool(((x >= 0) & (x < VOCABULARY)).all())

    def run(self, model: Any, x: Any, y: Any, **changes: Any) -> AttackResult:
        """On a victim that takes tokens, and is else as the one given."""
        given = model if isinstance(model, Victim) else Victim(model, access=self.row.access)  # type: ignore[arg-type]
        victim = Victim(given.model, domain=self.domain, access=given.access, budget=given.budget, mode=given.mode)
        return super().run(victim, x, y, **changes)


TOYS = [TokenCase(ROW, substitution, None, targeted) for targeted in (False, True)]
CASES = [*TOYS, *(TokenCase(**vars(case)) for case in cases(TOKENS))]
TARGETED = [case for case in CASES if case.targeted]


def check_domain(case: TokenCase, device: torch.device) -> None:
    """Form, vocabulary, padding, number of changes, distance and success, each from its definition."""
    model, x, y = batch(case, device, n=20, seed=2)
    seen = Counting(model)
    result = case.run(seen, x, y, changes=2)
    assert result.x_adv.shape == x.shape and result.x_adv.dtype == x.dtype and result.x_adv.device == x.device
    assert case.inside(result.x_adv) and seen.low >= 0 and seen.high < VOCABULARY, "no tokens of the vocabulary"
    assert torch.equal(result.x_adv == PADDING, x == PADDING), "padding was changed or brought in"
    pairs = zip(x.tolist(), result.x_adv.tolist(), strict=True)
    changed = torch.tensor([sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairs])
    assert int(changed.max()) <= 2 and result.distances.keys() == {"tokens"}
    assert torch.equal(result.distances["tokens"].cpu(), changed)
    assert torch.equal(result.radius("tokens").isinf(), ~result.success)
    with torch.no_grad():
        assert torch.equal(case.goal(model(result.x_adv), y), result.success)
    assert bool(result.success.any())
    calls = seen.calls
    assert len(case.run(seen, x[:0], y[:0])) == 0 and seen.calls == calls


def check_refusals(case: TokenCase, device: torch.device) -> None:
    model, x, y = batch(case, device, n=3)
    seen = Counting(model)
    low, high = x.clone(), x.clone()
    low[1, 2], high[1, 2] = -1, VOCABULARY
    for wrong, error, message in (
        (low, ValueError, r"^x: want tokens in 0 … 11, got tokens in -1 … "),
        (high, ValueError, r"^x: want tokens in 0 … 11, got tokens in \d+ … 12"),
        (x.int(), TypeError, r"^x: want tokens, int64 of shape \(N, T\), got torch.int32 of shape \(3, 5\)"),
        (x.double(), TypeError, r"^x: want tokens, int64"),
        (x[0], TypeError, r"^x: want tokens, int64"),
        (x.tolist(), TypeError, r"^x: want tokens, .* got list"),
    ):
        with pytest.raises(error, match=message):
            case.run(seen, wrong, y)
    with pytest.raises(TypeError, match=r"^victim: this attack wants inputs of Tokens, got Box\(0.0, 1.0\)"):
        case.attack(Victim(seen), x, y, **case.arguments())
    assert seen.calls == 0


def check_twin(case: TokenCase) -> None:
    """Three sentences on the pretend device, one of them misclassified."""

    def run(device: torch.device) -> AttackResult:
        model, x, y = batch(case, device, n=5)
        y[1] = (y[1] + 1) % case.classes
        return case.run(model, x[1:4], y[1:4], seed=3)

    twins(run, rtol=1e-9, atol=1e-9)


CHECKS: dict[str, Check] = {
    **OF_ANY_DOMAIN,
    "domain": check_domain,
    "refusals": check_refusals,
    "success": lambda case, device: success.check_success_is_true(case, device, torch.float64),
    "success, float32": lambda case, device: success.check_success_is_true(case, device, torch.float32),
    "access": bad_input.check_access,
    "models": bad_input.check_bad_models,
    "pretend device": lambda case, device: check_twin(case),
}


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_suite(case: TokenCase, check: str, device: torch.device) -> None:
    CHECKS[check](case, device)


@pytest.mark.parametrize("case", TARGETED, ids=str)
def test_targeted_means_targeted(case: TokenCase, device: torch.device) -> None:
    success.check_targeted_means_targeted(case, device)
    in_batch.check_scalars_stand_for_all(case, device)
    bad_input.check_target_names_the_rows(case, device)


# Seen to fail --------------------------------------------------------------------------------------------------------


def planted(name: str, change: Callable[..., AttackResult]) -> TokenCase:
    """The attack with one bug: ``change(victim, x, y, **arguments)`` in its place."""
    assert name in CHECKS
    return replace(CASES[0], attack=functools.wraps(substitution)(change))


def extra_query(victim: Victim, x: Tensor, y: Any = None, **kw: Any) -> AttackResult:
    victim.model(x)  # type: ignore[operator]
    return substitution(victim, x, y, **kw)


def global_randomness(victim: Victim, x: Tensor, y: Any = None, *, seed: int = 0, **kw: Any) -> AttackResult:
    return substitution(victim, x, y, seed=int(torch.randint(10**6, ())), **kw)


def own_ids(victim: Victim, x: Tensor, y: Any = None, *, ids: Any = None, **kw: Any) -> AttackResult:
    return substitution(victim, x, y, **kw)


def no_budget(victim: Victim, x: Tensor, y: Any = None, **kw: Any) -> AttackResult:
    return substitution(Victim(victim.model, domain=victim.domain), x, y, **kw)


def padding_too(victim: Victim, x: Tensor, y: Any = None, **kw: Any) -> AttackResult:
    return substitution(Victim(victim.model, domain=Tokens(VOCABULARY)), x, y, **kw)


def many(victim: Victim, x: Tensor, y: Any = None, *, changes: int = 2, **kw: Any) -> AttackResult:
    return substitution(victim, x, y, changes=changes + 1, **kw)


def nudged(victim: Victim, x: Tensor, y: Any = None, **kw: Any) -> AttackResult:
    result = substitution(victim, x, y, **kw)
    return replace(result, x_adv=result.x_adv.roll(1, dims=1))


def writes(victim: Victim, x: Tensor, y: Any = None, **kw: Any) -> AttackResult:
    result = substitution(victim, x, y, **kw)
    x[0, 0] = 3 - x[0, 0] % 2
    return result


@pytest.mark.parametrize(
    ("check", "bug"),
    [
        ("counts", extra_query),
        ("determinism", global_randomness),
        ("side effects", global_randomness),
        ("batch", own_ids),
        ("ids", own_ids),
        ("budget 3", no_budget),
        ("domain", padding_too),
        ("domain", many),
        ("success", nudged),
        ("untouched", nudged),
        ("side effects", writes),
    ],
)
def test_the_checks_catch(check: str, bug: Callable[..., AttackResult]) -> None:
    with pytest.raises(AssertionError):
        CHECKS[check](planted(check, bug), torch.device("cpu"))
