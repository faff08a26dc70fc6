"""Models held still, one block inside another and several at once."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from robustlab.models.modes import evaluating


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
