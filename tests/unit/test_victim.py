"""Victim and Session by themselves: what attacks of every access level will rely on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacker.losses import ATTACKER_LOSSES
from robustlab.attacker.victim import Victim, accuracy, predict
from robustlab.attacks import apgd, cw, deepfool, fab, pgd, square
from robustlab.evaluation import evaluate
from robustlab.verification import clever
from tests.suite.models import Counting


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
    assert repr(victim) == "Victim(Linear, Box(0.0, 1.0), access='white', budget=5)"


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
    with pytest.raises(TypeError, match=r"model: want an nn.Module, a graph or .* under white access, got function"):
        Victim(lambda x: x)
    Victim(lambda x: x, access="soft")
    with pytest.raises(TypeError, match="model: want a callable"):
        Victim(3, access="hard")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got a Victim"):
        Victim(Victim(linear()))  # type: ignore[arg-type]


def test_goals_at_x() -> None:
    y = torch.tensor([0, 2, 2])
    with Victim(linear()).session(X, y) as session:
        # Row 2 is a tie of all three classes, which argmax gives to class 0.
        assert session.active.tolist() == [0]
        assert session.queries.tolist() == [1, 1, 1] and session.first_success.tolist() == [-1, 1, 1]
    with Victim(linear()).session(X, target=1) as session:
        assert session.active.tolist() == [0, 2] and session.y.tolist() == [0, 1, 0]


def test_kappa_is_part_of_the_goal() -> None:
    with Victim(linear()).session(X[:2], torch.tensor([1, 0]), kappa=0.6) as session:
        assert session.active.tolist() == [1]  # margins 0.8 and 0.5
        assert session.met(torch.tensor([[0.0, 0.7, 0.0]]), session.live()).tolist() == [True]


def test_answers_match_autograd() -> None:
    model, rows = linear(), torch.tensor([1, 0])
    with Victim(model).session(X, Y) as session:
        points, live = X[rows] * 0.5, session.of(rows)
        answer = session.gradient(points, live, ATTACKER_LOSSES["ce"])
        also, classes, jacobian = session.jacobian(points, live, lambda z: z.argsort(1)[:, -2:])
        asked = session.ask(points, live)
        assert session.queries.tolist() == [4, 4, 1]
        assert session.gradients.tolist() == [2, 2, 0]
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
    with Victim(linear(), access="soft").session(X, Y, access="soft") as session:
        rows = session.everyone()
        session.ask(X, rows)
        with pytest.raises(ValueError, match="access: this question needs 'white'"):
            session.gradient(X, rows, ATTACKER_LOSSES["ce"])
        with pytest.raises(ValueError, match="access: this question needs 'white'"):
            session.jacobian(X, rows, lambda z: z.argsort(1))
    with Victim(linear(), access="hard").session(X, Y, access="hard") as session:
        assert session.clean is None
        rows = session.everyone()
        labels, met = session.ask_labels(X, rows)
        assert labels.tolist() == [0, 1, 0] and met.tolist() == [False, False, True]
        assert session.ask_many_labels(X[:, None].repeat(1, 2, 1), rows).tolist() == [[False] * 2] * 2 + [[True] * 2]
        assert session.queries.tolist() == [4, 4, 4]
        with pytest.raises(ValueError, match="access: this question needs 'soft'"):
            session.ask(X, rows)


@pytest.mark.parametrize("change", [lambda x: x + 0.2, lambda x: x - 0.01, lambda x: x * torch.nan])
def test_nothing_outside_the_box_is_asked(change: Callable[[Tensor], Tensor]) -> None:
    """What an attack asks outside the box reaches the model clipped, and the attack fails at its end."""
    model = Counting(linear())
    with Victim(model).session(X, Y) as session:
        session.ask(change(X), session.everyone())
        assert model.low >= 0 and model.high <= 1
        with pytest.raises(RuntimeError, match="outside the domain Box"):
            session.result()


def test_budget_keeps_one_query_for_the_final_check() -> None:
    with Victim(linear(), budget=4).session(X, Y) as session:
        rows, live = session.active, session.live()
        paying = [session.can_pay(live, cost) for cost in (1, 2, 3)]
        assert [mask if mask is None else mask.tolist() for mask in paying] == [None, None, [False, False]]  # None: all
        session.ask(live.x, live)
        session.ask(live.x, live)
        assert session.can_pay(live).tolist() == [False, False]  # type: ignore[union-attr]
        assert session.result(live.x).queries[rows].tolist() == [4, 4]


def test_first_success_counts_queries() -> None:
    with Victim(linear()).session(X[:1], Y[:1]) as session:
        row = session.everyone()
        session.ask(X[:1], row)
        session.ask(X[1:2], row)
        session.ask(X[1:2], row)
        result = session.result(X[1:2])
    assert result.first_success.tolist() == [3] and result.queries.tolist() == [5]


def test_revert_returns_x_where_it_fails() -> None:
    moved = torch.tensor([[0.1, 0.9], [0.3, 0.6], [0.5, 0.5]])
    with Victim(linear()).session(X, torch.tensor([0, 1, 0])) as session:
        result = session.result(moved, revert=True)
    assert result.success.tolist() == [True, False, False]
    assert torch.equal(result.x_adv, torch.stack([moved[0], X[1], X[2]]))


def test_secure_asks_for_a_margin_that_survives_rounding() -> None:
    """1e-4 of the logits that are compared, or of those at x; whatever is said of a class that plays no part."""
    with Victim(linear()).session(X, Y) as session:
        rows = session.of(torch.tensor([0]))
        rows.logit_size = torch.tensor([2.0])
        assert session.secure(torch.tensor([[0.0, 2.1e-4, -1.0]]), rows).tolist() == [True]
        assert session.secure(torch.tensor([[0.0, 1.9e-4, -1.0]]), rows).tolist() == [False]
        assert session.secure(torch.tensor([[0.0, 2.1e-4, -1e9]]), rows).tolist() == [True]
        assert session.secure(torch.tensor([[100.0, 100.005, -1.0]]), rows).tolist() == [False]
        rows.logit_size = torch.tensor([0.0])
        assert session.secure(torch.tensor([[0.0, 0.0, -1.0]]), rows).tolist() == [False], "a tie is no success"


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


@pytest.mark.parametrize("wrong", [Y[:, None], Y[:1], Y.float(), Y == 1, Y.tolist()])
def test_accuracy_refuses_what_are_no_labels(wrong: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^y: want"):
        accuracy(linear(), X, wrong)


def test_probabilities_become_logits() -> None:
    model = nn.Sequential(linear(), nn.Softmax(dim=1))
    with Victim(model, output="probs").session(X, Y) as session:
        torch.testing.assert_close(session.clean, model(X).log().detach())


def test_double_use_of_one_victim() -> None:
    """A Victim holds no state of a call: two at once do not disturb one another."""
    victim = Victim(linear())
    with victim.session(X, Y) as first, victim.session(X, Y) as second:
        first.ask(X, first.everyone())
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
    with Victim(model).session(X, torch.tensor([0, 1, 1])):
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


class LeNet(nn.Module):
    """The net of PyTorch's own example, which flattens by ``view``: impossible in channels-last."""

    def __init__(self, channels: int, by_view: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(channels, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)
        self.by_view = by_view

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.view(-1, 320) if self.by_view else x.flatten(1))))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_cannot_bear_channels_last_keeps_the_callers_layout(channels: int) -> None:
    x = torch.rand(6, channels, 28, 28, generator=torch.Generator().manual_seed(0))
    viewed, flattened = LeNet(channels, True), LeNet(channels, False)
    y = predict(viewed, x)
    for attack, settings in (
        (pgd, {"eps": 0.03, "steps": 5}),
        (square, {"eps": 0.1, "queries": 30}),
        (deepfool, {}),
    ):
        ours, theirs = (attack(model, x, y, **settings) for model in (viewed, flattened))
        assert torch.equal(ours.queries, theirs.queries) and torch.equal(ours.gradients, theirs.gradients)
        assert torch.equal(ours.success, theirs.success)
        torch.testing.assert_close(ours.x_adv, theirs.x_adv, rtol=0, atol=1e-5)
    curves = [evaluate(model, x, y, attack=pgd, eps=[0.02, 0.05], steps=4) for model in (viewed, flattened)]
    assert torch.equal(curves[0].accuracy, curves[1].accuracy) and torch.equal(curves[0].queries, curves[1].queries)
    scores = [clever(model, x, y, radius=0.1, batches=3, samples=4).value for model in (viewed, flattened)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


class Clumsy(nn.Module):
    """Fails in channels-last, and where told so in any layout; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.broken = nn.Conv2d(3, 2, 4), 0, False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.broken:
            raise RuntimeError(f"broken, contiguous: {x.is_contiguous()}")
        return self.layer(x.view(-1, 3, 4, 4) + 0 * x.view(-1)[0]).flatten(1)


def test_the_layout_is_tried_once_in_a_call() -> None:
    model, x = Clumsy(), torch.rand(5, 3, 4, 4)
    y = predict(model, x)
    model.calls = 0
    with Victim(model).session(x, y) as session:
        live = session.everyone()
        session.gradient(x, live, ATTACKER_LOSSES["ce"])
        session.ask(x, live)
        session.ask_many(x[:, None], live)
        session.jacobian(x, live, lambda z: z.argsort(1))
        assert model.calls == 6, "at x, in vain, and four questions"
        assert session.queries.tolist() == [5] * 5 and session.gradients.tolist() == [2] * 5
        session.result(x)
    with Victim(model).session(x, y) as session:
        model.broken = True
        with pytest.raises(RuntimeError, match="broken, contiguous: True"):
            session.gradient(x, session.everyone(), ATTACKER_LOSSES["ce"])
        assert session.queries.tolist() == [1] * 5 and session.gradients.tolist() == [0] * 5


class Viewing(torch.autograd.Function):
    """The identity, with a backward pass that only works in the usual layout."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.view(-1).view(grad.shape)


def test_a_backward_pass_that_cannot_bear_channels_last() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Viewing.apply(self.conv(x).relu()).mean(dim=(2, 3))

    x = torch.rand(5, 3, 6, 6)
    with Victim(Net()).session(x) as session:
        answer = session.gradient(x, session.everyone(), ATTACKER_LOSSES["ce"])
        assert (
            answer.grad.shape == x.shape
            and session.queries.tolist() == [2] * 5
            and session.gradients.tolist() == [1] * 5
        )


class Says(nn.Module):
    """A net whose logits have another dtype than its input, as with autocast inside."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = linear(), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_another_dtype(dtype: torch.dtype) -> None:
    odd, plain = Says(dtype), nn.Sequential(Says(dtype), Says(torch.float32))
    plain[1].net = nn.Identity()  # type: ignore[assignment]
    for attack, settings in (
        (pgd, {"eps": 0.3, "steps": 3}),
        (apgd, {"eps": 0.3, "steps": 5}),
        (fab, {"steps": 5}),
        (deepfool, {}),
        (cw, {"steps": 5}),
    ):
        ours, theirs = (attack(model, X, torch.tensor([0, 1, 0]), **settings) for model in (odd, plain))
        assert ours.x_adv.dtype == torch.float32
        assert torch.equal(ours.success, theirs.success) and torch.equal(ours.x_adv, theirs.x_adv)


def test_the_judge_sees_a_margin_that_single_precision_does_not() -> None:
    class Close(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0 * x[:, 0], 0 * x[:, 0] + 1e-12], dim=1).double() + 1

    with Victim(Close()).session(X, torch.tensor([1, 1, 0])) as session:
        assert session.active.tolist() == [0, 1]
        assert session.clean is not None and session.clean.dtype == torch.float32
        assert session.ask(X, session.everyone()).logits.dtype == torch.float32
        assert session.result(X[:2]).success.tolist() == [False, False, True]
