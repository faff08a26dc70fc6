"""Making and measuring the detectors of persons: scenes composed for each detector, boxes by average precision."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from robustlab.data.people import People, people
from robustlab.models.boxes import average_precision, detected, detections
from robustlab.training.fit import fit
from robustlab.zoo.recipes import Recipe
from robustlab.zoo.shipped import resolve

LESSONS, SCENES, FRAMES = 4000, 400, 40  # scenes for training, for testing, and frames of one person for the attack
_SEEDS = 0x5CE4E5


def train_finder(made_by: Recipe, model: nn.Module, *, device: torch.device | str | None, progress: bool) -> None:
    """Train a detector by its recipe, on scenes that no other recipe's seed draws."""
    scenes = people(LESSONS, seed=_SEEDS + made_by.seed)
    objective = resolve(str(made_by.objective))
    told = {"seed": made_by.seed, "device": device, "progress": progress, **made_by.fit_kwargs}
    fit(model, (scenes.images, scenes.boxes), objective=objective, **told)


def measure_finder(made_by: Recipe, model: nn.Module) -> tuple[float, float]:
    """The average precision on test scenes, and how often a person is found in a shirt made by the recipe's attack."""
    device = next(model.parameters()).device
    scenes = test_people()
    precision = average_precision(detections(model, scenes.images.to(device)), scenes.boxes.to(device))
    made, judge = (_frames(model, part, device) for part in ("train", "test"))
    shirts = resolve("robustlab.attacks.physical.shirts.Shirts")
    result = resolve("robustlab.attacks.tshirt")(
        model, made.images, made.boxes[:, 0], scenes=shirts(made.shirts[:, 0]),
        held_out=(judge.images, shirts(judge.shirts[:, 0]).views(5), judge.boxes[:, 0]), **made_by.attack,
    )  # fmt: skip
    return precision, 1 - result.success.double().mean().item()


@cache
def test_people() -> People:
    """The scenes that detectors are measured on, before photographs that none was trained on."""
    return people(SCENES, part="test", seed=_SEEDS - 1)


def _frames(model: nn.Module, part: str, device: torch.device) -> People:
    """Frames of one person each, whom the detector finds."""
    drawn = people(FRAMES, least=1, most=1, part=part, seed=_SEEDS - 2)  # type: ignore[arg-type]
    images, boxes = drawn.images.to(device), drawn.boxes.to(device)
    seen = detected(detections(model, images), boxes[:, 0])
    return People(images[seen], boxes[seen], drawn.shirts.to(device)[seen])
