"""Looking into a model without changing it: logits, hidden features and the number of classes, in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from robustlab.models.modes import evaluating

Layer = nn.Module | str
"""A layer of a model: one of its modules, or its name as in ``model.named_modules()``."""


class Probe:
    """A model held in evaluation mode, with frozen parameters, that shows its logits, and features beside them::

        with Probe(model) as probe:
            logits = probe(x)                       # any model
            logits, features = probe.features(x)    # those of a layer

    Both can be differentiated with respect to x. At the end of the block the modes and every ``requires_grad`` are as
    before.

    Args:
        model: maps (N, ...) to logits (N, K).
        layer: whose output, flattened, are the features: a module of the model or its name. None is the *penultimate*
            layer, as papers say: the input of the linear layer that gives the logits, see :meth:`features`.

    Attributes:
        taken: which features were read, ``"output of NAME"`` or ``"input of NAME"``; empty before they were.

    Raises:
        TypeError: if the model is not a module.
        ValueError: if the layer is none of it.
    """

    def __init__(self, model: nn.Module, layer: Layer | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: want a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.layer = None if layer is None else find_layer(model, layer)
        self.taken = ""

    def __enter__(self) -> Probe:
        self._undo = ExitStack()
        self._undo.enter_context(evaluating(self.model))
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._undo.close()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (N, K) of x (N, ...)."""
        logits = self.model(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"model: want logits (N, K), got {shown} for {len(x)} samples")
        return logits

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and features (N, d) of x (N, ...).

        Raises:
            ValueError: if the layer does not run, or gives no (N, ...); without a layer, if none can be told: there is
                no linear layer, or the last one reads logits rather than features (:func:`refuse_post_layer`).
        """
        calls: list[Call] = []
        linear = ((name, module) for name, module in self.model.named_modules() if isinstance(module, nn.Linear))
        with ExitStack() as hooks:
            for name, module in linear if self.layer is None else (self.layer,):
                hooks.enter_context(module.register_forward_hook(Call.into(calls, name)))
            logits = self(x)
        if self.layer is None:
            head = _head(calls, logits, self.model)
            features, self.taken = head.input, f"input of {head.name}"
        else:
            features, self.taken = calls[-1].output if calls else None, f"output of {self.layer[0]}"
        if not isinstance(features, Tensor) or features.dim() < 1 or len(features) != len(x):
            shown = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"layer: want one that gives (N, ...), got {self.taken}: {shown} for {len(x)} samples")
        return logits, features.flatten(1) if features.dim() > 1 else features[:, None]


@dataclass(frozen=True)
class Call:
    """One run of a module."""

    name: str
    module: nn.Module
    input: Any
    output: Any

    @staticmethod
    def into(calls: list[Call], name: str) -> Callable[..., None]:
        """A forward hook that notes the runs of the module called so."""

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.append(Call(name, module, args[0] if args else None, output))

        return note


def find_layer(model: nn.Module, layer: Layer) -> tuple[str, nn.Module]:
    """A layer's name and the module itself.

    Raises:
        ValueError: if the model has no such layer.
    """
    for name, module in model.named_modules():
        if name and (layer is module or layer == name):
            return name, module
    shown = repr(layer) if isinstance(layer, str) else type(layer).__name__
    raise ValueError(f"layer: want a module of the model or its name in model.named_modules(), got {shown}")


def _head(calls: list[Call], logits: Tensor, model: nn.Module) -> Call:
    """The run of the linear layer that gives the logits."""
    if not calls:
        raise ValueError(
            f"model: want an nn.Linear, whose input is looked at, got {type(model).__name__} without one that runs; "
            "say layer=..., whose output is"
        )
    head = next((call for call in reversed(calls) if call.output is logits), calls[-1])
    if not isinstance(head.output, Tensor) or head.output.shape != logits.shape:
        shown = tuple(head.output.shape) if isinstance(head.output, Tensor) else type(head.output).__name__
        raise ValueError(
            f"layer: want which features to read, since the last nn.Linear, {head.name!r}, gives {shown} and not the "
            f"logits {tuple(logits.shape)}; got None"
        )
    refuse_post_layer(head, calls, logits.shape[1])
    return head


def refuse_post_layer(head: Call, calls: list[Call], classes: int) -> None:
    """Raises ValueError where a last linear layer seems to stand behind the logits: its input are no features.

    So it is where it maps K numbers to K, or where its input is the very output of another linear layer.
    """
    if not isinstance(head.module, nn.Linear):
        return
    square = head.module.in_features == head.module.out_features == classes
    before = next((call.name for call in calls if call is not head and call.output is head.input), None)
    if square or before:
        fed = f"is fed by {before!r}" if before else f"maps {classes} numbers to {classes}"
        raise ValueError(
            f"layer: want which layer to read, since the last one, {head.name!r}, {fed} and may stand behind the "
            "logits; got None"
        )


def weighted(module: nn.Module) -> bool:
    """Whether a module may be the head of a classifier: a linear layer or a convolution."""
    return isinstance(module, nn.Linear | _ConvNd)


def penultimate(model: nn.Module, x: Tensor, batch_size: int = 500, layer: Layer | None = None) -> Tensor:
    """Features (N, d) of x (N, ...): what the linear layer that gives the logits is fed with, or what `layer` gives.

    Args:
        model, layer: see :class:`Probe`.
        x: inputs (N, ...), at least one.
        batch_size: rows per forward pass.

    Raises:
        TypeError, ValueError: if the model is not a module with logits (N, K), the layer cannot be told, or x is empty.
    """
    return read_features(model, x, batch_size, layer)[0]


def read_features(model: nn.Module, x: Tensor, batch_size: int, layer: Layer | None) -> tuple[Tensor, str]:
    """As :func:`penultimate`, and which features were taken."""
    if not len(x):
        raise ValueError(f"x: want at least one input, got shape {tuple(x.shape)}")
    with torch.inference_mode(False), torch.no_grad(), Probe(model, layer) as probe:
        return torch.cat([probe.features(part)[1] for part in x.split(batch_size)]), probe.taken


def count_outputs(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """K, as :func:`first_logits` shows it."""
    return first_logits(model, x).shape[1]


def first_logits(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What the model says of one sample of x (N, ...): (1, K), on the model's device, in evaluation mode.

    Raises:
        ValueError: if it does not give logits (N, K).
    """
    weight = next(model.parameters(), x) if isinstance(model, nn.Module) else x
    with torch.inference_mode(False), torch.no_grad(), evaluating(model, device=weight.device):
        logits = model(x[:1].to(weight.device))
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: want logits (N, K), got {shown} for one sample")
    return logits
