"""Making and measuring the recognizers of spoken digits: strings said anew in every epoch, and read whole."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from robustlab.data.spoken import Recordings, Strings, digit_strings, said_anew, spoken_digits, spoken_strings
from robustlab.models.speech import heard, same_labels
from robustlab.training.fit import fit
from robustlab.zoo.recipes import Recipe
from robustlab.zoo.shipped import resolve

STRINGS, LESSONS = 1000, 4000  # strings for testing, and for training
ATTACKED_STRINGS = 50  # the first so many are attacked


def train_recognizer(made_by: Recipe, model: nn.Module, *, device: torch.device | str | None, progress: bool) -> None:
    """Train a recognizer by its recipe, on the training recordings of all speakers but the stranger."""
    digits = digit_strings(LESSONS, seed=1)
    objective = resolve(str(made_by.objective))
    augment = said_anew(_recordings(), **made_by.objective_kwargs)
    told = {"seed": made_by.seed, "device": device, "progress": progress, **made_by.fit_kwargs}
    fit(model, (digits, digits), objective=objective, augment=augment, **told)


def measure_recognizer(made_by: Recipe, model: nn.Module) -> tuple[float, float]:
    """The share of test strings that are read without an error, and of the first 50 under the recipe's attack."""
    device = next(model.parameters()).device
    strings = test_strings()
    x, y = strings.x.to(device), strings.digits.to(device)
    with torch.no_grad():
        right = same_labels(heard(model, x), y)
    attack = {name: value for name, value in made_by.attack.items() if name != "norm"}
    x, y = x[:ATTACKED_STRINGS], y[:ATTACKED_STRINGS]
    result = resolve("robustlab.attacks.transcript")(model, x, y, **attack)
    return right.double().mean().item(), 1 - result.success.double().mean().item()


@cache
def test_strings() -> Strings:
    """The strings that recognizers are measured on: test recordings, by speakers whom they have heard."""
    return spoken_strings(_recordings(), STRINGS)


@cache
def _recordings() -> Recordings:
    return spoken_digits()
