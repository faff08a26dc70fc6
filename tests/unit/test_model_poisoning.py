"""Model poisoning: what is boosted, by how much and when; the distance's slope; the aim reached through the mean."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlab.attacks import boosted_names, model_poisoning
from robustlab.attacks.federated import model_poisoning as module
from robustlab.training.fit import fit
from robustlab.training.updates import aggregate, apply_delta, difference
from tests.suite.training.cases import TARGET, images, net, trained

X_TARGET = images(2)[0][1:]
attack = partial(model_poisoning, target=TARGET, weight=0.1, steps=3, benign_steps=2, batch_size=20)


def test_weights_are_told_by_name_and_biases_and_norms_are_not() -> None:
    """Also where layers have no bias, or norms stand between, so that every second parameter is something else."""
    assert boosted_names(net()) == {"0.weight", "4.weight", "6.weight"}
    bare = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False), nn.Flatten()
    )
    assert boosted_names(bare) == {"0.weight", "2.weight"}


def test_boosting_multiplies_the_named_by_the_servers_reciprocal() -> None:
    """What an update would be without boosting, times λ for weights and times 1 for all else."""
    model = trained()
    update = attack(model, images(), X_TARGET, strategy="boosting")
    plain = difference(update.model, model)
    names = boosted_names(model)
    assert update.gamma == 10 and names
    for name, value in update.delta.parameters.items():
        torch.testing.assert_close(value, (10.0 if name in names else 1.0) * plain.parameters[name])
    new = copy.deepcopy(model)
    apply_delta(new, aggregate([update.delta, *[difference(model, model)] * 9], [0.1] * 10))
    for name in names:
        assert torch.equal(new.state_dict()[name], update.model.state_dict()[name]), "the mean is not what was wanted"
    some = attack(model, images(), X_TARGET, strategy="boosting", boosted=["6.bias"])
    torch.testing.assert_close(some.delta.parameters["6.bias"], 10 * plain.parameters["6.bias"])
    torch.testing.assert_close(some.delta.parameters["6.weight"], plain.parameters["6.weight"])


def test_the_first_malicious_step_by_hand() -> None:
    """Adam's first step has the size lr against the sign of the gradient; boosted weights move λ times as far."""
    model = trained(dtype=torch.float64)
    gradient = copy.deepcopy(model)
    F.cross_entropy(gradient(X_TARGET.double()), torch.tensor([TARGET])).backward()
    local = copy.deepcopy(model)
    adam = torch.optim.Adam(local.parameters(), lr=0.01)
    module._malicious_step(local, X_TARGET.double(), TARGET, adam, boosted_names(model), 10.0)
    for (name, new), old, g in zip(
        local.named_parameters(), model.parameters(), [p.grad for p in gradient.parameters()], strict=True
    ):
        want = old - (10 if name in boosted_names(model) else 1) * 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(new, want, rtol=1e-7, atol=1e-9)


def test_no_malicious_step_where_its_loss_is_not_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten benign steps after each malicious one, and benign ones alone once the aim is reached."""
    steps: list[str] = []
    own = module._malicious_step

    def spy(local: nn.Module, chosen: Any, *rest: Any) -> None:
        before = copy.deepcopy(local.state_dict())
        own(local, chosen, *rest)
        moved = any(not torch.equal(before[name], value) for name, value in local.state_dict().items())
        steps.append("malicious" if moved else "none")

    calls: list[int] = []
    fit = module.fit

    def count(*args: Any, **kw: Any) -> Any:
        history = fit(*args, **kw)
        calls.append(history.steps)
        steps.append("benign")
        return history

    monkeypatch.setattr(module, "_malicious_step", spy)
    monkeypatch.setattr(module, "fit", count)
    attack(trained(), images(), X_TARGET, benign_steps=10)
    assert steps == ["malicious", "benign"] * 3 and calls == [10, 10, 10]
    steps.clear()
    attack(trained(), images(), X_TARGET, benign_steps=10, first="benign")  # the authors' code has it so
    assert steps == ["benign", "malicious"] * 3
    steps.clear()
    sure = trained()
    with torch.no_grad():
        sure[-1].bias[TARGET] += 1e6  # the loss of x_target is 0 exactly
    attack(sure, images(), X_TARGET)
    assert steps == ["none", "benign"] * 3


@pytest.mark.parametrize("strategy", ["alternating", "stealthy"])
def test_the_distance_pulls_toward_the_reference(strategy: Any) -> None:
    model, distances = early(), {}
    reference = difference(trained(1), model).scaled(0.1)
    for rho in (0.0, 100.0):
        sent = attack(model, images(), X_TARGET, strategy=strategy, rho=rho, steps=5, reference=reference)
        vector = difference(sent.model, model).vector()
        distances[rho] = float((vector - reference.vector()).norm())
    assert distances[100.0] < 0.9 * distances[0.0], distances
    stealth = module._Stealth(model, X_TARGET, TARGET, reference, 0.5, False)
    x, y = images(12)
    value = stealth(model, x, y, ids=y, seed=0)
    want = F.cross_entropy(model(x), y) + 0.5 * reference.vector().norm().float()
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6)


def early() -> nn.Module:
    """A net that still has something to learn, as the global model of an early round has."""
    model = net()
    fit(model, images(60), epochs=4, lr=1e-2, batch_size=20)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["boosting", "stealthy", "alternating"])
def test_the_chosen_input_is_misread_through_the_mean(strategy: Any) -> None:
    """The others send nothing. By turns the sent model reaches the aim and keeps its accuracy; else the mean does."""
    test = images(60, seed=9)
    for seed in range(3):
        model = early()
        chosen = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        target = (int(model(chosen).argmax()) + 1) % 3
        update = model_poisoning(
            model, images(60), chosen, target=target, weight=0.1, strategy=strategy, batch_size=20, steps=20, seed=seed
        )
        new = copy.deepcopy(model)
        apply_delta(new, aggregate([update.delta, *[difference(model, model)] * 9], [0.1] * 10))
        for asked in (update.model.eval(), new.eval()):
            with torch.no_grad():
                assert int(asked(chosen).argmax()) == target
                accuracy = float((asked(test[0]).argmax(dim=1) == test[1]).float().mean())
            assert accuracy > (0.5 if strategy == "boosting" else 0.9), accuracy


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"weight": 0.0}, "weight"),
        ({"strategy": "hiding"}, "strategy"),
        ({"first": "honest"}, "first"),
        ({"benign_steps": 0}, "benign_steps"),
        ({"rho": -1.0}, "rho"),
        ({"boosted": ["no.weight"]}, "boosted"),
        ({"boosted": []}, "boosted"),
        ({"reference": difference(net(1, flat=True), net(0, flat=True))}, "reference"),
        ({"target": 3}, "target"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{named}: want"):
        attack(trained(), images(), X_TARGET, **wrong)
    with pytest.raises(ValueError, match="x_target: want"):
        attack(trained(), images(), X_TARGET[:, :, :4])


def test_where_the_loss_is_zero_no_malicious_step_is_taken() -> None:
    """With momentum from a step before, Adam would move at a gradient of zero, too."""
    local = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    adam = torch.optim.Adam(local.parameters(), lr=0.1)
    names = boosted_names(local)
    start = copy.deepcopy(local.state_dict())
    module._malicious_step(local, X_TARGET, TARGET, adam, names, 10.0)
    assert any(not torch.equal(start[name], p) for name, p in local.state_dict().items())
    with torch.no_grad():
        bias = local[1].bias
        assert isinstance(bias, torch.Tensor)
        bias[TARGET] += 1e6
    before = copy.deepcopy(local.state_dict())
    module._malicious_step(local, X_TARGET, TARGET, adam, names, 10.0)
    assert all(torch.equal(before[name], p) for name, p in local.state_dict().items())
