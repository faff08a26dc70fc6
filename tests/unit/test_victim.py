"""Victim and Call by themselves: what attacks of every access level will rely on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacks import pgd
from robustlab.losses import ATTACKER_LOSSES
from robustlab.victim import Victim, accuracy, predict


def linear() -> nn.Module:
    model = nn.Linear(2, 3, bias=False)
    model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    return model


X = torch.tensor([[0.9, 0.1], [0.2, 0.7], [0.0, 0.0]])
Y = torch.tensor([0, 1, 2])


def test_of_wraps_models_and_passes_victims() -> None:
    victim = Victim(linear(), budget=5)
    assert Victim.of(victim) is victim
    assert Victim.of(victim.model).budget is None
    assert repr(victim) == "Victim(Linear, bounds=(0.0, 1.0), access='white', budget=5)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bounds": (1.0, 0.0)}, "bounds: want"),
        ({"bounds": (0.0, 0.0)}, "bounds: want"),
        ({"bounds": (0.0, float("nan"))}, "bounds: want"),
        ({"access": "grey"}, "access: want one of"),
        ({"output": "scores"}, "output: want one of"),
        ({"mode": "train"}, "mode: want one of"),
        ({"budget": 1}, "budget: want at least 2"),
        ({"budget": 2.5}, "budget: want an integer"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Victim(linear(), **arguments)  # type: ignore[arg-type]


def test_a_function_is_a_black_box_only() -> None:
    with pytest.raises(TypeError, match=r"model: want an nn.Module under white access, got function"):
        Victim(lambda x: x)
    Victim(lambda x: x, access="soft")
    with pytest.raises(TypeError, match="model: want a callable"):
        Victim(3, access="hard")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got a Victim"):
        Victim(Victim(linear()))  # type: ignore[arg-type]


def test_goals_at_x() -> None:
    y = torch.tensor([0, 2, 2])
    with Victim(linear()).call(X, y) as call:
        # Row 2 is a tie of all three classes, which argmax gives to class 0.
        assert call.active.tolist() == [0]
        assert call.queries.tolist() == [1, 1, 1] and call.first_success.tolist() == [-1, 1, 1]
    with Victim(linear()).call(X, target=1) as call:
        assert call.active.tolist() == [0, 2] and call.y.tolist() == [0, 1, 0]


def test_kappa_is_part_of_the_goal() -> None:
    with Victim(linear()).call(X[:2], torch.tensor([1, 0]), kappa=0.6) as call:
        assert call.active.tolist() == [1]  # margins 0.8 and 0.5
        assert call.met(torch.tensor([[0.0, 0.7, 0.0]]), call.active).tolist() == [True]


def test_answers_match_autograd() -> None:
    model, rows = linear(), torch.tensor([1, 0])
    with Victim(model).call(X, Y) as call:
        points = X[rows] * 0.5
        answer = call.gradient(points, rows, ATTACKER_LOSSES["ce"])
        also, classes, jacobian = call.jacobian(points, rows, lambda z: z.argsort(1)[:, -2:])
        asked = call.ask(points, rows)
        assert call.queries.tolist() == [4, 4, 1]
        assert call.gradients.tolist() == [2, 2, 0]
    points.requires_grad_(True)
    logits = model(points)
    loss = -nn.functional.cross_entropy(logits, Y[rows], reduction="sum")
    torch.testing.assert_close(answer.grad, torch.autograd.grad(loss, points)[0])
    for result in (answer, also, asked):
        torch.testing.assert_close(result.logits, logits.detach())
        assert not result.logits.requires_grad
    weight = model.weight.detach()[classes]
    torch.testing.assert_close(jacobian, weight[:, 1:] - weight[:, :1])


def test_access_limits_questions() -> None:
    rows = torch.arange(3)
    with Victim(linear(), access="soft").call(X, Y, access="soft") as call:
        call.ask(X, rows)
        with pytest.raises(ValueError, match="access: this question needs 'white'"):
            call.gradient(X, rows, ATTACKER_LOSSES["ce"])
        with pytest.raises(ValueError, match="access: this question needs 'white'"):
            call.jacobian(X, rows, lambda z: z.argsort(1))
    with Victim(linear(), access="hard").call(X, Y, access="hard") as call:
        assert call.clean is None
        labels, met = call.ask_labels(X, rows)
        assert labels.tolist() == [0, 1, 0] and met.tolist() == [False, False, True]
        with pytest.raises(ValueError, match="access: this question needs 'soft'"):
            call.ask(X, rows)


def test_nothing_outside_the_box_is_asked() -> None:
    with Victim(linear()).call(X, Y) as call:
        for points in (X + 0.2, X - 0.01, X * torch.nan):
            with pytest.raises(RuntimeError, match="outside the box"):
                call.ask(points, torch.arange(3))
        assert call.queries.tolist() == [1, 1, 1]


def test_budget_keeps_one_query_for_the_final_check() -> None:
    with Victim(linear(), budget=4).call(X, Y) as call:
        rows = call.active
        assert call.can_pay(rows).all() and call.can_pay(rows, 2).all() and not call.can_pay(rows, 3).any()
        call.ask(X[rows], rows)
        call.ask(X[rows], rows)
        assert not call.can_pay(rows).any()
        assert call.result(X).queries[rows].tolist() == [4, 4]


def test_first_success_counts_queries() -> None:
    with Victim(linear()).call(X[:1], Y[:1]) as call:
        row = torch.tensor([0])
        call.ask(X[:1], row)
        call.ask(X[1:2], row)
        call.ask(X[1:2], row)
        result = call.result(X[1:2])
    assert result.first_success.tolist() == [3] and result.queries.tolist() == [5]


def test_revert_returns_x_where_it_fails() -> None:
    moved = torch.tensor([[0.1, 0.9], [0.3, 0.6], [0.5, 0.5]])
    with Victim(linear()).call(X, torch.tensor([0, 1, 0])) as call:
        result = call.result(moved, revert=True)
    assert result.success.tolist() == [True, False, False]
    assert torch.equal(result.x_adv, torch.stack([moved[0], X[1], X[2]]))


def test_secure_asks_for_a_margin_that_survives_rounding() -> None:
    with Victim(linear()).call(X, Y) as call:
        rows = torch.tensor([0])
        assert call.secure(torch.tensor([[0.0, 1.1e-4, -1.0]]), rows).tolist() == [True]
        assert call.secure(torch.tensor([[0.0, 0.9e-4, -1.0]]), rows).tolist() == [False]
        assert call.secure(torch.tensor([[100.0, 100.005, -1.0]]), rows).tolist() == [False]


def test_predict_and_accuracy(device: torch.device) -> None:
    model = nn.Sequential(nn.Dropout(0.9), linear()).to(device).train()
    x, y = X.to(device), Y.to(device)
    state = torch.get_rng_state()
    for size in (1, 2, 500):
        assert predict(model, x, batch_size=size).tolist() == [0, 1, 0]
    assert accuracy(model, x, y) == pytest.approx(2 / 3)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert predict(model, x[:0]).shape == (0,)


def test_probabilities_become_logits() -> None:
    model = nn.Sequential(linear(), nn.Softmax(dim=1))
    with Victim(model, output="probs").call(X, Y) as call:
        torch.testing.assert_close(call.clean, model(X).log().detach())


def test_double_use_of_one_victim() -> None:
    """A Victim holds no state of a call: two at once do not disturb one another."""
    victim = Victim(linear())
    with victim.call(X, Y) as first, victim.call(X, Y) as second:
        first.ask(X, torch.arange(3))
        assert second.queries.tolist() == [1, 1, 1] and first.queries.tolist() == [2, 2, 2]
    assert all(p.requires_grad for p in victim.model.parameters())  # type: ignore[union-attr]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_shared_modules_and_frozen_parameters_are_restored() -> None:
    model = Tied()
    model.a.bias.requires_grad_(False)
    with Victim(model).call(X, torch.tensor([0, 1, 1])):
        assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert model.training and model.a.weight.requires_grad and not model.a.bias.requires_grad


def test_the_search_may_change_the_memory_layout_but_the_judge_does_not() -> None:
    """On a CPU convolutions are faster in channels-last; the first and the last question keep the caller's layout."""
    seen = []

    class Watching(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last)))
            return super().forward(x).flatten(1)

    x = torch.rand(5, 3, 4, 4)
    result = pgd(Watching(3, 2, 4), x, torch.zeros(5, dtype=torch.int64), norm="l2", eps=8.0, steps=3)
    assert bool(result.success.any())
    assert seen[0] == seen[-1] == (True, False)
    assert set(seen[1:-1]) == {(False, True)}
    seen.clear()
    pgd(Watching(3, 2, 4).double(), x.double(), norm="l2", eps=1e-3, steps=3)
    assert set(seen) == {(True, False)}
