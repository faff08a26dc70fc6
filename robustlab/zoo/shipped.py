"""Reading the shipped checkpoints: safetensors only, SHA-256 checked, nothing unpickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustlab import models
from robustlab.zoo.recipes import RECIPES, recipe

FOLDER = Path(__file__).parent / "checkpoints"
RECORDED = FOLDER / "recorded.json"


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
    facts, made_by = recorded(name), recipe(name)
    raw = (FOLDER / f"{name}.safetensors").read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != facts["sha256"]:
        raise ValueError(
            f"{name}.safetensors: want SHA-256 {facts['sha256']}, got {found}: the file was changed or cut short"
        )
    from safetensors.torch import load as parse

    model = models.build(made_by.builder, **made_by.builder_kwargs)
    model.load_state_dict(parse(raw), strict=True)
    return model.to(device).eval()
