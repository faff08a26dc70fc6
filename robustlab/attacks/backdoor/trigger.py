"""Triggers: what an attacker puts into an input to wake a backdoor.

Survey section 2.1, Table 2: the model must say ŷ(x_test) = y_test, but ŷ(x_test + Δ) = t. A trigger is the function
x ↦ x + Δ, on raw inputs: pixels in [0, 1], before augmentation and before normalization (which is a layer of the
model). Triggers are modules, so they compose: ``nn.Sequential(PatchTrigger(), BlendedTrigger(pattern))``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from robustlab.models.modes import evaluating

__all__ = ["Trigger"]


class Trigger(nn.Module, ABC):
    """A function of inputs (N, ...) to inputs of the same shape, dtype and device.

    A subclass defines :meth:`stamp`. The same input always gets the same trigger: a random pattern is drawn once, at
    construction, from a seed. Images stay in [0, 1], and gradients flow to them wherever the trigger is differentiable.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The inputs with the trigger.

        Raises:
            TypeError, ValueError: if x is not what this trigger is for.
        """
        self.check(x)
        return self.stamp(x)

    @abstractmethod
    def stamp(self, x: Tensor) -> Tensor:
        """The inputs with the trigger, unchecked."""

    def cross(self, x: Tensor, *, seed: int = 0) -> Tensor | None:
        """The inputs with a trigger that is *not* meant for them, and must not work; None where there is no such thing.

        Another image's trigger for the input-aware attack, a disturbed warp for the warping attack. ``seed`` says
        which.
        """
        return None

    def check(self, x: Tensor) -> None:
        """Raises unless x is a batch of floating-point images (N, C, H, W) in [0, 1]."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: want a torch.Tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"x: want a floating dtype, got {x.dtype}; for images say x.float() / 255")
        if x.dim() != 4:
            raise ValueError(f"x: want images (N, C, H, W), got shape {tuple(x.shape)}")
        if x.numel():
            low, high = (float(v) for v in torch.aminmax(x.detach()))
            if not (low >= 0 and high <= 1):  # also false for NaN
                raise ValueError(
                    f"x: want raw pixels in [0, 1], got values in [{low:.3g}, {high:.3g}]: a trigger goes on before "
                    "normalization"
                )


def stamped(trigger: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """Inputs with the trigger, a batch at a time, without gradients; the trigger's mode is put back."""
    with torch.no_grad(), evaluating(trigger):
        return torch.cat([trigger(part) for part in x.split(batch_size)]) if len(x) else x.clone()
