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
    home = {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip
    folder = Path(file).parent.name
    package = folder if folder == "robustlab" else f"robustlab.{folder}"

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if home[name] == package:  # a package of this package
            return import_module(f"{package}.{name}")
        return getattr(import_module(home[name]), name)

    return sorted(home), load, lambda: sorted(home)
