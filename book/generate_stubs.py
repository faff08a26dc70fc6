"""The stubs ``__init__.pyi`` of the lazy packages: for each name that they export, the module that holds it."""

from __future__ import annotations

from pathlib import Path

from book.notebooks import ROOT
from book.public_names import exports, packages

HEAD = "# Written by `python -m book.generate` from the catalogue and the modules' `__all__`.\n"


def stubs(root: Path = ROOT) -> dict[str, str]:
    """File, relative to the repository, to text."""
    return {f"robustlab/{package}/__init__.pyi": stub(exports(package, root)) for package in packages(root)}


def stub(homes: dict[str, str]) -> str:
    """The text of a stub; ``x as x`` tells type checkers and editors that the name is exported."""
    names = sorted(homes, key=lambda name: (homes[name], not name[0].isupper(), name))
    return HEAD + "\n" + "".join(_import(homes[name], name) for name in names)


def _import(module: str, name: str) -> str:
    line = f"from {module} import {name} as {name}"
    return (line if len(line) <= 120 else f"from {module} import (\n    {name} as {name},\n)") + "\n"
