"""What happens inside a student's process: the notebook's cells, then one question to it. Everything may be forged."""

from __future__ import annotations

import random
import socket
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch

import robustlab.teaching
from assignments.grading.asking import Asked
from robustlab.teaching import handout

CHECKS = "robustlab.teaching.check"


class Silent(ModuleType):
    """Stands for the public checks: whatever a cell calls there does nothing, and nothing can be learned from it."""

    def __getattr__(self, name: str) -> Any:
        """A function that takes all and returns None."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: None


def answer(payload: bytes, blocked: list[str], model: socket.socket) -> bytes:
    """Run the cells, then call the function or read the variable that the request names; returns what to send back."""
    request = handout.unpack(payload)
    for name in blocked:  # the files are hidden as well, where Landlock is
        sys.modules[name] = None  # type: ignore[assignment]
    robustlab.teaching.check = sys.modules[CHECKS] = Silent(CHECKS)  # type: ignore[attr-defined]
    if request["given"] is not None:
        handout.load = lambda folder, student: request["given"]
    random.seed(0)  # PyTorch draws its first seed anew in each process: the same answer is to get the same grade
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (of those who draw in the old way)
    names: dict[str, Any] = {"__name__": "__main__", "display": lambda *things, **options: None}  # a notebook's names
    failed: dict[str, str] = {}
    for number, source in request["cells"]:
        try:
            exec(compile(source, f"<cell {number}>", "exec"), names)
        except BaseException as error:  # sys.exit() in a cell ends that cell alone
            failed.setdefault(opening(source), described(error))
    try:
        return handout.pack({"value": _asked(request, names, model), "failed": failed})
    except BaseException as error:
        return handout.pack({"error": described(error), "failed": failed})


def _asked(request: dict[str, Any], names: dict[str, Any], model: socket.socket) -> Any:
    name = request["name"]
    if name not in names:
        raise NameError(f"the notebook defines no {name}")
    arguments = [Asked(model), *request["arguments"]] if request["asks"] else request["arguments"]
    return names[name](*arguments) if request["call"] else names[name]


def opening(source: str) -> str:
    """The first line with code, by which its author finds a cell: notebooks show no numbers that stay."""
    lines = [line.strip() for line in source.splitlines()]
    return next((line for line in lines if line not in ("", "pass") and not line.startswith("#")), "")[:60]


def described(error: BaseException) -> str:
    """An exception in one line of at most 300 characters."""
    name = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
    if name and sys.modules.get(name, sys) is None:
        return f"ModuleNotFoundError: {name} is refused where notebooks are graded: what it holds is to be written"
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = "(its text cannot be read)"
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
