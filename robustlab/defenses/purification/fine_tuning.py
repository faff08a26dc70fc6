"""Fine-tuning on clean data, the simplest repair.

A few epochs of ordinary training on data that are known to be clean. Liu, Dolan-Gavitt and Garg, "Fine-pruning:
Defending against backdooring attacks on deep neural networks" (2018), give it as the baseline that a
backdoor can survive: the neurons of the backdoor are asleep on clean inputs, get no gradient, and so do not change.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustlab.attacker.poisoned_data import inputs_for, training_part
from robustlab.attacker.results import Detection
from robustlab.data.dataset import Dataset
from robustlab.training.fit import fit


def fine_tuning(
    model: nn.Module,
    data: Dataset | tuple[Tensor, Tensor],
    *,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 100,
    optimizer: str = "adam",
    seed: int = 0,
) -> tuple[nn.Module, Detection]:
    """Train a copy of the model a little further on clean data.

        θ' = θ after `epochs` passes of descent on mean CE(model_θ(x), y) over the clean data

    Args:
        model: to be repaired. It is not changed.
        data: clean inputs and labels, a Dataset (its training part) or a pair (x, y).
        epochs: passes over the data, at least 1.
        lr: peak learning rate; its schedule is ``"cosine"``, which starts at the peak.
        batch_size: samples a step.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        seed: of the order of the samples.

    Returns:
        The repaired copy, on the model's device and in its mode, and a Detection. Fine-tuning looks for nothing, so the
        Detection is about no samples; ``details["history"]`` is what :func:`robustlab.training.fit.fit` returned.

    Raises:
        ValueError, TypeError: for a wrong argument, as :func:`robustlab.training.fit.fit` has them.

    Source:
        Liu et al. (2018), the baseline of their defense.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    data, repaired = clean_pair(model, data), copy.deepcopy(model)
    history = fit(
        repaired, data, epochs=epochs, lr=lr, batch_size=batch_size, optimizer=optimizer, schedule="cosine", seed=seed
    )
    return repaired, nothing_found(history=history)


def clean_pair(model: nn.Module, data: Dataset | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The inputs and labels that a repair of the model is given.

    Raises:
        TypeError, ValueError: as :func:`robustlab.attacker.poisoned_data.training_part`, and if the model has another
            dtype.
    """
    x, y = training_part(data, "data")
    return inputs_for(model, x, "data"), y


def nothing_found(**details: object) -> Detection:
    """The Detection of a repair that does not look for anything: about no samples."""
    empty = torch.empty(0)
    return Detection(scores=empty, flagged=empty.bool(), threshold=float("inf"), details=details)
