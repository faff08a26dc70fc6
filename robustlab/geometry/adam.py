"""Adam for a few tensors that are no parameters of a module: slopes, multipliers, a texture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Adam:
    """Adam with its usual constants (Kingma and Ba 2015); torch's own imports its compiler at the first call, 1.5 s."""

    def __init__(self, variables: Sequence[Tensor]) -> None:
        self.variables, self.count = variables, 0
        self.first, self.second = ([torch.zeros_like(v) for v in variables] for _ in range(2))

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor | None], lr: float) -> None:
        """Each variable against its gradient, in place; None leaves it where it is."""
        self.count += 1
        for variable, grad, first, second in zip(self.variables, grads, self.first, self.second, strict=True):
            if grad is not None:
                first.lerp_(grad, 0.1)
                second.mul_(0.999).addcmul_(grad, grad, value=0.001)
                scale = (second.sqrt() / (1 - 0.999**self.count) ** 0.5).add_(1e-8)
                variable.addcdiv_(first, scale, value=-lr / (1 - 0.9**self.count))
