"""Builders by name, so that a recipe of the zoo can say in plain data which model it trains."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def register(builder: Builder) -> Builder:
    """Make a function that builds a model known to :func:`build` under its own name.

    The function takes a keyword `seed` with default 0 and need not use it: it is called with PyTorch's generator
    seeded from it. So the initial weights are a function of the seed alone; they are drawn on the CPU, and the global
    random state is neither read nor moved.

    Raises:
        ValueError: if the name is taken, or the function has no keyword `seed`.
    """
    name = builder.__name__
    if name in _BUILDERS:
        raise ValueError(f"builder: want a new name, got {name!r}, which is registered already")

    if "seed" not in inspect.signature(builder).parameters:
        raise ValueError(f"builder: want a keyword seed, got {name}{inspect.signature(builder)}")

    @functools.wraps(builder)
    def seeded(*args: Any, **kwargs: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(kwargs.get("seed", 0))  # torch.manual_seed would reseed CUDA too
            return builder(*args, **kwargs)

    _BUILDERS[name] = seeded
    return seeded  # type: ignore[return-value]


def builders() -> tuple[str, ...]:
    """The names that :func:`build` knows."""
    return tuple(_BUILDERS)


def build(name: str, *, seed: int = 0, **kwargs: Any) -> nn.Module:
    """Build a fresh model by the name of its builder.

    Args:
        name: one of :func:`builders`.
        seed: of the initial weights.
        kwargs: the builder's own arguments.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if the builder does not know one of the arguments.
    """
    if name not in _BUILDERS:
        raise ValueError(f"name: want one of {', '.join(_BUILDERS)}, got {name!r}")
    return _BUILDERS[name](seed=seed, **kwargs)
