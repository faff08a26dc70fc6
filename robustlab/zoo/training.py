"""Making checkpoints from their recipes, and measuring them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustlab import data, models
from robustlab.data import Dataset
from robustlab.fitting import cross_entropy, fit
from robustlab.zoo.recipes import Recipe, recipe
from robustlab.zoo.shipped import FOLDER, RECORDED, load, recorded

ATTACKED = 500  # the robust accuracy is measured on the first so many test images, 50 a class
TOLERANCE = {"accuracy": 0.002, "robust_accuracy": 0.01}  # machines round differently


@dataclass(frozen=True)
class Measurement:
    """The accuracies of a checkpoint, on its data set's test part.

    Attributes:
        accuracy: on all test images.
        robust_accuracy: on the first 500 under the recipe's PGD; an image that is misclassified anyway counts as lost.
    """

    accuracy: float
    robust_accuracy: float


def _resolve(dotted: str) -> Any:
    """The object of a dotted name. The zoo stands left of attacks and defenses, so it names them by strings."""
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


def train(
    what: str | Recipe,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    dataset: Dataset | None = None,
) -> nn.Module:
    """Train a model by its recipe and return it in eval mode.

    The weights are the same in every run on one machine with one number of threads; elsewhere sums are rounded
    differently, and what comes out is as good but not equal.

    Args:
        what: a checkpoint's name, or a recipe of one's own.
        device: where to train; None is the CPU.
        progress: show a bar, in a terminal.
        dataset: trained on instead of the recipe's data.

    Raises:
        ValueError: if the name is unknown.
    """
    made_by = recipe(what) if isinstance(what, str) else what
    model = models.build(made_by.builder, seed=made_by.seed, **made_by.builder_kwargs)
    make = _resolve(made_by.objective) if made_by.objective else None
    fit(
        model,
        data.load(made_by.dataset) if dataset is None else dataset,
        objective=make(**made_by.objective_kwargs) if make else cross_entropy,
        augment=data.random_shift(made_by.shift) if made_by.shift else None,
        seed=made_by.seed,
        device=device,
        progress=progress,
        **made_by.fit_kwargs,
    )
    return model.eval()


def measure(model: nn.Module, what: str | Recipe, *, dataset: Dataset | None = None) -> Measurement:
    """Measure what a checkpoint's record says: accuracy, and accuracy under the recipe's attack.

    Args:
        model: in eval mode, on any device.
        what: a checkpoint's name, or a recipe of one's own.
        dataset: measured on instead of the recipe's data.
    """
    made_by = recipe(what) if isinstance(what, str) else what
    dataset = data.load(made_by.dataset) if dataset is None else dataset
    device = next(model.parameters()).device
    x, y = dataset.x_test.to(device), dataset.y_test.to(device)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(500)]) == y
    result = _resolve("robustlab.attacks.pgd")(model, x[:ATTACKED], y[:ATTACKED], **made_by.attack)
    return Measurement(right.double().mean().item(), 1 - result.success.double().mean().item())


def check(name: str) -> tuple[dict[str, float], dict[str, float], bool]:
    """Measure a shipped checkpoint again.

    Returns:
        What was recorded, what is measured now, and whether they agree to 0.002 (clean) and 0.01 (under attack).
    """
    before, now = recorded(name), vars(measure(load(name), name))
    before = {key: before[key] for key in TOLERANCE}
    # the small term lets a difference of exactly the tolerance pass in spite of rounding
    return before, now, all(abs(before[key] - now[key]) <= TOLERANCE[key] + 1e-9 for key in TOLERANCE)


def save(model: nn.Module, path: Path) -> str:
    """Write a model's tensors as safetensors and return the file's SHA-256."""
    from safetensors.torch import save as serialize

    raw = serialize({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()})
    path.write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


def ship(name: str, *, device: torch.device | str | None = None, progress: bool = False) -> Measurement:
    """Train a checkpoint, put it among the shipped ones and record what was measured. For maintainers."""
    model = train(name, device=device, progress=progress).cpu()
    measured = measure(model, name)
    path = FOLDER / f"{name}.safetensors"
    sha256 = save(model, path)
    facts = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    facts[name] = {
        "sha256": sha256,
        **vars(measured),
        "attacked": ATTACKED,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": path.stat().st_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
    }
    RECORDED.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return measured
