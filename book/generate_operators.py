"""The table of what the graph's readers know, made from the tables by which they read."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable
from typing import Any

from book.myst import list_table


def operators_table() -> str:
    """A piece that the API page of the graph includes: a row for each kind of thing that a model is made of."""
    import torch
    import torch.nn.functional as F

    from robustlab.graph.convert import FUNCTIONS, METHODS, MODULES
    from robustlab.graph.onnx_operators import RULES

    homes = {"F.": F, "torch.": torch, "operator.": operator, "": builtins}
    rows = (
        ("PyTorch modules", _listed(f"{'nn.' if _of_torch(kind) else ''}{kind.__name__}" for kind in MODULES)),
        ("PyTorch functions", _listed(_name(function, homes) for function in FUNCTIONS)),
        ("Methods of tensors", _listed(f".{name}" for name in METHODS)),
        ("ONNX operators", _listed(RULES)),
    )
    return list_table(("Of a model", "Known"), rows, (20, 80)) + "\n"


def _of_torch(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn")


def _name(function: Any, homes: dict[str, Any]) -> str:
    """The name by which a function is called, with its module."""
    return next(
        prefix + name
        for prefix, home in homes.items()
        for name, value in vars(home).items()
        if value is function and not name.startswith("_")
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(set(names), key=str.lower))
