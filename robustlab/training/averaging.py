"""The moving average of a model's weights over its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of a model's weights and statistics.

        θ̄ ← d_t·θ̄ + (1 − d_t)·θ,   d_t = min(d, (1 + t)/(10 + t))

    so that the first steps, when t is small, are soon forgotten. What is not a float (a count) is taken as it is.

    Args:
        model: whose weights are averaged, from where they are.
        decay: d, in (0, 1).

    Source:
        Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging weights leads to wider optima and better
        generalization" (2018), for the idea; Rebuffi et al., "Data augmentation can improve robustness" (2021), for its
        worth in adversarial training.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = copy_of(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)

    @contextmanager
    def worn(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights; afterwards it has its own again."""
        own = copy_of(model)
        put(model, self.state)
        try:
            yield
        finally:
            put(model, own)


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, in memory of its own."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def put(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy a state into the model's own tensors, which an optimizer may hold."""
    for name, value in model.state_dict().items():
        value.copy_(state[name])
