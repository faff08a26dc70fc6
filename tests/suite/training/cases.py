"""What the suite of the training phase runs: every finished poison, backdoor, detector and repair of the catalogue.

A new method is tested by its catalogue row alone: its function is called with the row's ``quick`` arguments, and what
it needs beyond them is supplied by name (:func:`supply`). Each file ``test_*.py`` beside this one holds one concern:
functions ``check_*(case, …)`` and the tests that run them; ``test_training_suite_catches.py`` runs the same functions
on methods that are broken on purpose.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.attacker.results import Detection
from robustlab.attacks import Canary
from robustlab.data import Recordings, spoken_digits, spoken_strings
from robustlab.defenses.detection.neural_cleanse import Patches
from robustlab.geometry.keyed import Noise
from robustlab.models import character_gru
from robustlab.models.linear import fit_linear
from robustlab.teaching.catalogue import Row, rows
from robustlab.training.fit import fit

REGRESSION = ("regression_poisoning", "statistical_poisoning", "trim")  # their data are tables with real responses
SPOKEN = ("temporal_dependency",)  # their inputs are sounds
BINARY = ("sanitization_bound",)  # their labels are 0 and 1
CLASSES, N, SIDE, TARGET, RATE = 3, 60, 8, 0, 0.1


@dataclass(frozen=True)
class Case:
    """One method of the catalogue."""

    row: Row
    function: Callable[..., Any]

    def __str__(self) -> str:
        return self.row.key

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.function).parameters)

    def takes(self, name: str) -> bool:
        return name in self.parameters

    def needs(self, name: str) -> bool:
        """Whether it takes an argument of this name and has no default for it."""
        parameter = self.parameters.get(name)
        collects = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return parameter is not None and parameter.default is inspect.Parameter.empty and parameter.kind not in collects

    def arguments(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", **changes: Any
    ) -> dict[str, Any]:
        """The row's quick arguments, and by name what else the function cannot do without."""
        given = dict(self.row.quick) | changes
        for name in self.parameters:
            if self.needs(name) and name not in given:
                given[name] = supply(self, name, dtype, torch.device(device))
        return given

    def run(self, **arguments: Any) -> Any:
        """The function on these arguments; leading parameters are passed in their places."""
        leading = [
            arguments.pop(name)
            for name, parameter in self.parameters.items()
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY and name in arguments
        ]
        return self.function(*leading, **arguments)


def cases(*kinds: str) -> list[Case]:
    """A case for each finished row of these kinds."""
    return [Case(row, getattr(import_module(str(row.module)), row.key)) for row in rows(done=True) if row.kind in kinds]


POISONS = cases("poisoning", "backdoor")
DETECTORS = cases("detector", "repair")
# Trainers that are given the data themselves; objectives for fit() have a suite of their own. Studies have none, but
# these take data and models as poisons do, and keep the same manners.
OF_DATA = ("random_labels", "exposure", "tradeoff", "heterogeneity")
STUDIES = [case for case in cases("trainer") if {"x", "data", "base"} & set(case.parameters)]
STUDIES += [case for case in cases("study") if case.row.key in OF_DATA]


def over(found: list[Case]) -> pytest.MarkDecorator:
    """Parametrizes a test over these cases; the ids are their keys."""
    return pytest.mark.parametrize("case", found, ids=str)


def images(n: int = N, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) in [0, 1] of three classes, each with two bright rows of its own; some pixels are 0 or 1."""
    y = torch.arange(n) % CLASSES
    noise = Noise(seed, torch.arange(n))
    x = noise.uniform(0, (1, SIDE, SIDE), torch.float64, -0.1, 0.4)
    rows = torch.arange(SIDE) // 2
    x = x + 0.6 * (rows[None] == y[:, None])[:, None, :, None]
    return x.clamp(0, 1).to(dtype), y


def table(n: int = 40, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (n, 3) and real targets (n,) in [0, 1], almost linear."""
    noise = Noise(seed, torch.arange(n))
    x = noise.uniform(0, (3,), torch.float64)
    y = (
        x @ torch.tensor([0.5, 0.3, -0.2], dtype=torch.float64) + 0.2 + 0.05 * noise.normal(1, (), torch.float64)
    ).clamp(0, 1)
    return x.to(dtype), y.to(dtype)


def sounds(n: int = N, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Spoken prices, (n, 24000): in noise, so that a recognizer is not sure of them."""
    x = spoken_strings(_recordings(), n, kind="price", seed=seed, length=50_000).x[:, :24_000]
    noise = Noise(seed, torch.arange(n)).normal(0, x.shape[1:], torch.float64)
    return (x + 0.03 * noise).clamp(-1, 1).to(dtype)


@cache
def _recordings() -> Recordings:
    return spoken_digits()


def net(seed: int = 0, flat: bool = False) -> nn.Module:
    """An untrained small net for the images, or for vectors (6,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if flat:
            return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, CLASSES),
        ).eval()  # fmt: skip


@cache
def _trained(seed: int, flat: bool) -> nn.Module:
    model = net(seed, flat)
    fit(model, base(flat), epochs=20, lr=2e-2, batch_size=20, seed=seed)
    return model


def trained(
    seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", flat: bool = False
) -> nn.Module:
    """A small net that fits the images; a copy of one's own."""
    return copy.deepcopy(_trained(seed, flat)).to(device=device, dtype=dtype)


@cache
def _clean(number: int) -> nn.Module:
    model = net(number)
    fit(model, clean_images(number), epochs=5, lr=2e-2, batch_size=20, seed=number)
    return model


def clean(number: int) -> nn.Module:
    """One of many small nets without a backdoor, each with images and weights of its own; a copy of one's own."""
    return copy.deepcopy(_clean(number))


def clean_images(number: int) -> tuple[Tensor, Tensor]:
    """What clean net `number` was trained on."""
    return images(seed=1000 + number)


def base(flat: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x, y = images(dtype=dtype)
    return (x[:, 0, ::3, ::4].flatten(1).contiguous(), y) if flat else (x, y)  # rows 0, 3, 6: one for each class


def supply(case: Case, name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """What a parameter without a default gets, by its name."""
    flat = "image" not in case.row.dims and "flat" in case.row.dims
    x, y = (part.to(device) for part in base(flat, dtype))
    if case.row.key in SPOKEN and name in ("model", "x", "clean"):
        return (
            zoo.load("spoken_cnn").to(device, dtype)
            if name == "model"
            else sounds(dtype=dtype, seed=len(name)).to(device)
        )
    regression = case.row.key in REGRESSION
    if case.row.key in BINARY:
        y = y.clamp_max(1)
    if name == "data" and regression:
        x, y = (part.to(device) for part in table(dtype=dtype))
    if name == "model" and regression:
        return fit_linear(*(part.to(device) for part in table(dtype=dtype)))
    models = [trained(0, dtype, device, flat)] if "model" in name else []
    known = {
        "network": net(0, flat).to(device, dtype),
        "models": {str(seed): trained(seed, dtype, device, flat) for seed in (0, 1)} if name == "models" else {},
        "data": (x, y), "test": (x, y), "x": x, "y": y, "model": models and models[0],
        "clean": images(40, dtype, seed=1)[0].to(device),
        "classes": CLASSES, "n_clean": len(x) - 4, "n": len(x) - 4,
        "target": TARGET, "x_target": x[1:2], "y_target": int(y[1]), "eps": 0.1, "seed": 0,
        "detection": patch(dtype, device),
        "language_model": character_gru(hidden=8).to(device=device, dtype=dtype), "canary": Canary("pin ??", "42"),
    }  # fmt: skip
    if name not in known:
        raise KeyError(
            f"{case.row.key}: the suite does not know what to supply for {name!r}: give it in the row's quick"
        )
    return known[name]


def patch(dtype: torch.dtype, device: torch.device) -> Detection[Patches]:
    """What Neural Cleanse says where it has found a white corner that leads to the target."""
    masks = torch.zeros(CLASSES, 1, SIDE, SIDE, dtype=dtype, device=device)
    masks[TARGET, :, :2, :2] = 1.0
    index = torch.where(torch.arange(CLASSES, device=device) == TARGET, 3.0, 0.0)
    sizes, all_work = masks.sum(dim=(1, 2, 3)), torch.ones_like(index)
    found = Patches(masks, masks.clone(), sizes, all_work, torch.arange(CLASSES, device=device), all_work == 1)
    return Detection(index, index > 2.0, 2.0, found)


def tensors(result: Any) -> list[Tensor]:
    """All tensors in a result, in a fixed order, so that two results can be compared."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, nn.Module):
        return list(result.state_dict().values())
    if isinstance(result, (list, tuple)):
        return [t for part in result for t in tensors(part)]
    if isinstance(result, dict):
        return [t for part in result.values() for t in tensors(part)]
    if isinstance(result, float | int):
        return [torch.tensor(float(result))]
    if isinstance(result, Poisoned) or hasattr(result, "__dataclass_fields__"):
        return [
            t
            for name, part in vars(result).items()
            if name not in ("seconds", "history", "mask_history")
            for t in tensors(part)
        ]
    return []


def twice(case: Case) -> tuple[Any, Any]:
    """Its results from two states of the global generators, which a method puts back, but must not draw from."""
    results = []
    for start in (1, 2):
        arguments = case.arguments()
        torch.manual_seed(start)
        np.random.seed(start)  # noqa: NPY002
        random.seed(start)
        results.append(case.run(**arguments))
    return results[0], results[1]


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal in every tensor and number."""
    left, right = tensors(a), tensors(b)
    return len(left) == len(right) and all(
        s.shape == t.shape and torch.equal(s.nan_to_num(7.5), t.nan_to_num(7.5))
        for s, t in zip(left, right, strict=True)
    )
