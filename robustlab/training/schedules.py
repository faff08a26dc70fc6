"""What :func:`robustlab.training.fit.fit` steps with: learning-rate schedules, optimizers and mixed precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn

from robustlab import checks

ScheduleName = Literal["one-cycle", "cosine", "piecewise", "constant"]
Schedule = ScheduleName | Callable[[float], float]
OptimizerName = Literal["adam", "adamw", "sgd"]
Optimizer = OptimizerName | Callable[..., torch.optim.Optimizer]
Amp = bool | Literal["auto"]
SCHEDULES = get_args(ScheduleName)
OPTIMIZERS = get_args(OptimizerName)


def schedule_factor(schedule: Schedule, done: float) -> float:
    """The learning rate over its peak after the part `done` in [0, 1] of the training.

    The schedules are those of :func:`robustlab.training.fit.fit`.

    Raises:
        ValueError: if the schedule is unknown, or its function gives no number of at least 0.
    """
    if callable(schedule):
        factor = schedule(done)
        checks.not_negative("schedule", factor)
        return factor
    checks.one_of("schedule", schedule, SCHEDULES)
    if schedule == "constant":
        return 1.0
    if schedule == "piecewise":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    start = 0.3 if schedule == "one-cycle" else 0.0
    if done < start:
        return (1 + 24 * done / start) / 25
    return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * (done - start) / (1 - start))) / 2


def make_optimizer(optimizer: Optimizer) -> Callable[..., torch.optim.Optimizer]:
    """The callable that makes an optimizer, from its name or as it is given."""
    if callable(optimizer):
        return optimizer
    checks.one_of("optimizer", optimizer, OPTIMIZERS)
    if optimizer == "sgd":
        return lambda p, lr, weight_decay: torch.optim.SGD(p, lr, 0.9, weight_decay=weight_decay, nesterov=True)
    return torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def precision_for(model: nn.Module, place: torch.device, amp: Amp) -> torch.dtype | None:
    """The dtype of mixed precision, or None: bfloat16 where the GPU has it, else float16 with a scaled loss."""
    if amp != "auto" and not isinstance(amp, bool):
        raise ValueError(f'amp: want True, False or "auto", got {amp!r}')
    able = place.type == "cuda" and all(p.dtype == torch.float32 for p in model.parameters())
    if amp is True and not able:
        raise ValueError(f"amp: want False or 'auto' here, got True: it is for float32 models on CUDA, not on {place}")
    if not amp or not able:
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
