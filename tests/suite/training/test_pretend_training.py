"""The training phase on the pretend device: where the data are, as on the CPU, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from robustlab.attacks import PatchTrigger
from robustlab.attacks.backdoor.evaluate_backdoor import evaluate_backdoor
from robustlab.data.augment import random_shift
from robustlab.defenses.training.adversarial_training import adversarial_training
from robustlab.training.fit import fit
from tests.pretend import pretend_cuda
from tests.pretend.tags import CPU, CUDA
from tests.pretend.twins import leaves, twins
from tests.suite.kinds.test_trainers import CASES as TRAINERS
from tests.suite.kinds.test_trainers import objective, on_graph
from tests.suite.models import seeded
from tests.suite.test_no_side_effects import assert_unchanged, snapshot
from tests.suite.training.cases import DETECTORS, POISONS, STUDIES, Case, images, net, over, tensors, trained
from tests.suite.training.test_triggers import TRIGGERS, check_trigger

METHODS = POISONS + DETECTORS + STUDIES


def check_twin(case: Case) -> None:
    """In float64; the caller's data, models and random states are as they were, the GPU's among them."""
    case.arguments()  # what the suite keeps is trained on the CPU

    def run(device: torch.device) -> Any:
        arguments = case.arguments(torch.float64, device)
        given = tensors([value for value in arguments.values() if not isinstance(value, nn.Module)])
        held = [m for value in arguments.values() for m in (value if isinstance(value, list) else [value])]
        models = nn.ModuleList([m for m in held if isinstance(m, nn.Module)] or [net()])
        before = snapshot(models, *given)
        result = case.run(**arguments)
        assert_unchanged(before, models, *given)
        return parts(case, result)

    twins(run, rtol=1e-9, atol=1e-9)


def parts(case: Case, result: Any) -> Any:
    """What of a result belongs to the device. Measurements of a repair are the host's; a trigger goes where it is led:
    it is asked about an image."""
    if case.row.kind == "repair":
        return result.model
    if hasattr(result, "trigger") and hasattr(result, "x"):
        return {**vars(result), "trigger": result.trigger(result.x[:3])}
    return result


@pytest.mark.slow
@over(METHODS)
def test_twin(case: Case) -> None:
    check_twin(case)


@pytest.mark.parametrize("name", TRIGGERS)
def test_trigger(name: str) -> None:
    trigger, x = TRIGGERS[name]().eval(), images(5)[0]
    with pretend_cuda() as gpu:
        check_trigger(trigger.to(gpu.device), x.to(gpu.device))


def test_a_backdoor_is_measured() -> None:
    def run(device: torch.device) -> Any:
        x, y = images(30)
        return evaluate_backdoor(
            trained(device=device), (x.to(device), y.to(device)), PatchTrigger().to(device), target=0
        )

    twins(run)


# fit -----------------------------------------------------------------------------------------------------------------


def dropping() -> nn.Module:
    """Draws in training mode, from the generator of its device."""
    return nn.Sequential(net(), nn.Dropout(0.3)).double()


def shallow() -> nn.Module:
    """For objectives that know one hidden layer alone."""
    size = images(1)[0][0].numel()
    layers = seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 4))
    )
    return layers.double()


def trains(
    ends_at: torch.device, model_at: torch.device, data_at: torch.device, build: Callable[[], nn.Module] | None = None,
    data: tuple[torch.Tensor, torch.Tensor] | None = None, **arguments: Any,
) -> Any:  # fmt: skip
    """The history and the weights; random states, the GPU's among them, are as they were."""
    model, (x, y) = (build or dropping)().to(model_at), data or images(20, torch.float64)
    before = snapshot(nn.Identity())
    history = fit(model, (x.to(data_at), y.to(data_at)), epochs=2, batch_size=8, **arguments)
    assert_unchanged(before, nn.Identity())
    assert {p.device for p in model.parameters()} == {ends_at}
    return history.loss, history.monitor, model


def taken_by(case: Case) -> tuple[Any, ...]:
    """What makes the net of an objective that does not take every net, and its data."""
    if case.row.dims == ("graph",):
        return lambda: on_graph(20), (torch.arange(20), torch.arange(20) % 3)
    return (shallow,) if case.row.key == "sdp_training" else ()


FITS: dict[str, Callable[[torch.device], Any]] = {
    "all on the device": lambda d: trains(d, d, d),
    "data on the host": lambda d: trains(d, d, CPU),
    "device=": lambda d: trains(d, CPU, CPU, device=d),
    "augmented": lambda d: trains(d, d, d, augment=random_shift(1), optimizer="sgd", weight_decay=1e-3),
    "watched": lambda d: trains(d, d, d, optimizer="adamw", on_epoch=lambda _, model: model[-1](torch.ones(2).to(d))),
    "averaged": lambda d: trains(
        d, d, d, averaging=0.9, validate=lambda model: float(model[-1](torch.ones(2).to(d))[0])
    ),
    "growing epsilon": lambda d: trains(d, d, d, objective=adversarial_training(eps=0.1, steps=2, warmup=0.5)),
    **{
        str(case): lambda d, case=case: trains(d, d, d, *taken_by(case), objective=objective(case)) for case in TRAINERS
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FITS)
def test_fit(name: str) -> None:
    twins(FITS[name], rtol=1e-9, atol=1e-9)


def test_fit_in_mixed_precision() -> None:
    """By itself for a float32 model; the pretend device has no lower precision, but all that is asked about it."""
    model, (x, y) = net(), images(20)
    with pretend_cuda() as gpu:
        history = fit(model.to(gpu.device), (x, y), epochs=1, batch_size=8)
        assert all(leaf.device == CUDA for _, leaf in leaves(model)) and history.steps == 3


# The check, seen to fail ---------------------------------------------------------------------------------------------


def planted(bug: Callable[[Any], None]) -> Case:
    """Label flipping with a bug that shows on a GPU alone."""
    good = next(case for case in METHODS if case.row.key == "label_flipping")

    def broken(data: Any, *, rate: float, seed: int = 0) -> Any:
        poisoned = good.function(data, rate=rate, seed=seed)
        bug(poisoned)
        return poisoned

    return replace(good, function=broken)


def keeps_rows_on_the_cpu(poisoned: Any) -> None:
    poisoned.row = torch.arange(len(poisoned))


def draws_from_the_gpu(poisoned: Any) -> None:
    torch.rand(1, device=poisoned.x.device)


def marks_others(poisoned: Any) -> None:
    poisoned.is_poison = poisoned.is_poison.roll(int(poisoned.x.is_cuda))


@pytest.mark.parametrize("bug", [keeps_rows_on_the_cpu, draws_from_the_gpu, marks_others])
def test_the_twin_is_seen_to_differ(bug: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError, match=r"row is on cpu|changed: |is_poison: "):
        check_twin(planted(bug))
