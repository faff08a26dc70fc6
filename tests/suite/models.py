"""Tiny models for the attack suite, and modules that watch them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FLAT, IMAGE = (6,), (2, 4, 4)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model whose initial weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def mlp(
    shape: tuple[int, ...], classes: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0, gain: float = 3.0
) -> nn.Module:
    """Flatten, 16 softplus units, logits. ``gain`` makes the classes change within the box."""
    size = int(torch.tensor(shape).prod())

    def build() -> nn.Module:
        net = nn.Sequential(
            Center(), nn.Flatten(), nn.Linear(size, 16), nn.Softplus(beta=4), nn.Linear(16, classes, bias=False)
        )
        for p in net.parameters():
            p.data *= gain
        return net

    return seeded(build, seed).to(dtype)


def convnet(classes: int = 3, channels: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """A convolution, batch norm with statistics of its own, dropout, logits; for 4×4 images."""

    def build() -> nn.Module:
        net = nn.Sequential(
            Center(), nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, classes),
        )  # fmt: skip
        net[2].running_mean.normal_(0, 0.2)
        net[2].running_var.uniform_(0.5, 1.5)
        net[-1].weight.data *= 4
        return net

    return seeded(build, seed).to(dtype)


class Center(nn.Module):
    """x − ½: the box [0, 1] around the origin, so that classes are balanced."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


class Affine(nn.Module):
    """z = W·x + b, as a model without hidden layers whose optimum is known."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class Then(nn.Module):
    """A model followed by a function of its logits."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.model(x))


class Counting(nn.Module):
    """Counts forward rows and, by a hook on the logits, rows through which a gradient was propagated back.

    Knows nothing of the library's own counters. Keeps the extremes of all inputs as well.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = self.forwards = self.backwards = 0
        self.low, self.high = torch.inf, -torch.inf

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        self.forwards += x.shape[0]
        low, high = torch.aminmax(x.detach())
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        logits = self.model(x)
        told = logits[-1] if isinstance(logits, tuple) else logits  # the scores of (boxes, scores)
        if told.requires_grad:
            told.register_hook(self._back)
        return logits

    def _back(self, grad: Tensor) -> None:
        self.backwards += grad.shape[0]


class PoisonedGradient(torch.autograd.Function):
    """The identity whose gradient is NaN (or another value)."""

    @staticmethod
    def forward(ctx: object, x: Tensor, value: float) -> Tensor:
        ctx.value = value  # type: ignore[attr-defined]
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(grad, ctx.value), None  # type: ignore[attr-defined]


class GradientOf(nn.Module):
    """A model whose input gradient is replaced by ``value`` everywhere."""

    def __init__(self, model: nn.Module, value: float) -> None:
        super().__init__()
        self.model, self.value = model, value

    def forward(self, x: Tensor) -> Tensor:
        return self.model(PoisonedGradient.apply(x, self.value))


class WritesIntoInput(nn.Module):
    """A model whose first layer works in place, as nn.ReLU(inplace=True) does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.mul_(0.5).mul_(2.0).sub_(0.125).add_(0.125).clamp_(0.2, 0.8))
