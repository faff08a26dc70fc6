"""Models held still, one block inside another and several at once."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from robustlab.models import modes
from robustlab.models.modes import evaluating, frozen, training_mode


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()  # some parts already are
    model[0].bias.requires_grad_(False)
    return model


def state(model: nn.Module) -> list[object]:
    return [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]


def test_everything_is_put_back_even_after_an_error() -> None:
    model = net()
    before = state(model)
    with pytest.raises(KeyError), evaluating(model, None, len):
        assert not any(m.training for m in model.modules()) and not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert state(model) == before


def test_blocks_may_be_nested_and_share_parts() -> None:
    model = net()
    around, before = nn.Sequential(model, nn.ReLU()), state(model)
    first, second = evaluating(model), evaluating(around)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # the wrapper still works with the model
    assert not any(m.training for m in around.modules())
    second.__exit__(None, None, None)
    assert state(model) == before and around[1].training


def test_the_random_state_is_one_thing_whoever_asks() -> None:
    """Each tensor's ``device`` is another object; of blocks that overlap the last to be left puts the state back."""
    state = torch.get_rng_state()
    first, second = (evaluating(device=torch.zeros(1).device) for _ in range(2))
    first.__enter__()
    torch.rand(3)
    second.__enter__()
    torch.rand(3)
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.equal(torch.get_rng_state(), state)
    one, other = torch.device("cuda:0"), torch.device("cuda:0")
    assert one is not other and modes._key("random state", one) == modes._key("random state", other)


def test_what_cannot_be_put_back_keeps_nothing_else_from_it() -> None:
    model = net()
    before = state(model)
    with pytest.raises(RuntimeError, match="planted"), evaluating(model, Stubborn()):
        pass
    assert state(model) == before and not modes._HELD


class Stubborn(nn.Module):
    """Goes into evaluation mode and not back."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "training" and value and hasattr(self, "training"):
            raise RuntimeError("planted")
        super().__setattr__(name, value)


def test_two_threads_on_one_model() -> None:
    model, seen = net(), []
    before, inside, out = state(model), threading.Barrier(2), threading.Event()

    def long() -> None:
        with evaluating(model):
            inside.wait()
            out.wait()
            seen.append(any(m.training for m in model.modules()))

    worker = threading.Thread(target=long)
    worker.start()
    with evaluating(model):
        inside.wait()
    out.set()
    worker.join()
    assert seen == [False] and state(model) == before


def test_random_state_and_statistics_are_put_back() -> None:
    model = net()
    model[1].train()
    noise, mean = torch.get_rng_state(), model[1].running_mean.clone()
    with evaluating(model, mode="asis"):
        model(torch.randn(5, 3))
        assert model[1].training and not torch.equal(model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), noise) and torch.equal(model[1].running_mean, mean)


def test_parameters_may_stay_free() -> None:
    model = net()
    with evaluating(model, freeze=False):
        assert model[0].weight.requires_grad


def test_frozen_holds_parameters_alone() -> None:
    model = net().train()
    before, mean = state(model), model[1].running_mean.clone()
    noise = torch.get_rng_state()
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters()) and model.training
        model(torch.randn(5, 3))
    assert state(model) == before
    assert not torch.equal(model[1].running_mean, mean) and not torch.equal(torch.get_rng_state(), noise)


def test_training_mode_asks_the_model_itself() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[1].eval()  # many do so with their batch norm
            return self

    model = Frozen(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(KeyError), training_mode(model):
        assert model[0].training and not model[1].training
        with evaluating(model):
            assert not model[0].training
        assert model[0].training and not model[1].training
        raise KeyError
    assert not any(part.training for part in model.modules())
