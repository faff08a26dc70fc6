"""Measuring the classifiers of texts: on all test texts, and on the first of them under the recipe's paraphrases."""

from __future__ import annotations

import torch
from torch import nn

from robustlab.attacker.domain import Tokens
from robustlab.attacker.victim import Victim
from robustlab.data import Dataset, load_tokens, vocabulary_of
from robustlab.data.texts import PADDING, UNKNOWN
from robustlab.zoo.recipes import Recipe
from robustlab.zoo.shipped import resolve

ATTACKED_TEXTS = 100  # the first so many are attacked


def measure_reader(made_by: Recipe, model: nn.Module, dataset: Dataset | None = None) -> tuple[float, float]:
    """The accuracy on all test texts, and on the first 100 under the recipe's attack."""
    device = next(model.parameters()).device
    dataset = load_tokens(made_by.dataset) if dataset is None else dataset
    x, y = dataset.x_test.to(device), dataset.y_test.to(device)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(dim=1) for part in x.split(500)]) == y
    vocabulary = vocabulary_of(made_by.dataset)
    victim = Victim(model, domain=Tokens(len(vocabulary), fixed=(PADDING, UNKNOWN)))
    x, y, neighbors = x[:ATTACKED_TEXTS], y[:ATTACKED_TEXTS], resolve("robustlab.data.synonyms")(vocabulary)
    result = resolve("robustlab.attacks.paraphrase")(victim, x, y, neighbors=neighbors, **made_by.attack)
    return right.double().mean().item(), 1 - result.success.double().mean().item()
