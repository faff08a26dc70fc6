"""All attacks, importable by name: ``from robustlab.attacks import pgd``. Each is loaded when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "bim": "whitebox.fgsm",
    "cw": "whitebox.cw",
    "deepfool": "whitebox.deepfool",
    "fgsm": "whitebox.fgsm",
    "lbfgs": "whitebox.lbfgs",
    "pgd": "whitebox.pgd",
}

__all__ = ["bim", "cw", "deepfool", "fgsm", "lbfgs", "pgd"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
