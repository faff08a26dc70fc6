"""Fine-tuning on clean data, the simplest repair.

A few epochs of ordinary training on data that are known to be clean. Liu, Dolan-Gavitt and Garg, "Fine-pruning:
Defending against backdooring attacks on deep neural networks" (2018), give it as the baseline that a
backdoor can survive: the neurons of the backdoor are asleep on clean inputs, get no gradient, and so do not change.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robustlab.data.dataset import Dataset
from robustlab.fitting import fit
from robustlab.results import Detection


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
        Detection is about no samples; ``details["history"]`` is what :func:`robustlab.fitting.fit` returned.

    Raises:
        ValueError, TypeError: for a wrong argument, as :func:`robustlab.fitting.fit` has them.

    Source:
        Liu et al. (2018), the baseline of their defense.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    data, repaired = clean_pair(data), copy.deepcopy(model)
    history = fit(
        repaired, data, epochs=epochs, lr=lr, batch_size=batch_size, optimizer=optimizer, schedule="cosine", seed=seed
    )
    return repaired, nothing_found(history=history)


def clean_pair(data: Dataset | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The inputs and labels that a repair is given.

    Raises:
        TypeError: if `data` is neither a Dataset nor a pair of tensors.
        ValueError: if there are none, or their numbers differ.
    """
    if isinstance(data, Dataset):
        return data.x_train, data.y_train
    if not (isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)):
        raise TypeError(f"data: want a Dataset or a pair (x, y) of tensors, got {type(data).__name__}")
    if not len(data[0]) or len(data[0]) != len(data[1]):
        raise ValueError(f"data: want as many inputs as labels, at least one, got {len(data[0])} and {len(data[1])}")
    return data


def nothing_found(**details: object) -> Detection:
    """The Detection of a repair that does not look for anything: about no samples."""
    empty = torch.empty(0)
    return Detection(scores=empty, flagged=empty.bool(), threshold=float("inf"), details=details)
