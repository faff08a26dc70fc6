"""One clear error for each kind of bad input, before any work: the argument, the value wanted, the value seen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.geometry.norms import NORMS
from tests.suite.cases import CASES, TARGETED, Case, batch, over
from tests.suite.models import FLAT, Affine, Counting, Then, mlp
from tests.suite.test_no_side_effects import assert_unchanged, snapshot


class Bad(NamedTuple):
    """A wrong call: the word that the error must start with, and what is passed instead of the right thing."""

    argument: str
    changes: dict[str, Any]
    note: str = ""
    after_a_forward: bool = False  # what only the model's output tells

    def __str__(self) -> str:
        return f"{self.argument}: {self.note or self.changes[self.argument]}"


def bad_inputs(x: Tensor, y: Tensor, classes: int) -> Iterator[Bad]:
    """Wrong in ``x`` or ``y``, for any attack."""
    n = len(x)
    yield Bad("x", {"x": x.tolist()}, "a list")
    yield Bad("x", {"x": x.cpu().numpy()}, "an array")
    yield Bad("x", {"x": (x * 255).to(torch.uint8)}, "uint8")
    yield Bad("x", {"x": x.flatten()[:5], "y": y.new_zeros(5)}, "a vector")
    yield Bad("x", {"x": x * 255}, "above the box")
    yield Bad("x", {"x": x - 0.5}, "below the box")
    for value in (torch.nan, torch.inf, -torch.inf):
        yield Bad("x", {"x": x.clone().index_fill_(0, torch.tensor([1], device=x.device), value)}, str(value))
    yield Bad("x", {"x": x.float()}, "another dtype than the model's", after_a_forward=True)
    yield Bad("y", {"y": y[:-1]}, "too short")
    yield Bad("y", {"y": y[:, None]}, "a column")
    yield Bad("y", {"y": y.double()}, "floats")
    yield Bad("y", {"y": y.tolist()}, "a list")
    yield Bad("y", {"y": y == 0}, "bool")
    yield Bad("y", {"y": torch.full_like(y, -1)}, "-1", after_a_forward=True)
    yield Bad("y", {"y": torch.full_like(y, classes)}, "K", after_a_forward=True)
    yield Bad("ids", {"ids": torch.arange(n + 1)}, "too many")
    yield Bad("ids", {"ids": torch.zeros(n)}, "floats")


def bad_dims(case: Case, x: Tensor) -> Iterator[Bad]:
    """Samples of the shapes that the catalogue's row rules out: no images, or images without color."""
    for name, shape in (("flat", FLAT), ("image", (1, 4, 4))):
        if name not in case.row.dims:
            yield Bad("x", {"x": x.new_full((len(x), *shape), 0.5)}, f"samples of shape {shape}")


def bad_arguments(case: Case, x: Tensor, y: Tensor) -> Iterator[Bad]:
    """Wrong in the attack's own arguments, read from its signature."""
    for norm in ("l3", None, *sorted(set(NORMS) - set(case.row.norms))):
        if case.takes("norm"):
            yield Bad("norm", {"norm": norm})
    positive = [name for name in ("eps", "step_size", "lr", "c") if case.takes(name)]
    for name in positive:
        for value in (-0.1, float("nan"), float("inf"), "0.1", *([] if name == "eps" else [0])):
            yield Bad(name, {name: value})
    for name in [name for name in ("eps", "step_size") if case.takes(name)]:
        yield Bad(name, {name: torch.full((len(x) + 1,), 0.1)}, "too many")
        yield Bad(name, {name: torch.linspace(-1, 1, len(x))}, "one of them below 0")
    for name in [name for name in ("kappa", "overshoot") if case.takes(name)]:
        for value in (-0.1, float("nan"), float("inf"), "0.1"):
            yield Bad(name, {name: value})
    for name, parameter in inspect.signature(case.attack).parameters.items():
        if isinstance(parameter.default, int) and not isinstance(parameter.default, bool) and name != "seed":
            for value in (0, -1, 2.5, "3", True):
                yield Bad(name, {name: value})
    if case.takes("loss"):
        yield Bad("loss", {"loss": "hinge"})
    if case.takes("init"):
        yield Bad("init", {"init": torch.zeros(len(x), 1)}, "another shape")
        yield Bad("init", {"init": 0.0})
    if case.targeted:
        yield Bad("target", {"target": y}, "target = y")
        yield Bad("target", {"target": case.target(y)[:-1]}, "too short")
        yield Bad("target", {"target": case.target(y).double()}, "floats")
        yield Bad("target", {"target": "1"}, "a string")
        yield Bad("target", {"target": -1}, after_a_forward=True)
        yield Bad("target", {"target": case.classes}, after_a_forward=True)


def check_bad_argument(case: Case, bad: Bad, device: torch.device) -> None:
    model, x, y = batch(case, device, n=3)
    counting = Counting(model)
    args = {"x": x, "y": y, **({"target": case.target(y)} if case.targeted else {}), **bad.changes}
    before = snapshot(counting, x, y)
    with pytest.raises((ValueError, TypeError)) as caught:
        case.run(counting, args.pop("x"), args.pop("y"), **args)
    message = str(caught.value)
    assert message.startswith(bad.argument + ":"), f"the error does not start with the argument: {message}"
    assert "want" in message and "got" in message, f"the error does not say what is wanted and seen: {message}"
    assert counting.calls <= int(bad.after_a_forward), "work was done before the error"
    assert_unchanged(before, counting, x, y)


def check_bad_arguments(case: Case, device: torch.device) -> None:
    _, x, y = batch(case, device, n=3)
    bads = [*bad_inputs(x, y, case.classes), *bad_dims(case, x), *bad_arguments(case, x, y)]
    wrong = []
    for bad in bads:
        try:
            check_bad_argument(case, bad, device)
        except (Exception, pytest.fail.Exception) as error:  # collected, so that one run names them all
            wrong.append(f"{bad} -> {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def check_target_names_the_rows(case: Case, device: torch.device) -> None:
    model, x, y = batch(case, device, n=5)
    target = case.target(y)
    target[3] = y[3]
    with pytest.raises(ValueError, match=r"^target: .*rows? \[3\]"):
        case.run(model, x, y, target=target)


def check_bad_models(case: Case, device: torch.device) -> None:
    """What the model returns must be (N, K) numbers with enough classes."""
    model, x, y = batch(case, device, n=3)
    few = case.row.min_classes - 1

    def refused(wrong: Any, *, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=r"^model: .*want.*, got|^model: .*at least.*, got"):
            case.run(wrong, x, y)

    outputs: list[Callable[[Tensor], Any]] = [
        lambda z: z[:, 0],
        lambda z: z[..., None],
        lambda z: z[:-1],
        lambda z: {"scores": z},
        lambda z: z.argmax(1, keepdim=True),
        lambda z: z[:, :few],
    ]
    for output in outputs:
        refused(Then(model, output))
    if case.row.access == "white":
        refused(lambda points: points.flatten(1), error=TypeError)
        with pytest.raises(ValueError, match=r"^model: .*differentiable"):
            case.run(Then(model, lambda z: z.detach()), x, y)
    refused(3, error=TypeError)
    refused(None, error=TypeError)


def check_access(case: Case, device: torch.device) -> None:
    """An attack that needs more than it is granted is refused before it asks anything."""
    model, x, y = batch(case, device, n=3)
    levels = ("hard", "soft", "white")
    for access in levels[: levels.index(case.row.access)]:
        counting = Counting(model)
        with pytest.raises(ValueError, match=f"^access: .*'{case.row.access}'.*'{access}'"):
            case.run(Victim(counting, access=access), x, y)  # type: ignore[arg-type]
        assert counting.calls == 0
    for access in levels[levels.index(case.row.access) :]:
        case.run(Victim(model, access=access), x, y)  # type: ignore[arg-type]


def check_losses_that_need_classes(case: Case, device: torch.device) -> None:
    needed = 4 if case.targeted else 3
    model: nn.Module = mlp(case.shape, needed - 1).to(device)
    _, x, _ = batch(case, device, n=3)
    y = torch.zeros(3, dtype=torch.int64, device=device)
    target = {"target": 1} if case.targeted else {}
    with pytest.raises(ValueError, match=rf"^model: .*at least {needed} classes, got {needed - 1}"):
        case.run(model, x, y, loss="dlr", **target)


def check_models_without_parameters(case: Case, device: torch.device) -> None:
    """Nothing to compare dtypes with: the attack runs in the dtype of x."""
    _, x, _ = batch(case, device, n=3)
    d = x[0].numel()
    rows = torch.stack([torch.ones(d), -torch.ones(d), torch.arange(d) / d]).to(x)
    fixed = Affine(rows, torch.tensor([0.0, d, 0.3]).to(x))
    weight, bias = fixed.weight.data, fixed.bias.data
    del fixed.weight, fixed.bias
    fixed.weight, fixed.bias = weight, bias  # type: ignore[assignment]
    assert not list(fixed.parameters())
    result = case.run(fixed, x, fixed(x).argmax(1))
    assert result.x_adv.dtype == x.dtype


@pytest.mark.slow
@over()
def test_bad_arguments(case: Case, device: torch.device) -> None:
    check_bad_arguments(case, device)


@over()
def test_bad_models(case: Case, device: torch.device) -> None:
    check_bad_models(case, device)


@pytest.mark.slow
@over()
def test_access(case: Case, device: torch.device) -> None:
    check_access(case, device)


@pytest.mark.slow
@over()
def test_models_without_parameters(case: Case, device: torch.device) -> None:
    check_models_without_parameters(case, device)


@over(*TARGETED)
def test_target_names_the_rows(case: Case, device: torch.device) -> None:
    check_target_names_the_rows(case, device)


@over(*[case for case in CASES if case.takes("loss")])
def test_losses_that_need_classes(case: Case, device: torch.device) -> None:
    check_losses_that_need_classes(case, device)


@pytest.mark.gpu
@over()
def test_another_device(case: Case) -> None:
    model, x, y = batch(case, torch.device("cuda"), n=3)
    with pytest.raises(ValueError, match=r"^x: want the model's device cuda:0, got cpu"):
        case.run(model, x.cpu(), y.cpu())
