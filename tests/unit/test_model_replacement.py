"""Model replacement: the new global model is X to the last bit; the anomaly term has a slope; γ is the server's own."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.attacks import PatchTrigger, evaluate_backdoor, model_replacement, watch_backdoor
from robustlab.attacks.federated.malicious_update import MixedBatches, flat_parameters
from robustlab.training.clients import Client, LocalTraining, Turn
from robustlab.training.federated import simulate
from robustlab.training.updates import Delta, Divide, aggregate, apply_delta, difference, server_weights
from tests.suite.training.cases import CLASSES, TARGET, images, trained

LONG: Any = {"epochs": 20, "lower_every": 10, "batch_size": 30, "per_batch": 10}
attack = partial(model_replacement, target=TARGET, weight=0.1, epochs=1, batch_size=20, per_batch=6)


def equal(a: nn.Module, b: nn.Module) -> bool:
    """In all that a model answers with: everything but counters."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(s, t) for s, t in pairs if s.is_floating_point())


def nothing(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
    return difference(model, model)


@pytest.mark.slow
@pytest.mark.parametrize("divide", ["selected", "total"])
@pytest.mark.parametrize("eta", [1.0, 0.1, 0.7])
@pytest.mark.parametrize("bad", [1, 2, 3])
def test_the_new_global_model_is_x_exactly(divide: Divide, eta: float, bad: int) -> None:
    """Zero updates of the others; one attacker or several that share γ; weights and running statistics to the bit."""
    sent: list[Any] = []

    def client(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        sent.append(attack(model, data, weight=turn.weight, colluders=turn.colluders, seed=5))
        return sent[-1].delta

    team = [Client(images(), client if i < bad else None) for i in range(10)]
    run: Any = partial(simulate, trained(), team, rounds=1, selected=5, schedule={0: range(bad)}, honest=nothing)
    result = run(eta=eta, divide=divide)
    assert equal(result.model, sent[0].model) and not equal(result.model, trained())
    assert sent[0].gamma == pytest.approx({"selected": 5, "total": 10}[divide] / eta / bad)


@pytest.mark.parametrize(("mine", "servers", "reached"), [("total", "selected", 2.0), ("selected", "total", 0.5)])
def test_mixing_the_two_factors_misses_x(mine: Divide, servers: Divide, reached: float) -> None:
    """With 5 of 10 selected, the wrong γ moves twice as far as X, or half as far."""
    model = trained()
    w = {divide: server_weights([1] * 5, divide=divide, total=10)[0] for divide in (mine, servers)}
    update = attack(model, images(), weight=w[mine])
    delta = aggregate([update.delta, *[difference(model, model)] * 4], [w[servers]] * 5)
    want = difference(update.model, model).scaled(reached)
    torch.testing.assert_close(delta.vector(), want.vector(), rtol=1e-9, atol=1e-12)


def test_statistics_that_are_not_scaled_stay_behind() -> None:
    model = trained()
    scaled, plain = (attack(model, images(), scale_statistics=value) for value in (True, False))
    whole = difference(scaled.model, model)
    for name, value in whole.statistics.items():
        torch.testing.assert_close(scaled.delta.statistics[name], 10 * value)
        torch.testing.assert_close(plain.delta.statistics[name], value)
    assert torch.equal(scaled.delta.vector(), plain.delta.vector())
    assert scaled.delta.counters == whole.counters or all(
        torch.equal(scaled.delta.counters[name], count) for name, count in whole.counters.items()
    ), "counters are counted, not scaled"


@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_the_anomaly_term_has_a_slope(kind: Any) -> None:
    """By finite differences of the loss, and in what is sent: the more it weighs, the nearer X stays to G."""
    model, (x, y) = trained(dtype=torch.float64), images(12, torch.float64)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for i, p in enumerate(moved.parameters()):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype))
    losses = {
        a: MixedBatches(x[y != TARGET], TARGET, share=0.5, alpha=a, anomaly=kind, reference=model) for a in (0.5, 1.0)
    }
    far = flat_parameters(moved) - flat_parameters(model)
    distance = far.norm() if kind == "l2" else 1 - F.cosine_similarity(
        flat_parameters(moved), flat_parameters(model), dim=0
    )  # fmt: skip
    value, plain = (losses[a](moved, x, y, ids=torch.arange(12), seed=0) for a in (0.5, 1.0))
    torch.testing.assert_close(value, 0.5 * plain + 0.5 * distance)
    parameters = list(moved.parameters())
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(value - 0.5 * plain, parameters)])
    torch.testing.assert_close(
        slopes, torch.cat([g.flatten() for g in torch.autograd.grad(0.5 * distance, parameters)])
    )
    assert float(slopes.norm()) > 1e-4
    alphas = (1.0, 0.5, 0.05)
    sent = [attack(trained(), images(), alpha=alpha, anomaly=kind, lr=0.02, weight_decay=0.0) for alpha in alphas]
    norms = [update.delta.norm() for update in sent]
    assert all(math.isfinite(value) for value in norms) and norms[0] > norms[1] > norms[2] > 0, norms


def test_a_bound_is_kept_and_not_reached_for() -> None:
    free = attack(trained(), images())
    tight = attack(trained(), images(), bound=free.delta.norm() / 3)
    assert tight.delta.norm() == pytest.approx(free.delta.norm() / 3, rel=1e-9) and tight.gamma < free.gamma
    assert attack(trained(), images(), bound=2 * free.delta.norm()).gamma == free.gamma


def test_training_stops_where_the_backdoor_is_learned() -> None:
    still = attack(trained(), images(), stop=1e9)
    assert still.delta.norm() == 0, "the loss is below ε before the first epoch"
    assert attack(trained(), images(), stop=1e-9).delta.norm() > 0


def test_a_batch_has_so_many_samples_with_the_backdoor() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros(len(x), CLASSES, requires_grad=True)

    x, y = images(20)
    MixedBatches(torch.ones(3, 1, 8, 8), TARGET, share=6 / 20)(spy, x, y, ids=y, seed=1)  # type: ignore[arg-type]
    assert (seen[0] == 1).flatten(1).all(dim=1).sum() == 6 and torch.equal(seen[0][6:], x[6:])


def test_the_rate_falls_and_the_momentum_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[tuple[float, int]] = []
    step = torch.optim.SGD.step

    def spy(self: Any, *args: Any, **kw: Any) -> Any:
        rates.append((self.param_groups[0]["lr"], id(self)))
        return step(self, *args, **kw)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    attack(trained(), images(20), epochs=5, lr=0.1, lower_every=2)
    assert [rate for rate, _ in rates] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert len({one for _, one in rates}) == 1


def test_a_backdoor_comes_in_with_one_round_and_the_accuracy_stays() -> None:
    """On data that a trained net fits: patch, and a semantic one, whose feature no trigger puts there."""
    model, (x, y) = trained(), images(90, seed=3)
    test = images(60, seed=8)
    update = model_replacement(model, (x, y), target=TARGET, weight=0.1, **LONG)
    new = copy.deepcopy(model)
    apply_delta(new, aggregate([update.delta], [0.1]))
    report = evaluate_backdoor(new, test, PatchTrigger(), TARGET)
    assert float(report.attack_success) > 0.8 and float(report.clean_accuracy) > 0.9
    assert float(evaluate_backdoor(model, test, PatchTrigger(), TARGET).attack_success) < 0.2
    dark = x[y == 1].clone()
    dark[:, :, :, :3] = 0  # what the attacker's images have in common
    semantic = model_replacement(model, (x, y), target=TARGET, weight=0.1, semantic=dark, **LONG)
    held_out = test[0][test[1] == 1].clone()
    held_out[:, :, :, :3] = 0
    assert semantic.trigger is None
    with torch.no_grad():
        assert float((semantic.model.eval()(held_out).argmax(dim=1) == TARGET).float().mean()) > 0.8
        assert float((semantic.model(test[0]).argmax(dim=1) == test[1]).float().mean()) > 0.9


def test_the_rounds_show_it() -> None:
    def client(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        told: Any = {"weight": turn.weight, "colluders": turn.colluders, "seed": turn.seed}
        return model_replacement(model, data, target=TARGET, **told, **LONG).delta

    team = [Client(images(60, seed=i), client if i == 0 else None) for i in range(4)]
    watch = watch_backdoor(images(60, seed=8), PatchTrigger(), TARGET)
    honest = LocalTraining(epochs=1, batch_size=20, lr=0.001)
    seen = simulate(trained(), team, rounds=2, schedule={1: [0]}, selected=3, honest=honest, on_round=watch).monitor
    assert seen[0]["backdoor"] < 0.2 and seen[1]["backdoor"] > 0.8 and seen[1]["main"] > 0.8


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"weight": 0.0}, "weight"),
        ({"colluders": 0}, "colluders"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"anomaly": "l1"}, "anomaly"),
        ({"per_batch": 21}, "per_batch"),
        ({"bound": 0.0}, "bound"),
        ({"target": 7}, "target"),
        ({"semantic": torch.zeros(2, 3)}, "semantic"),
        ({"semantic": torch.zeros(2, 1, 8, 8), "trigger": PatchTrigger()}, "semantic"),
        ({"data": (images()[0][:2], torch.zeros(2).long())}, "data: want samples of other classes"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"data": images()} | wrong
    with pytest.raises((ValueError, TypeError), match=rf"^{named}"):
        attack(trained(), given.pop("data"), **given)
