"""Measuring robustness: ``from robustlab.evaluation import evaluate``. Each part is loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "RobustAccuracy": "robust_accuracy",
    "evaluate": "robust_accuracy",
}

__all__ = ["RobustAccuracy", "evaluate"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
