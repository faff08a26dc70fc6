"""The networks of recorded experiments: those of the zoo, and the same recipes trained at other seeds.

``mnist_badnets`` is the shipped network, ``mnist_badnets-2`` its recipe at seed 2. A network at another seed is stored
in ``experiments/weights`` in half precision, since what a training gives differs between machines; what is measured is
measured on the network that was stored and read again. One that is not there yet is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load as parse
from safetensors.torch import save as serialize
from torch import nn

from robustlab import models, zoo
from robustlab.files import write_together
from robustlab.zoo.recipes import recipe
from robustlab.zoo.shipped import TRIGGER, carries_trigger, untrained_trigger
from robustlab.zoo.training import train_with_trigger

WEIGHTS = Path(__file__).parent / "weights"


def load(name: str) -> tuple[nn.Module, nn.Module | None]:
    """A network in eval mode, and the trigger of its backdoor (None for an honest one)."""
    base, _, seed = name.partition("-")
    if not seed:
        return zoo.load(base), zoo.trigger(base) if recipe(base).backdoor else None
    made_by = recipe(base)
    state = {key: value.float() for key, value in parse(_stored(name).read_bytes()).items()}
    model, key = models.build(made_by.builder, **made_by.builder_kwargs), untrained_trigger(made_by)
    if key is not None and carries_trigger(base):
        key.load_state_dict({k.removeprefix(TRIGGER): v for k, v in state.items() if k.startswith(TRIGGER)})
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith(TRIGGER)})
    return model.eval(), key.eval() if key is not None else None


def hashes(names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files of networks, by name; what is not there yet is trained."""
    return {
        name: hashlib.sha256(_stored(name).read_bytes()).hexdigest() if "-" in name else zoo.info(name)["sha256"]
        for name in names
    }


def _stored(name: str) -> Path:
    """The file of a recipe's network at another seed."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        base, _, seed = name.partition("-")
        model, key = train_with_trigger(replace(recipe(base), seed=int(seed)), progress=True)
        state = dict(model.state_dict())
        if key is not None and carries_trigger(base):
            state |= {TRIGGER + part: value for part, value in key.state_dict().items()}
        half = {part: value.half() if value.dtype == torch.float32 else value for part, value in state.items()}
        WEIGHTS.mkdir(exist_ok=True)
        write_together({path: serialize({part: value.contiguous() for part, value in half.items()})})
    return path
