"""Fine-tuning on clean data, the simplest repair.

A few epochs of ordinary training on data that are known to be clean. Liu, Dolan-Gavitt and Garg, "Fine-pruning:
Defending against backdooring attacks on deep neural networks" (2018), give it as the baseline that a
backdoor can survive: the neurons of the backdoor are asleep on clean inputs, get no gradient, and so do not change.
"""

from __future__ import annotations

import copy

from torch import nn

from robustlab import checks
from robustlab.attacker.results import Repair
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.training.fit import History, fit
from robustlab.training.schedules import OptimizerName


def fine_tuning(
    model: nn.Module,
    data: Pairs,
    *,
    epochs: int = 5,
    lr: float = 1e-3,
    batch_size: int = 100,
    optimizer: OptimizerName = "adam",
    seed: int = 0,
) -> Repair[History]:
    """Train a copy of the model a little further on clean data.

        θ' = θ after `epochs` passes of descent on mean CE(model_θ(x), y) over the clean data

    Args:
        model: to be repaired. It is not changed.
        data: clean inputs and labels, a Dataset (its training part), a pair (x, y) or a loader.
        epochs: passes over the data, at least 1.
        lr: peak learning rate; its schedule is ``"cosine"``, which starts at the peak.
        batch_size: samples per step.
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        seed: of the order of the samples.

    Returns:
        A Repair with the repaired copy, on the model's device and in its mode; its ``details`` are the History of the
        training.

    Raises:
        ValueError, TypeError: for a wrong argument, as :func:`robustlab.training.fit.fit` has them.

    Source:
        Liu et al. (2018), the baseline of their defense.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    checks.unit_pixels("data", x)
    repaired = copy.deepcopy(model)
    history = fit(
        repaired, (x, y), epochs=epochs, lr=lr, batch_size=batch_size, optimizer=optimizer, schedule="cosine", seed=seed
    )
    return Repair(repaired, history)
