"""What stands around the methods of the catalogue, on the pretend device: inputs, results, figures, data, files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustlab import data, zoo
from robustlab.attacker.victim import accuracy, predict
from robustlab.attacks import apgd, pgd
from robustlab.defenses.broken import gallery
from robustlab.evaluation import autoattack, evaluate
from robustlab.models import class_vae, text_cnn
from robustlab.models.probing import penultimate
from robustlab.teaching.plot import image_grid
from robustlab.verification import Ball, Box, bounds, certified_radius, lipschitz_bound, trace, verify
from tests.pretend import pretend_cuda
from tests.pretend.tags import CPU, CUDA
from tests.pretend.twins import leaves, twins
from tests.suite.models import convnet
from tests.suite.verification.cases import residual_net


def images(device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    model = convnet().to(device)
    x = torch.rand(4, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    return model, x, predict(model, x)


def places(result: Any) -> set[torch.device]:
    return {leaf.device for _, leaf in leaves(result) if isinstance(leaf, Tensor)}


# Attacks and evaluation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("name", ["y", "eps", "target", "ids", "init"])
def test_arguments_may_come_from_the_host(attack: Callable[..., Any], name: str) -> None:
    """Only x must be where the model is."""
    with pretend_cuda():
        model, x, y = images(CUDA)
        y[0] = (y[0] + 1) % 3  # one sample that the model has wrong, so that the others' rows are taken
        given = {"y": y, "eps": torch.full((4,), 0.1, device=CUDA), "ids": torch.arange(3, 7, device=CUDA)}
        given |= {"init": torch.full_like(x, 0.01)} | ({"target": (y + 1) % 3} if name == "target" else {})
        there = attack(model, x, **given, steps=3)
        mixed = attack(model, x, **{**given, name: given[name].cpu()}, steps=3)
        assert torch.equal(there.x_adv, mixed.x_adv) and places(mixed) == {CUDA}


def test_inputs_of_the_host_are_refused_by_name() -> None:
    with pretend_cuda():
        model, x, y = images(CUDA)
        with pytest.raises(ValueError, match=r"x: want the model's device cuda:0, got cpu"):
            pgd(model, x.cpu(), y, eps=0.1)


def test_results_move_and_are_shown() -> None:
    with pretend_cuda():
        result = pgd(*images(CUDA), eps=0.1, steps=3, trace=True)
        assert "succeeded" in result.summary() and "cuda:0" in repr(result)
        for place in (CPU, CUDA):
            assert places(result.to(place)) == {place}
        assert type(result).cat([result, result]).x_adv.device == CUDA


def test_a_loader_of_the_hosts_data() -> None:
    def run(device: torch.device) -> Any:
        model, x, y = images(device)
        loader = DataLoader(TensorDataset(x.cpu(), y.cpu()), batch_size=3)
        return [
            evaluate(model, loader, attack=pgd, eps=[0.05, 0.1], steps=3),
            autoattack(model, loader, eps=0.15, attacks=["apgd-t"]),
        ]

    twins(run, home=CPU)


def test_autoattack_goes_on_from_its_file(tmp_path: Path) -> None:
    """What one device has written another can read."""
    run = {"eps": 0.15, "attacks": ["square"], "state": tmp_path / "state.safetensors"}
    with pretend_cuda():
        first = autoattack(*images(CUDA), **run)
        assert torch.equal(autoattack(*images(CUDA), **run).queries, first.queries)
    assert torch.equal(autoattack(*images(CPU), **run).queries, first.queries)


def test_figures() -> None:
    with pretend_cuda():
        model, x, y = images(CUDA)
        evaluate(model, x, y, attack=pgd, eps=[0.05, 0.1], steps=3).plot()
        pictures = torch.rand(3, 1, 8, 8, device=CUDA)
        assert isinstance(image_grid({"x": pictures, "δ": pictures - 0.5}, signed=["δ"]), Figure)


# Data and models -----------------------------------------------------------------------------------------------------


def test_data_and_checkpoints() -> None:
    def run(device: torch.device) -> Any:
        digits = data.load("mnist5k").subset(8, 8).to(device)
        model = zoo.load("mnist_cnn", device=device)
        return [
            digits.x_train, digits.y_test, model, penultimate(model, digits.x_test),
            torch.tensor(accuracy(model, digits.x_test, digits.y_test), device=device),
        ]  # fmt: skip

    twins(run, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_gallery_of_broken_defenses() -> None:
    with pretend_cuda():
        digits = data.load("mnist5k").subset(2, 2).to(CUDA)
        for name, entry in gallery(digits.x_test, digits.y_test).items():
            assert entry.model(digits.x_test).device == CUDA, name


def test_models_that_draw_and_models_of_words() -> None:
    def run(device: torch.device) -> Any:
        vae = class_vae(latent=2, hidden=4).to(device)
        y = torch.tensor([0, 1], device=device)
        words = text_cnn(vocabulary=9, classes=2).to(device)
        return [vae.sample(y, seed=1), vae(vae.sample(y)[0]), words(torch.tensor([[1, 2, 3, 4, 5, 0]], device=device))]

    twins(run, rtol=1e-5, atol=1e-6)


# Bounds --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bounds_radii_and_the_graph() -> None:
    def run(device: torch.device) -> Any:
        model = residual_net((1, 5, 5)).to(device)
        x = torch.full((2, 1, 5, 5), 0.5, dtype=torch.float64, device=device)
        graph = trace(model, x)
        return [
            graph(x), copy.deepcopy(graph).to(device)(x),
            bounds(model, Box(x - 0.01, x + 0.01), method="crown"),
            bounds(graph, Ball(x, 0.1, "l2"), method="ibp"),
            certified_radius(model, x, norm="linf", steps=3),
            lipschitz_bound(model, x, eps=0.01),
            verify(model, x, eps=0.002, timeout=None),
        ]  # fmt: skip

    twins(run, rtol=1e-9, atol=1e-9)
