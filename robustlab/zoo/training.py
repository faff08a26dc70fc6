"""Making checkpoints from their recipes, and measuring them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import data, models
from robustlab.data import Dataset
from robustlab.data.pairs import Pairs
from robustlab.files import require_writable, write_together
from robustlab.geometry.keyed import derive_seed
from robustlab.training.fit import cross_entropy, fit
from robustlab.zoo.kinds import KINDS
from robustlab.zoo.recipes import Half, Recipe, recipe
from robustlab.zoo.shipped import (
    FOLDER,
    RECORDED,
    TRIGGER,
    carries_trigger,
    load,
    recorded,
    resolve,
    trigger,
    untrained_trigger,
)

ATTACKED = 500  # the robust accuracy is measured on the first so many test images, or on all where there are fewer
TOLERANCE = {
    "accuracy": 0.002,
    "robust_accuracy": 0.01,
    "autoattack_accuracy": 0.01,
    "attack_success": 0.01,
    "ibp_accuracy": 0.005,
    "crown_accuracy": 0.005,
}  # machines round differently


@dataclass(frozen=True)
class Measurement:
    """The accuracies of a checkpoint, on its data set's test part.

    Attributes:
        accuracy: on all test images; of a recognizer, the share of spoken strings that are read without an error; of
            a detector, the average precision at an IoU of 1/2.
        robust_accuracy: on the first 500 under the recipe's PGD, or on all where a test part has fewer (415 photographs
            of hands, 480 road signs); an image that is misclassified anyway counts as lost;
            of a detector, the share of held-out pictures in which it finds who wears the recipe's T-shirt.
        autoattack_accuracy: the same under AutoAttack, for recipes that ask for it.
        attack_success: of the recipe's backdoor, on all test images of other classes than the target's; None without.
        ibp_accuracy, crown_accuracy: what the two verifiers certify of the attacked images, at the attack's eps, for
            recipes that ask for it.
    """

    accuracy: float
    robust_accuracy: float
    autoattack_accuracy: float | None = None
    attack_success: float | None = None
    ibp_accuracy: float | None = None
    crown_accuracy: float | None = None


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
    return train_with_trigger(what, device=device, progress=progress, dataset=dataset)[0]


def train_with_trigger(
    what: str | Recipe,
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    dataset: Dataset | None = None,
) -> tuple[nn.Module, nn.Module | None]:
    """Train a model by its recipe, and return the trigger of its backdoor beside it.

    The trigger is trained where the recipe's attacker trains, else as it was made; None for an honest model. Arguments
    and errors are those of :func:`train`.
    """
    made_by = recipe(what) if isinstance(what, str) else what
    seed = derive_seed(made_by.seed, made_by.start) if made_by.half else made_by.seed
    model = models.build(made_by.builder, seed=seed, **made_by.builder_kwargs)
    kind = KINDS.get(made_by.dataset)
    if kind and kind.train:
        kind.train(made_by, model, device=device, progress=progress)
        return model.eval(), None
    make = resolve(made_by.objective) if made_by.objective else None
    clean = (kind.load if kind else data.load)(made_by.dataset) if dataset is None else dataset
    train_on: Pairs = half_of(clean, made_by.half, made_by.seed) if made_by.half else clean
    how = {
        "augment": _augmentation(made_by),
        "seed": seed,
        "device": device,
        "progress": progress,
        **made_by.fit_kwargs,
    }
    key = untrained_trigger(made_by)
    told_objective: dict[str, Any] = dict(made_by.objective_kwargs)
    if made_by.labeled:
        shown = data.hide_labels(clean, labeled=made_by.labeled)
        train_on, told_objective["pseudo_labels"] = shown, _taught(made_by, shown, how)
    if made_by.backdoor is not None:
        attack, told = resolve(made_by.backdoor.attack), {"target": made_by.backdoor.target, **made_by.backdoor.kwargs}
        if made_by.backdoor.trains:
            done = attack(clean, model=model, trigger=key, **told, **how)
            return done.model.eval(), done.trigger.eval()
        train_on = attack(clean, trigger=key, seed=made_by.seed, **told).data
    if made_by.taught and make:
        teacher = models.build(made_by.builder, seed=made_by.seed, **made_by.builder_kwargs)
        fit(teacher, train_on, objective=make(**told_objective), **how)
        told_objective["teacher"] = teacher.eval()
    fit(model, train_on, objective=make(**told_objective) if make else cross_entropy, **how)
    return model.eval(), key


def half_of(dataset: Dataset, half: Half, seed: int) -> tuple[Tensor, Tensor]:
    """Half ``"a"`` or ``"b"`` of the training images and labels: the seed parts them, and no image is in both."""
    order = torch.randperm(len(dataset.x_train), generator=torch.Generator().manual_seed(derive_seed(seed)))
    rows = order.chunk(2)["ab".index(half)]
    return dataset.x_train[rows], dataset.y_train[rows]


def _augmentation(made_by: Recipe) -> Callable[..., Tensor] | None:
    """The recipe's shift, then its noise."""
    steps = [data.random_shift(made_by.shift)] if made_by.shift else []
    steps += [data.gaussian_noise(made_by.sigma)] if made_by.sigma else []

    def augment(x: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        for number, step in enumerate(steps):
            x = step(x, ids=ids, seed=derive_seed(seed, number) if number else seed)
        return x

    return augment if steps else None


def _taught(made_by: Recipe, shown: tuple[Tensor, Tensor], how: Mapping[str, Any]) -> Tensor:
    """Labels for all rows, by a net of the same architecture trained in the standard way on the labeled ones."""
    x, y = shown
    teacher, known = models.build(made_by.builder, seed=made_by.seed, **made_by.builder_kwargs), y >= 0
    fit(teacher, (x[known], y[known]), **{**how, "epochs": 4 * how["epochs"]})  # its epochs are short
    return resolve("robustlab.defenses.pseudo_label")(teacher, shown)


def measure(
    model: nn.Module, what: str | Recipe, *, dataset: Dataset | None = None, key: nn.Module | None = None
) -> Measurement:
    """Measure what a checkpoint's record says: accuracy, accuracy under the recipe's attack, and a backdoor's success.

    Args:
        model: in eval mode, on any device.
        what: a checkpoint's name, or a recipe of one's own.
        dataset: measured on instead of the recipe's data.
        key: the trigger of a backdoor, in place of the shipped one.
    """
    made_by = recipe(what) if isinstance(what, str) else what
    if made_by.dataset in KINDS:
        told = {} if dataset is None else {"dataset": dataset}
        return Measurement(*KINDS[made_by.dataset].measure(made_by, model, **told))
    dataset = data.load(made_by.dataset) if dataset is None else dataset
    device = next(model.parameters()).device
    x, y = dataset.x_test.to(device), dataset.y_test.to(device)
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x.split(500)]) == y
    result = resolve("robustlab.attacks.pgd")(model, x[:ATTACKED], y[:ATTACKED], **made_by.attack)
    accuracy, robust = right.double().mean().item(), 1 - result.success.double().mean().item()
    if made_by.autoattack:
        ball = {name: made_by.attack[name] for name in ("norm", "eps")}
        report = resolve("robustlab.evaluation.autoattack")(model, x[:ATTACKED], y[:ATTACKED], **ball)
        return Measurement(accuracy, robust, report.robust_accuracy)
    if made_by.verified:
        shown = {f"{how}_accuracy": certified(model, x, y, made_by.attack["eps"], how) for how in ("ibp", "crown")}
        return Measurement(accuracy, robust, **shown)
    if made_by.backdoor is None:
        return Measurement(accuracy, robust)
    key = trigger(made_by.name, device=device) if key is None else key
    report = resolve("robustlab.attacks.evaluate_backdoor")(model, (x, y), key, made_by.backdoor.target)
    return Measurement(accuracy, robust, attack_success=report.attack_success.value)


def attacked(dataset: str) -> int:
    """How many test samples of a data set the record of an attack is about."""
    return KINDS[dataset].attacked if dataset in KINDS else min(ATTACKED, len(data.load(dataset).y_test))


def certified(model: nn.Module, x: Tensor, y: Tensor, eps: float, method: str) -> float:
    """The share of the first 500 images that a verifier certifies in the ℓ∞ ball."""
    certify = resolve("robustlab.verification.certify")
    parts = zip(x[:ATTACKED].split(100), y[:ATTACKED].split(100), strict=True)
    return torch.cat([certify(model, *part, eps=eps, method=method).verified for part in parts]).double().mean().item()


def check(name: str) -> tuple[dict[str, float], dict[str, float], bool]:
    """Measure a shipped checkpoint again.

    Returns:
        What was recorded, what is measured now, and whether they agree to 0.002 (clean), 0.005 (certified) and 0.01
        (under attacks, and success of a backdoor).
    """
    facts, now = recorded(name), _known(measure(load(name), name))
    before = {key: facts[key] for key in TOLERANCE if key in facts}
    # the small term lets a difference of exactly the tolerance pass in spite of rounding
    return before, now, all(abs(before[key] - now[key]) <= TOLERANCE[key] + 1e-9 for key in before)


def _known(measured: Measurement) -> dict[str, float]:
    return {key: value for key, value in vars(measured).items() if value is not None}


def save(model: nn.Module, path: Path, key: nn.Module | None = None) -> str:
    """Write a model's tensors, and those of a trained trigger, as safetensors; returns the file's SHA-256.

    An old file of that name stays whole if the new one cannot be written.
    """
    raw = _serialized(model, key)
    write_together({path: raw})
    return hashlib.sha256(raw).hexdigest()


def _serialized(model: nn.Module, key: nn.Module | None) -> bytes:
    from safetensors.torch import save as serialize

    state = {
        **model.state_dict(),
        **{TRIGGER + name: value for name, value in (key.state_dict() if key else {}).items()},
    }
    return serialize({name: value.detach().cpu().contiguous() for name, value in state.items()})


def ship(name: str, *, device: torch.device | str | None = None, progress: bool = False) -> Measurement:
    """Train a checkpoint, put it among the shipped ones and record what was measured. For maintainers."""
    path = FOLDER / f"{name}.safetensors"
    require_writable(path)
    require_writable(RECORDED)
    model, key = train_with_trigger(name, device=device, progress=progress)
    measured = measure(model.cpu(), name, key=key.cpu() if key else None)
    raw = _serialized(model, key if carries_trigger(name) else None)
    facts = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    facts[name] = {
        "sha256": hashlib.sha256(raw).hexdigest(),
        **_known(measured),
        "attacked": attacked(recipe(name).dataset),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": len(raw),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
    }
    write_together({path: raw, RECORDED: (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode()})
    return measured
