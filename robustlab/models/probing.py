"""Looking into a model without changing it: hidden features and the number of classes, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from robustlab.models.modes import evaluating


class Probe:
    """A model held in evaluation mode, with frozen parameters, that shows its features beside its logits::

        with Probe(model) as probe:
            logits, features = probe(x)

    The features are the input of the linear layer that runs last (the *penultimate* layer, as papers say). Both can be
    differentiated with respect to x. At the end of the block the modes and every ``requires_grad`` are as before.

    Args:
        model: maps (N, ...) to logits (N, K) and has at least one ``nn.Linear``.

    Raises:
        TypeError: if it is not a module.
        ValueError: if it has no linear layer.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
        self.linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not self.linear:
            raise ValueError(
                f"model: want at least one nn.Linear, whose input is looked at, got {type(model).__name__}"
            )
        self.model = model
        self._seen: list[Tensor] = []

    def __enter__(self) -> Probe:
        self._undo = ExitStack()
        self._undo.enter_context(evaluating(self.model))
        for module in self.linear:
            self._undo.callback(module.register_forward_pre_hook(self._see).remove)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._undo.close()
        self._seen.clear()

    def _see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._seen.append(args[0])

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and features (N, d) of x (N, ...)."""
        self._seen.clear()
        logits = self.model(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: want logits (N, K), got {shown} for {len(x)} samples")
        return logits, self._seen[-1].flatten(1)


def penultimate(model: nn.Module, x: Tensor, batch_size: int = 500) -> Tensor:
    """Features (N, d) of x (N, ...): what the model's last linear layer is fed with.

    Args:
        model: see :class:`Probe`.
        x: inputs (N, ...), at least one.
        batch_size: rows a forward.

    Raises:
        TypeError, ValueError: if the model is not a module with a linear layer and logits (N, K), or x is empty.
    """
    if not len(x):
        raise ValueError(f"x: want at least one input, got shape {tuple(x.shape)}")
    with torch.inference_mode(False), torch.no_grad(), Probe(model) as probe:
        return torch.cat([probe(part)[1] for part in x.split(batch_size)])


def count_outputs(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """K, by showing the model one sample of x (N, ...), on the model's device.

    Raises:
        ValueError: if it does not give logits (N, K).
    """
    weight = next(model.parameters(), x) if isinstance(model, nn.Module) else x
    with torch.inference_mode(False), torch.no_grad(), evaluating(model, device=weight.device):
        logits = model(x[:1].to(weight.device))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: want logits (N, K), got {shown} for one sample")
    return logits.shape[1]
