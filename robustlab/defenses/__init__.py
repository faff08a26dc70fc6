"""All defenses, importable by name: ``from robustlab.defenses import adversarial_training``; loaded when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {"adversarial_training": "training.adversarial_training"}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
