"""Federated learning: the arithmetic of updates, a round by hand, who is drawn, what a kill leaves, what is refused."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.defenses import coordinate_median, krum, norm_clipping, trimmed_mean
from robustlab.geometry.keyed import derive_seed
from robustlab.training.clients import Client, LocalTraining, Turn, local_update
from robustlab.training.federated import simulate
from robustlab.training.updates import Delta, aggregate, apply_delta, difference, server_weights
from tests.suite.training.cases import images, net


def parts(n: int = 4) -> list[tuple[Tensor, Tensor]]:
    x, y = images(60)
    return [(x[i::n], y[i::n]) for i in range(n)]


def clients(n: int = 4, **attacks: Any) -> list[Client]:
    return [Client(data, attacks.get(f"c{i}")) for i, data in enumerate(parts(n))]


def nothing(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
    return difference(model, model)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(s, t) for s, t in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


QUICK = LocalTraining(epochs=1, batch_size=8, lr=0.05)


# Updates -------------------------------------------------------------------------------------------------------------


def test_a_difference_leads_from_one_model_to_the_other_exactly() -> None:
    before, after = net(0), net(1)
    after[1].running_mean.normal_()
    after[1].num_batches_tracked += 5
    delta = difference(after, before)
    assert set(delta.counters) == {"1.num_batches_tracked"} and set(delta.statistics) == {
        "1.running_mean", "1.running_var",
    }  # fmt: skip
    apply_delta(before, delta)
    assert equal(before, after)


def test_parameters_that_share_a_tensor_move_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight += 1
    apply_delta(model, difference(other, model))
    assert equal(model, other)


def test_the_weighted_sum_is_that_of_each_number() -> None:
    model = net(0)
    deltas = [difference(net(seed), model) for seed in (1, 2, 3)]
    for i, delta in enumerate(deltas):
        delta.counters["1.num_batches_tracked"] += i
    merged = aggregate(deltas, [0.5, 0.25, 0.1])
    for name in merged.parameters:
        want = 0.5 * deltas[0].parameters[name] + 0.25 * deltas[1].parameters[name] + 0.1 * deltas[2].parameters[name]
        torch.testing.assert_close(merged.parameters[name], want, rtol=1e-12, atol=1e-14)
    assert int(merged.counters["1.num_batches_tracked"]) == 2
    kept = aggregate(deltas, [0.5, 0.25, 0.1], statistics="keep")
    assert not any(bool(value.any()) for value in [*kept.statistics.values(), *kept.counters.values()])
    ruled = aggregate(deltas, [0.2, 0.2, 0.2], rule=lambda rows: rows.mean(dim=0))
    plain = aggregate(deltas, [0.2, 0.2, 0.2])
    torch.testing.assert_close(ruled.vector(True), plain.vector(True), rtol=1e-12, atol=1e-14)


def test_a_running_variance_never_falls_below_0() -> None:
    model, other = net(0), net(0)
    other[1].running_var.fill_(0.1)
    with pytest.warns(UserWarning, match="running_var would be below 0"):
        apply_delta(model, difference(other, model).scaled(3.0))
    assert (model[1].running_var == 0).all()


def test_the_servers_factors() -> None:
    assert server_weights([5, 5], eta=0.1) == (0.05, 0.05)
    assert server_weights([5, 5], eta=0.1, divide="total", total=100) == (0.001, 0.001)
    assert server_weights([1, 3], divide="samples") == (0.25, 0.75)
    with pytest.raises(ValueError, match="total"):
        server_weights([5, 5], divide="total")


@pytest.mark.parametrize("factor", [[0.0, 0.0], [-1.0, 1.0], [1.0], [float("nan"), 1.0]])
def test_wrong_weights_are_refused(factor: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^weights: want .*got"):
        aggregate([difference(net(1), net(0))] * 2, factor)


def test_other_models_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="one model"):
        aggregate([difference(net(1), net(0)), difference(net(1, flat=True), net(0, flat=True))], [1, 1])
    bad = difference(net(1), net(0)).scaled(float("nan"))
    with pytest.raises(ValueError, match=r"deltas: .*from \[1\]"):
        aggregate([difference(net(1), net(0)), bad], [1, 1])
    with pytest.raises(ValueError, match="delta"):
        apply_delta(net(0, flat=True), bad)


# Rounds --------------------------------------------------------------------------------------------------------------


def test_a_client_with_one_full_batch_takes_one_gradient_step() -> None:
    model, (x, y) = net(0).double(), images(9, torch.float64)
    delta = local_update(model, (x, y), seed=3, epochs=1, batch_size=9, lr=0.3, momentum=0.9, weight_decay=0.0)
    again = copy.deepcopy(model).train()
    nn.functional.cross_entropy(again(x), y).backward()
    for name, p in again.named_parameters():
        torch.testing.assert_close(delta.parameters[name], -0.3 * p.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        delta.statistics["1.running_mean"],
        again[1].running_mean - model[1].running_mean,
        rtol=1e-9,
        atol=1e-12,
    )


def test_a_round_is_the_sum_of_what_its_clients_send() -> None:
    """By hand: each client's update with its own seed, added to the global model with the server's factor."""
    model = net(0)
    result = simulate(model, clients(), rounds=2, honest=QUICK, eta=0.5, seed=7)
    hand = copy.deepcopy(model)
    for number in range(2):
        sent = [local_update(hand, d, seed=derive_seed(7, number, i), **vars(QUICK)) for i, d in enumerate(parts())]
        for name, value in hand.named_parameters():
            value.data.add_((sum(delta.parameters[name] for delta in sent) / 8).to(value.dtype))
        for name, value in hand.named_buffers():
            if value.is_floating_point():
                value.add_((sum(delta.statistics[name] for delta in sent) / 8).to(value.dtype))
    for name, value in hand.named_parameters():
        torch.testing.assert_close(result.model.state_dict()[name], value.data, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result.model[1].running_var, hand[1].running_var, rtol=1e-6, atol=1e-7)
    assert equal(model, net(0)), "the caller's model was changed"
    assert equal(result.at(-1), result.model) and not equal(result.at(0), result.model)
    assert all(len(norms) == 4 and min(norms) > 0 for norms in result.norms)


def test_who_takes_part_is_drawn_anew_and_may_be_set() -> None:
    model = net(0)
    free = simulate(model, clients(), rounds=6, selected=2, honest=nothing)
    assert all(len(set(present)) == 2 for present in free.selected) and len(set(free.selected)) > 2
    again = simulate(model, clients(), rounds=6, selected=2, honest=nothing)
    assert free.selected == again.selected
    told: list[Turn] = []

    def attack(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        told.append(turn)
        return nothing(model, data, turn)

    # Only in the rounds that the schedule names, and in all of them, at the last one too.
    team = clients(6, c1=attack, c4=attack)
    result = simulate(model, team, rounds=6, selected=3, honest=nothing, schedule={1: [1, 4], 5: [4]})
    for number, present in enumerate(result.selected):
        assert set(present) & {1, 4} == {1: {1, 4}, 5: {4}}.get(number, set()) and len(present) == 3
    assert [(turn.round, turn.client, turn.colluders) for turn in told] == [(1, 1, 2), (1, 4, 2), (5, 4, 1)]
    assert {turn.weight for turn in told} == {1 / 3} and told[0].previous is not None


def test_the_change_of_the_round_before_is_told() -> None:
    seen: list[Any] = []

    def spy(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        seen.append((copy.deepcopy(model), turn.previous))
        return nothing(model, data, turn)

    simulate(net(0), clients(c0=spy), rounds=2, honest=QUICK)
    assert seen[0][1] is None
    moved = difference(seen[1][0], seen[0][0])
    assert torch.equal(moved.vector(True), seen[1][1].vector(True))


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def watch(number: int, model: nn.Module) -> dict[str, float]:
        calls.append(number)
        return {"mean": float(next(model.parameters()).mean())}

    def killed(number: int, model: nn.Module) -> dict[str, float]:
        if number == 2:
            raise KeyboardInterrupt
        return watch(number, model)

    run = partial(simulate, net(0), clients(), rounds=4, selected=3, honest=QUICK, seed=2)
    whole = run(on_round=watch)
    with pytest.raises(KeyboardInterrupt):
        run(on_round=killed, resume=tmp_path / "run")
    calls.clear()
    resumed = run(on_round=watch, resume=tmp_path / "run")
    assert calls == [2, 3] and resumed.monitor == whole.monitor and resumed.selected == whole.selected
    assert equal(resumed.model, whole.model) and resumed.norms == whole.norms
    assert all(equal(resumed.at(number), whole.at(number)) for number in range(4))
    longer = simulate(net(0), clients(), rounds=5, selected=3, honest=QUICK, seed=2, resume=tmp_path / "run")
    assert longer.selected[:4] == whole.selected
    with pytest.raises(ValueError, match=r"resume: .*seed \(2, here 3\)"):
        simulate(net(0), clients(), rounds=4, selected=3, honest=QUICK, seed=3, resume=tmp_path / "run")
    (tmp_path / "run" / "round_00001.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="resume: want a file that simulate"):
        run(on_round=watch, resume=tmp_path / "run")


def test_what_a_rule_is_bound_to_tells_one_run_from_another(tmp_path: Path) -> None:
    run = partial(simulate, net(0), clients(5), rounds=1, honest=QUICK, resume=tmp_path)
    first = run(rule=partial(trimmed_mean, f=1))
    assert equal(run(rule=partial(trimmed_mean, f=1)).model, first.model)
    for rule, named in (
        (partial(trimmed_mean, f=2), r"rule \(trimmed_mean\(f=1\), here trimmed_mean\(f=2\)\)"),
        (partial(krum, f=1), r"here krum\(f=1\)"),
    ):
        with pytest.raises(ValueError, match=named):
            run(rule=rule)
    with pytest.raises(ValueError, match=r"another honest \(….*lr=0.05, .*, here ….*lr=0.5, "):
        run(rule=partial(trimmed_mean, f=1), honest=LocalTraining(epochs=1, batch_size=8, lr=0.5))


def test_noise_of_a_rule_is_new_in_each_round() -> None:
    rule = partial(norm_clipping, bound=1.0, sigma=0.1)
    result = simulate(net(0), clients(), rounds=2, honest=nothing, rule=rule, statistics="keep")
    first, second = difference(result.at(0), net(0)), difference(result.at(1), result.at(0))
    assert 0.08 < float(first.vector().std()) < 0.12 and not torch.allclose(first.vector(), second.vector())


def test_a_function_of_pytorchs_own_is_a_rule() -> None:
    """It has no signature that could be read."""
    told: dict[str, Any] = {"rounds": 2, "honest": QUICK}
    ruled, plain = (simulate(net(0), clients(), rule=rule, **told) for rule in (partial(torch.mean, dim=0), None))
    gap = difference(ruled.model, plain.model).vector()
    torch.testing.assert_close(gap, torch.zeros_like(gap), rtol=0, atol=1e-6)


def test_a_rule_takes_the_place_of_the_mean() -> None:
    """One client of five sends an update a thousand times as long: the median holds, the mean does not."""

    def loud(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        return QUICK(model, data, turn).scaled(-1000.0, statistics=False)

    run = partial(simulate, net(0), clients(5, c2=loud), rounds=1, honest=QUICK)
    held, lost = (difference(run(rule=rule).model, net(0)).norm() for rule in (coordinate_median, None))
    assert lost > 100 * held


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (lambda updates: updates[0] * torch.nan, "rule: want a finite vector"),
        (lambda updates: updates.median(dim=0), "rule: want a tensor .* got median"),
        (lambda updates: updates, "rule: want a vector"),
    ],
)
def test_a_rule_gives_one_finite_vector(rule: Any, named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        simulate(net(0), clients(), rounds=1, honest=nothing, rule=rule)


def test_the_dtype_of_a_rule_rounds_no_model() -> None:
    """Whole numbers, half of the precision: the model is moved by them and keeps its own digits."""
    before = net(0).double()
    data = [Client((x.double(), y)) for x, y in parts()]
    for dtype in (torch.int64, torch.float32):
        one = torch.ones((), dtype=dtype)
        told: dict[str, Any] = {"rule": lambda updates, one=one: one.expand(updates.shape[1])}
        after = simulate(before, data, rounds=1, honest=nothing, **told).model
        for new, old in zip(after.parameters(), before.parameters(), strict=True):
            torch.testing.assert_close(new - old, torch.ones_like(old), rtol=0, atol=1e-12)


def test_a_client_that_does_not_do_as_agreed_is_named() -> None:
    def careless(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        before = copy.deepcopy(model)
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        return difference(model, before)

    def whole(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Any:
        return model

    for attack, named in (
        (careless, "model left as it is, .* from number 2"),
        (whole, "want a Delta, got .* number 2"),
    ):
        with pytest.raises((ValueError, TypeError), match=named):
            simulate(net(0), clients(4, c2=attack), rounds=1, honest=nothing)
    x, y = parts()[0]
    with pytest.raises(ValueError, match="labels in") as caught:
        simulate(net(0), [*clients(), Client((x, y + 50))], rounds=1)
    assert caught.value.__notes__ == ["This is of client number 4 in round 0."]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"clients": [Client(parts()[0], nothing), Client(parts()[1], nothing)]}, "clients: .*all malicious"),
        ({"clients": [Client((torch.zeros(0, 1, 8, 8), torch.zeros(0).long())), *clients()]}, "without data, number 0"),
        ({"clients": [Client((torch.zeros(1, 1, 8, 8), torch.zeros(1).long())), *clients()]}, "batch norm"),
        ({"clients": []}, "clients"),
        ({"rounds": 0}, "rounds"),
        ({"selected": 9}, "selected"),
        ({"eta": 0.0}, "eta"),
        ({"divide": "half"}, "divide"),
        ({"statistics": "average"}, "statistics"),
        ({"schedule": {7: [0]}}, "schedule: .*never take part"),
        ({"schedule": {0: [11]}}, "schedule"),
        ({"schedule": {0: [0, 1, 2]}, "selected": 2}, "schedule"),
        ({"honest": 3}, "honest"),
        ({"rule": "median"}, "rule: want a callable, got str"),
        ({"model": "net"}, "model"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_any_work(wrong: dict[str, Any], named: str) -> None:
    def never(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        raise AssertionError("work was done")

    given: dict[str, Any] = {"model": net(0), "clients": clients(), "rounds": 1, "honest": never} | wrong
    with pytest.raises((ValueError, TypeError), match=named):
        simulate(given.pop("model"), given.pop("clients"), **given)


def test_a_client_whose_update_is_no_number_is_named_and_no_round_is_lost(tmp_path: Path) -> None:
    def broken(model: nn.Module, data: tuple[Tensor, Tensor], turn: Turn) -> Delta:
        return QUICK(model, data, turn).scaled(float("nan") if turn.round == 2 else 1.0, statistics=False)

    how: dict[str, Any] = {"rounds": 4, "selected": 2, "honest": QUICK, "schedule": {2: [5]}, "resume": tmp_path}
    with pytest.raises(ValueError, match=r"^clients: want finite updates, got NaN or infinity from number 5$"):
        simulate(net(0), clients(6, c5=broken), **how)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(simulate(net(0), clients(6, c5=QUICK), **how).states) == 4


def test_the_pretend_device_gives_the_same() -> None:
    from tests.pretend.twins import twins

    def run(device: torch.device) -> Any:
        team = [Client((x.double().to(device), y.to(device))) for x, y in parts()]
        run: Any = partial(simulate, net(0).double().to(device), team, rounds=2, honest=QUICK)
        return run(rule=coordinate_median).model

    twins(run, rtol=1e-9, atol=1e-9)
