"""Models held in a mode, with frozen parameters, and everything put back at the end.

    with evaluating(model, manifold):
        ...

Each module and each parameter is held by a count. So blocks may be nested, may overlap in several threads, and may hold
models that share parts: the first to come notes how a part was, the last to leave puts it back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, Literal

import torch
from torch import nn

Mode = Literal["eval", "asis"]
_LOCK = threading.Lock()
_HELD: dict[Any, list[Any]] = {}  # what is held of whom → [number of holders, how it was]


@contextmanager
def evaluating(
    *models: object, freeze: bool = True, mode: Mode = "eval", device: torch.device | None = None
) -> Iterator[None]:
    """Hold models in evaluation mode with frozen parameters; on leaving, everything is as it was.

    Put back, also after an error, are every module's ``training``, every ``requires_grad`` and the global random state,
    which a model may move in its forward pass. With ``mode="asis"`` the buffers of models in training mode are put back
    as well, since batch norm then moves its statistics at every query.

    Args:
        models: modules, methods of modules, partial functions of either, and objects whose attributes they are (a
            manifold with an encoder and a decoder, say); whatever else is among them (functions, None) is passed over.
        freeze: whether no parameter requires a gradient inside the block.
        mode: ``"eval"``, or ``"asis"`` to leave the mode of the modules alone.
        device: whose random state is kept beside the CPU's; None for the CPU's alone.
    """
    parts = {part: None for model in models for part in _modules(model)}
    held: list[tuple[str, Any]] = [("random state", None)]
    if device is not None and device.type == "cuda":
        held.append(("random state", device))
    if mode == "eval":
        held += [("mode", part) for part in parts]
    elif any(part.training for part in parts):
        held += [("values", buffer) for buffer in _unique(b for part in parts for b in part.buffers(recurse=False))]
    if freeze:
        held += _parameters(parts)
    with _holding(held):
        yield


def _modules(handed: object, depth: int = 3) -> Iterator[nn.Module]:
    """The modules in what is handed to a method, down to attributes of attributes."""
    if isinstance(handed, nn.Module):
        yield from handed.modules()
    elif depth and not isinstance(handed, type | FunctionType | ModuleType):
        inside = [getattr(handed, "__self__", None), *getattr(handed, "__dict__", {}).values()]
        if isinstance(handed, partial):
            inside += [handed.func, *handed.args, *handed.keywords.values()]
        for value in inside:
            yield from _modules(value, depth - 1)


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Hold the parameters of models alone: none requires a gradient; modes, buffers and random state may move."""
    with _holding(_parameters(part for model in models for part in model.modules())):
        yield


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """The model in training mode, as its own ``train()`` sets it; on leaving, each module's mode is as it was."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.train()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _holding(held: list[tuple[str, Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        with _LOCK:
            for what, part in held:
                _take(what, part)
                stack.callback(_release, what, part)
        try:
            yield
        finally:
            with _LOCK:  # the last that was taken is put back first: a wrapper may share the mode of what it wraps
                stack.close()


def _parameters(parts: Iterable[nn.Module]) -> list[tuple[str, Any]]:
    """All but those made in inference mode, which have no gradient in any case."""
    parameters = _unique(p for part in parts for p in part.parameters(recurse=False))
    return [("gradient", p) for p in parameters if not p.is_inference()]


def _unique(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _key(what: str, part: Any) -> tuple[str, Any]:
    """A module or a tensor is known by its identity, a device by its value: each tensor makes an object of its own."""
    return what, part if what == "random state" else id(part)


def _take(what: str, part: Any) -> None:
    """Hold a part, and note how it is, if nobody holds it yet."""
    entry = _HELD.get(_key(what, part))
    if entry is None:
        _HELD[_key(what, part)] = [1, _hold(what, part)]
    else:
        entry[0] += 1


def _hold(what: str, part: Any) -> Any:
    """Still a part; returns how it was."""
    if what == "mode":
        was = part.training
        if was:  # a module takes its time to set an attribute
            part.training = False
    elif what == "gradient":
        was = part.requires_grad
        part.requires_grad_(False)
    elif what == "values":
        was = part.clone()
    else:
        was = torch.get_rng_state() if part is None else torch.cuda.get_rng_state(part)
    return was


def _release(what: str, part: Any) -> None:
    """Let go of a part; the last to do so puts it back."""
    entry = _HELD[_key(what, part)]
    entry[0] -= 1
    if entry[0]:
        return
    was = _HELD.pop(_key(what, part))[1]
    if what == "mode":
        if part.training != was:
            part.training = was
    elif what == "gradient":
        part.requires_grad_(was)
    elif what == "values":
        with torch.no_grad():
            part.copy_(was)
    elif part is None:
        torch.set_rng_state(was)
    else:
        torch.cuda.set_rng_state(was, part)
