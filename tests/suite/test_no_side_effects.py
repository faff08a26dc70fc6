"""Nothing of the caller's is changed: inputs, gradients, modes, statistics, flags, random states. Nor by an error."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from tests.suite.cases import Case, batch, over
from tests.suite.models import WritesIntoInput, convnet, seeded


def watched_model(case: Case, device: torch.device) -> nn.Module:
    """Batch norm and dropout, some modules in training mode, some parameters frozen, some with a ``.grad``."""
    if len(case.shape) == 3:
        model = convnet(case.classes, case.shape[0])
    else:
        net = case.net()
        model = seeded(lambda: nn.Sequential(net, nn.BatchNorm1d(case.classes, affine=False), nn.Dropout(0.2)).double())
    model = model.to(device).train()
    modules = list(model.modules())
    modules[2].eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    parameters[-1].grad = torch.ones_like(parameters[-1])
    return model


def snapshot(model: nn.Module, *tensors: Tensor) -> list[Any]:
    """All that an attack could change behind the caller's back."""
    state: list[Any] = [{name: value.clone() for name, value in model.state_dict().items()}]
    state.append([module.training for module in model.modules()])
    state.append([p.requires_grad for p in model.parameters()])
    state.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    state.append([(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()])
    state.append([(t.detach().clone(), t.requires_grad, None if t.grad is None else t.grad.clone()) for t in tensors])
    state.append([torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()])  # noqa: NPY002
    if torch.cuda.is_available():
        state.append(torch.cuda.get_rng_state())
    state.append([torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()])
    return state


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(p, q) for p, q in zip(a, b, strict=True))
    return bool(a == b)


def assert_unchanged(before: list[Any], model: nn.Module, *tensors: Tensor) -> None:
    names = ("state dict", "training flags", "requires_grad", ".grad", "hooks", "input tensors", "random states")
    for i, (then, now) in enumerate(zip(before, snapshot(model, *tensors), strict=True)):
        assert equal(then, now), f"changed: {names[i] if i < len(names) else 'global state'}"


def inputs(case: Case, model: nn.Module, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x requires a gradient and has one; all optional tensors are given."""
    _, x, _ = batch(case, device, n=5)
    with torch.no_grad(), torch.random.fork_rng():
        training = [module.training for module in model.modules()]
        y = model.eval()(x).argmax(dim=1)
        for module, flag in zip(model.modules(), training, strict=True):
            module.training = flag
    if x.is_floating_point():
        x.requires_grad_(True)
        x.grad = torch.full_like(x, 2.0)
    extra = {"ids": torch.tensor([3, 1, 4, 1, 5], device=device)}
    if case.has_budget:
        extra["eps"] = torch.full((5,), 2.0 if case.norm == "l0" else 0.2, dtype=x.dtype, device=device)
    if case.targeted:
        extra["target"] = case.target(y)
    if case.takes("init"):
        extra["init"] = torch.full_like(x, 0.05).detach().requires_grad_(True)
    return x, y, extra


def check_no_side_effects(case: Case, device: torch.device, mode: str = "eval") -> AttackResult:
    model = watched_model(case, device)
    x, y, extra = inputs(case, model, device)
    before = snapshot(model, x, y, *extra.values())
    result = case.run(Victim(model, mode=mode), x, y, **extra)  # type: ignore[arg-type]
    assert_unchanged(before, model, x, y, *extra.values())
    assert result.x_adv.data_ptr() != x.data_ptr(), "the result shares memory with the input"
    again = result.x_adv.clone()
    result.x_adv.zero_()
    assert_unchanged(before, model, x, y, *extra.values())
    result.x_adv.copy_(again)
    return result


class Raising(nn.Module):
    """Raises at the call of that number."""

    def __init__(self, model: nn.Module, at: int, error: BaseException) -> None:
        super().__init__()
        self.model, self.at, self.error = model, at, error

    def forward(self, x: Tensor) -> Tensor:
        self.at -= 1
        if self.at == 0:
            raise self.error
        return self.model(x)


def check_no_side_effects_of_errors(
    case: Case, device: torch.device, mode: str = "eval", at: int = 2, error: BaseException | None = None
) -> None:
    error = error or RuntimeError("planted")
    model = Raising(watched_model(case, device), at, error)
    x, y, extra = inputs(case, model.model, device)
    before = snapshot(model, x, y, *extra.values())
    with pytest.raises(type(error), match="planted"):
        case.run(Victim(model, mode=mode), x, y, **extra)  # type: ignore[arg-type]
    assert_unchanged(before, model, x, y, *extra.values())


def check_model_that_writes_into_its_input(case: Case, device: torch.device) -> None:
    """An in-place first layer changes neither x nor what is returned."""
    model, x, y = batch(case, device, n=5)

    def clamped(points: Tensor) -> Tensor:
        return model((points * 0.5 * 2.0 - 0.125 + 0.125).clamp(0.2, 0.8))

    with torch.no_grad():
        y = clamped(x).argmax(dim=1)
    before = x.clone()
    writing = WritesIntoInput(model)
    result = case.run(writing, x, y)
    assert torch.equal(x, before), "x was changed"
    with torch.no_grad():
        assert torch.equal(case.goal(clamped(result.x_adv), y), result.success)
    plain = case.run(_Plain(clamped), x, y)
    torch.testing.assert_close(result.x_adv, plain.x_adv, rtol=0, atol=1e-9)


class _Plain(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.slow
@over(mode=("eval", "asis"))
def test_no_side_effects(case: Case, device: torch.device, mode: str) -> None:
    check_no_side_effects(case, device, mode)


@over(mode=("eval", "asis"), at=(1, 2))
def test_no_side_effects_of_errors(case: Case, device: torch.device, mode: str, at: int) -> None:
    check_no_side_effects_of_errors(case, device, mode, at)


@over()
def test_no_side_effects_of_an_interrupt(case: Case, device: torch.device) -> None:
    check_no_side_effects_of_errors(case, device, "asis", 2, KeyboardInterrupt("planted"))


@pytest.mark.slow
@over()
def test_model_that_writes_into_its_input(case: Case, device: torch.device) -> None:
    check_model_that_writes_into_its_input(case, device)
