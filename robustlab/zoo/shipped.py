"""Reading the shipped checkpoints: safetensors only, SHA-256 checked, nothing unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import models
from robustlab.zoo.recipes import RECIPES, Recipe, recipe

FOLDER = Path(__file__).parent / "checkpoints"
RECORDED = FOLDER / "recorded.json"
TRIGGER = "trigger."  # begins the names of a trained trigger's tensors, in the file of its model


def names() -> tuple[str, ...]:
    """The names of the checkpoints."""
    return tuple(RECIPES)


def recorded(name: str) -> dict[str, Any]:
    """What was measured when the checkpoint was made: SHA-256, accuracies, size.

    Raises:
        ValueError: if the name is unknown, or nothing is recorded under it.
    """
    recipe(name)
    facts = json.loads(RECORDED.read_text(encoding="utf-8"))
    if name not in facts:
        raise ValueError(f"name: want a shipped checkpoint, one of {', '.join(facts)}, got {name!r}")
    return facts[name]


def info(name: str) -> dict[str, Any]:
    """A checkpoint's recipe and what was recorded when it was made, as one plain dict.

    Raises:
        ValueError: if the name is unknown.
    """
    return {**asdict(recipe(name)), **recorded(name)}


def load(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """Load a shipped model, in eval mode.

    Args:
        name: one of :func:`names`.
        device: where to put it. Its parameters require gradients, as those of any fresh model.

    Raises:
        ValueError: if the name is unknown, or the file's SHA-256 is not the recorded one.
        RuntimeError: if the file's tensors are not exactly those of the recipe's model.
    """
    model_state, _ = _tensors(name)
    made_by = recipe(name)
    model = models.build(made_by.builder, **made_by.builder_kwargs)
    model.load_state_dict(model_state, strict=True)
    return model.to(device).eval()


def trigger(name: str, device: torch.device | str = "cpu") -> nn.Module:
    """The trigger of a backdoored checkpoint, a module from inputs to inputs: what its attacker keeps secret.

    Its target label is ``info(name)["backdoor"]["target"]``.

    Args:
        name: a checkpoint whose recipe has a backdoor.
        device: where to put it.

    Raises:
        ValueError: if the name is unknown or that of an honest model, or the file's SHA-256 is not the recorded one.
        RuntimeError: if the file's tensors are not exactly those of the trigger.
    """
    key = untrained_trigger(recipe(name))
    if key is None:
        backdoored = ", ".join(name for name, made_by in RECIPES.items() if made_by.backdoor)
        raise ValueError(f"name: want a backdoored checkpoint, one of {backdoored}, got {name!r}")
    if carries_trigger(name):
        key.load_state_dict(_tensors(name)[1], strict=True)
    return key.to(device).eval()


def untrained_trigger(made_by: Recipe) -> nn.Module | None:
    """The trigger that a recipe begins with; None for an honest model."""
    door = made_by.backdoor
    return resolve(door.trigger)(**door.trigger_kwargs) if door else None


def carries_trigger(name: str) -> bool:
    """Whether the checkpoint's file holds the weights of a trigger beside those of the model."""
    door = recipe(name).backdoor
    return door is not None and door.trains


def resolve(dotted: str) -> Any:
    """The object of a dotted name. The zoo stands left of attacks and defenses, so it names them by strings."""
    head, _, name = dotted.rpartition(".")
    try:
        return getattr(import_module(head), name)
    except ModuleNotFoundError:  # an attribute of a class
        return getattr(resolve(head), name)


def _tensors(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a shipped file, checked: the model's, and the trigger's where it has one."""
    facts = recorded(name)
    raw = (FOLDER / f"{name}.safetensors").read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != facts["sha256"]:
        raise ValueError(
            f"{name}.safetensors: want SHA-256 {facts['sha256']}, got {found}: the file was changed or cut short"
        )
    from safetensors.torch import load as parse

    state = parse(raw)
    if not carries_trigger(name):
        return state, {}
    of_trigger = {key.removeprefix(TRIGGER): value for key, value in state.items() if key.startswith(TRIGGER)}
    return {key: value for key, value in state.items() if not key.startswith(TRIGGER)}, of_trigger
