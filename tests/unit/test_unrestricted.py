"""The contest's rule, counted by hand and against brute force; and an undefended model that loses it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab import data, zoo
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import spatial
from robustlab.evaluation import Contest, Submission, unanimous, unrestricted


class Ruler(nn.Module):
    """Two classes, one pixel: the logits' lead is 10·(x − ½), so that confidence can be read off the input."""

    def forward(self, x: Tensor) -> Tensor:
        z = 10 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([torch.zeros_like(z), z], dim=1)


def submit(points: Tensor) -> Any:
    """An attack that always submits the same."""

    def attack(victim: Victim, x: Tensor, y: Tensor, *, ids: Tensor) -> AttackResult:
        with victim.session(x, y, ids=ids) as session:
            return session.result(points[ids])

    return attack


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


CLEAN = column(0.1, 0.2, 0.45, 0.7, 0.9), torch.tensor([0, 0, 0, 1, 1])  # leads 4, 3, 0.5, 2, 4


@pytest.mark.parametrize(
    ("coverage", "threshold"), [(0.8, 2.0), (0.79, 2.0), (0.61, 2.0), (0.6, 3.0), (1.0, 0.5), (0.01, 4.0)]
)
def test_threshold_is_the_highest_that_covers_enough(coverage: float, threshold: float) -> None:
    contest = unrestricted(Ruler(), CLEAN, attacks={}, coverage=coverage)
    assert contest.threshold == pytest.approx(threshold)
    assert float(contest.clean.answered.double().mean()) >= coverage
    higher = contest.clean.confidence > threshold + 1e-9
    assert float(higher.double().mean()) < coverage, "a higher threshold would do as well"


def test_only_confident_mistakes_on_unambiguous_inputs_break_it() -> None:
    x, y = CLEAN
    quiet = {"unsure": submit(column(0.6, 0.6, 0.6, 0.4, 0.4))}  # all wrong, with a lead of 1: it abstains
    contest = unrestricted(Ruler(), x, y, attacks=quiet)
    assert contest.eligible and not contest.broken and contest.attacks["unsure"].correct.tolist() == [False] * 5
    loud = {"one": submit(column(0.1, 0.2, 0.45, 0.7, 0.2))}  # the last one is wrong with a lead of 3
    contest = unrestricted(Ruler(), x, y, attacks=loud)
    assert contest.broken and contest.attacks["one"].mistakes.tolist() == [False] * 4 + [True]
    judged = unrestricted(Ruler(), x, y, attacks=loud, judge=lambda x_adv, y: torch.tensor([True] * 4 + [False]))
    assert not judged.broken
    assert "one: 4 unambiguous, 3 answered, 0 confident mistakes" in judged.summary()


def test_a_model_that_errs_confidently_on_clean_inputs_is_not_eligible() -> None:
    x, y = CLEAN
    assert not unrestricted(Ruler(), x, 1 - y, attacks={}).eligible
    assert unrestricted(
        Ruler(), column(0.1, 0.2, 0.55, 0.7, 0.9), y, attacks={}
    ).eligible  # wrong on the one it declines
    assert not unrestricted(Ruler(), column(0.1, 0.2, 0.55, 0.7, 0.9), y, attacks={}, coverage=1.0).eligible


def test_error_against_coverage_is_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(50, generator=generator, dtype=torch.float64)
    correct, clear = (torch.rand(50, generator=generator) < 0.7 for _ in range(2))
    part = Submission(confidence, correct, clear, torch.ones(50, dtype=torch.bool))
    coverage, error = part.curve()
    kept = [(float(c), bool(r)) for c, r, u in zip(confidence, correct, clear, strict=True) if u]
    kept.sort(reverse=True)
    assert len(kept) == len(coverage)
    for k in range(1, len(kept) + 1):
        assert float(coverage[k - 1]) == pytest.approx(k / len(kept))
        assert float(error[k - 1]) == pytest.approx(sum(not right for _, right in kept[:k]) / k)
    for share in (0.05, 0.5, 0.8, 1.0):
        most = [right for c, right in kept][: max(1, -int(-share * len(kept) // 1))]
        assert part.accuracy_at(share) == pytest.approx(sum(most) / len(most))


def test_unanimous_votes() -> None:
    votes = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, -1], [2, 2, 2]])
    assert unanimous(votes, torch.tensor([1, 1, 0, 1])).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match=r"^votes: want shape \(4, J\)"):
        unanimous(votes[:, 0], torch.tensor([1, 1, 0, 1]))


def test_an_undefended_model_loses_to_rotations() -> None:
    """The shipped digit model is eligible on what it knows best, and a rotated digit breaks it."""
    d, model = data.load("mnist5k"), zoo.load("mnist_cnn")
    x, y = d.x_test[:100], d.y_test[:100]
    search = partial(spatial, grid=(7, 3, 3))
    contest = unrestricted(model, x, y, attacks={"spatial": search})
    assert isinstance(contest, Contest) and contest.eligible and contest.broken
    aware = contest.attacks["spatial"]
    assert bool((aware.confidence[aware.mistakes] >= contest.threshold).all())

    def naive(victim: Any, x: Tensor, y: Tensor, *, ids: Tensor) -> AttackResult:
        return search(victim, x, y, ids=ids)  # stops at the first mistake, however unsure

    unaware = unrestricted(model, x, y, attacks={"spatial": naive}).attacks["spatial"]
    assert int(unaware.mistakes.sum()) < int(aware.mistakes.sum())
    assert int((~unaware.correct).sum()) > int(unaware.mistakes.sum())


def test_batches_do_not_matter() -> None:
    d, model = data.load("mnist5k"), zoo.load("mnist_cnn").double()
    x, y = d.x_test[:30].double(), d.y_test[:30]
    search = {"random": partial(spatial, search="random", k=5)}
    one, other = (unrestricted(model, x, y, attacks=search, batch_size=size) for size in (7, 30))
    torch.testing.assert_close(one.attacks["random"].confidence, other.attacks["random"].confidence)
    assert one.threshold == pytest.approx(other.threshold)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"coverage": 0.0}, "coverage: want"),
        ({"coverage": 1.1}, "coverage: want"),
        ({"batch_size": 0}, "batch_size: want"),
        ({"data": (CLEAN[0][:0], CLEAN[1][:0])}, "x: want"),
        ({"data": (CLEAN[0] * 3, CLEAN[1])}, "x: want"),
        ({"attacks": {"same": submit(CLEAN[0])}, "judge": lambda x, y: y}, "judge: want"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], error: str) -> None:
    arguments = {"data": CLEAN, "attacks": {}, **wrong}
    with pytest.raises(ValueError, match=f"^{error}"):
        unrestricted(Ruler(), arguments.pop("data"), attacks=arguments.pop("attacks"), **arguments)
    with pytest.raises(TypeError, match=r"^y: want labels"):
        unrestricted(Ruler(), CLEAN[0], attacks={})  # type: ignore[arg-type]
