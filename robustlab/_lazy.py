"""Names that are loaded when they are first asked for, so that importing a package costs nothing.

A package's stub ``__init__.pyi`` says where each name lives, for type checkers and for us::

    from robustlab.attacks.whitebox.pgd import pgd as pgd
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def from_stub(file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of the package whose ``__init__.py`` is ``file``."""
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    home = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    package = f"robustlab.{Path(file).parent.name}"

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(str(home[name])), name)

    return sorted(home), load, lambda: sorted(home)
