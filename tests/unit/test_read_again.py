"""A model that is read again where it must be: after every kind of change, the graph is the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustlab.graph import read_again
from robustlab.graph.node import Graph
from robustlab.graph.read_again import ReadAgain
from robustlab.models.modes import evaluating


class Odd(nn.Module):
    """A scale from an attribute, one that is detached from a parameter, and batch norm."""

    def __init__(self, detached: bool = False, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(3, 5), nn.Linear(5, 2)
            self.norm: nn.Module = nn.BatchNorm1d(5) if norm else nn.Identity()
        self.scale = nn.Parameter(torch.ones(5))
        self.detached, self.temperature = detached, 2.0

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.one(x)).relu()
        z = z * (self.scale.detach() + 0.0 if self.detached else 1.0)
        return self.two(z) / self.temperature


X = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> None:
    """All parameters move."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.rand(p.shape, generator=torch.Generator().manual_seed(2)))


def agrees(graph: Graph, model: nn.Module) -> bool:
    with torch.no_grad(), evaluating(model, freeze=False):
        return bool((graph(X) - model(X)).abs().max() < 1e-5)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a model is read."""
    seen: list[int] = []
    own = read_again.trace

    def counted(*args: object) -> Graph:
        seen.append(1)
        return own(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(read_again, "trace", counted)
    return seen


def test_what_only_moves_its_parameters_is_read_twice(readings: list[int]) -> None:
    model, read = Odd(), ReadAgain()
    for _ in range(6):
        assert agrees(read(model, (3,)), model)
        step(model)
    assert len(readings) == 2


def test_before_anything_moved_it_is_read_again(readings: list[int]) -> None:
    """Equal tensors say nothing yet."""
    model, read = Odd(detached=True), ReadAgain()
    for _ in range(3):
        read(model, (3,))
    step(model)
    assert agrees(read(model, (3,)), model) and len(readings) == 4


@pytest.mark.parametrize("options", [{"detached": True}, {"norm": True}], ids=["detached", "batch norm"])
def test_what_is_computed_from_parameters_is_read_every_time(options: dict[str, bool], readings: list[int]) -> None:
    """Also where nothing shows that it was."""
    model, read = Odd(**options), ReadAgain()
    for _ in range(5):
        assert agrees(read(model, (3,)), model)
        step(model)
    assert len(readings) == 5


def temperature(model: Odd) -> None:
    model.temperature = 3.0


def parameter(model: Odd) -> None:
    model.two.weight = nn.Parameter(model.two.weight.detach().mul(2.0))


def module(model: Odd) -> None:
    model.two = nn.Linear(5, 2)


def activation(model: Odd) -> None:
    model.norm = nn.Tanh()


def statistics(model: Odd) -> None:
    assert isinstance(model.norm, nn.BatchNorm1d) and model.norm.running_mean is not None
    model.norm.running_mean.add_(1.0)


def frozen(model: Odd) -> None:
    with torch.no_grad():
        model.scale.mul_(2.0)


@pytest.mark.parametrize("change", [temperature, parameter, module, activation, statistics, frozen])
def test_every_change_is_seen(change: Callable[[Odd], None], readings: list[int]) -> None:
    model = Odd(detached=change is frozen)
    if change is frozen:
        model.scale.requires_grad_(False)
    if change is statistics:
        model.norm = nn.BatchNorm1d(5, affine=False)
    read = ReadAgain()
    for _ in range(4):
        read(model, (3,))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1)
    assert len(readings) == 2, "it is held for the same"
    change(model)
    assert agrees(read(model, (3,)), model)
    assert agrees(read(model, (3,)), model)


def test_gradients_flow_into_the_models_own_parameters() -> None:
    model, read = Odd(), ReadAgain()
    for _ in range(3):
        step(model)
        graph = read(model, (3,))
    graph(X).sum().backward()
    found = model.one.weight.grad
    model.zero_grad()
    model.eval()(X).sum().backward()
    assert found is not None and model.one.weight.grad is not None
    torch.testing.assert_close(found, model.one.weight.grad)


def test_another_shape_and_another_model() -> None:
    model, read = nn.Conv2d(1, 2, 3), ReadAgain()
    for shape in ((1, 5, 5), (1, 5, 5), (1, 6, 6)):
        assert read(model, shape).input_shape == shape
        step(model)
    other = nn.Conv2d(1, 2, 3)
    assert any(value is other.weight for node in read(other, (1, 6, 6)).nodes[1:] for value in vars(node.op).values())
