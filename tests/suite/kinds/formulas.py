"""What the specimens of trainers and applications compute, computed without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustlab.geometry.keyed import Noise


def mean_surprise(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """−1/N Σ log softmax(z)_y, by sums of exponentials."""
    z = model(x)
    return (z.exp().sum(dim=1).log() - z[torch.arange(len(y), device=z.device), y]).mean()


def gaussian_noise(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int, sigma: float = 0.1) -> Tensor:
    return mean_surprise(model, x + sigma * Noise(seed, ids).normal(0, x.shape[1:], x.dtype), y)


def reprogram(result: Any, model: nn.Module, data: tuple[Tensor, Tensor], **_: Any) -> dict[str, tuple[float, float]]:
    """The accuracy on the programmed inputs, one by one."""
    x, y = data
    right = [int(model((one[None] + result.program).clamp(0, 1)).argmax()) == int(y[i]) for i, one in enumerate(x)]
    return {"accuracy": (result.accuracy, sum(right) / len(right))}


def smallest_part(result: Any, model: nn.Module, x: Tensor, **_: Any) -> dict[str, tuple[float, float]]:
    """Whether what is kept has the label of the whole, and is a part of it."""
    now, before = model(result.kept).argmax(dim=1), model(x).argmax(dim=1)
    return {
        "success": (float(result.success.sum()), float((now == before).sum())),
        "elements that are neither kept nor 0": (0.0, float(((result.kept != x) & (result.kept != 0)).sum())),
    }
