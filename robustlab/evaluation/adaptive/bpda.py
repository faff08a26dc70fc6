"""Backward pass differentiable approximation: the gradient of a stand-in where the true one is useless.

Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security: Circumventing defenses to adversarial
examples" (2018), section 4.1. A defense puts a transformation g in front of (or inside) a network, whose derivative
does not exist, is zero or is noise. Take a differentiable h ≈ g, and compute

    forward:   g(x)          backward:   (∂h/∂x)ᵀ · (the gradient that arrives)

For a purifier, h(x) = x is often close enough: g was built to change clean inputs little. The forward pass is that of
the defense, so whatever an attack finds with these gradients fools the defense itself.

Different here: nothing in the formula. Where no gradient is being recorded h is not evaluated at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Transform = Callable[[Tensor], Tensor]


class _ValueOfFirst(torch.autograd.Function):
    """The value of the first argument with the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, stand_in: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


class StraightThrough(nn.Module):
    """What :func:`robustlab.evaluation.bpda` returns: ``transform`` forward, ``backward`` on the way back."""

    def __init__(self, transform: Transform, backward: Transform | None) -> None:
        super().__init__()
        self.transform, self.stand_in = transform, backward

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.transform(x)
        if not torch.is_grad_enabled():
            return value
        stand_in = x if self.stand_in is None else self.stand_in(x)
        if stand_in.shape != value.shape:
            raise ValueError(
                f"backward: want the shape of the transform's output {tuple(value.shape)}, got {tuple(stand_in.shape)}"
            )
        return _ValueOfFirst.apply(value, stand_in)


def bpda(transform: Transform, backward: Transform | None = None) -> StraightThrough:
    """Make a transformation attackable: its own values, the gradient of a stand-in.

        y = transform(x),   ∂y/∂x := ∂backward/∂x

    Compose it with the rest of the defense, and give the whole to any attack::

        pgd(nn.Sequential(bpda(quantize), network), x, y, eps=0.1)

    Args:
        transform: the part of the defense whose gradient is useless, (N, ...) → any shape; or a whole model, (N, K).
        backward: the differentiable stand-in h, with outputs of the same shape; None means the identity, for a
            transformation that keeps the shape and changes its input little.

    Returns:
        A module. A forward pass costs one of ``transform``; where a gradient is recorded, one of ``backward`` more. As
        the gradient is only roughly right, an attack may need more steps.

    Raises:
        TypeError: an argument is not callable. ValueError: on use, if the two outputs have different shapes.

    Source:
        Athalye et al. (2018), section 4.1, special case (identity) and general case.
    """
    if not callable(transform):
        raise TypeError(f"transform: want a callable, got {type(transform).__name__}")
    if backward is not None and not callable(backward):
        raise TypeError(f"backward: want a callable or None, got {type(backward).__name__}")
    return StraightThrough(transform, backward)
