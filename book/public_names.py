"""The library's files as the generated texts see them: read as text, nothing of it imported.

A lazy package exports each method that the catalogue places in it, what its modules list in ``__all__``, and the names
in ``ELSEWHERE``. A module that exports its method alone needs no ``__all__``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from book.notebooks import ROOT
from robustlab.teaching.catalogue import FOLDERS, ROWS, Row

# What a package exports of another package's, so that its users have all they need in one place.
ELSEWHERE = {
    "evaluation": {"Claim": "robustlab.defenses.robustness_claim"},
    "verification": {
        "Bounds": "robustlab.graph.interval",
        "Graph": "robustlab.graph.node",
        "read_onnx": "robustlab.graph.read_onnx",
        "trace": "robustlab.graph.tracing",
    },
}


@dataclass(frozen=True)
class Module:
    """One file of the library.

    Attributes:
        name: dotted, such as ``robustlab.attacks.whitebox.pgd``.
        exported: the names that its package exports, sorted.
        public: all its functions and classes without a leading underscore, in the order of the file.
        rows: the methods of the catalogue that it holds.
        place: by which it is sorted among its like: the chapter of its first method, and that method's place in the
            catalogue.
    """

    name: str
    exported: tuple[str, ...]
    public: tuple[ast.FunctionDef | ast.ClassDef, ...]
    rows: tuple[Row, ...]
    place: tuple[str, int]

    @property
    def title(self) -> str:
        """The file's name without its ending."""
        return self.name.rpartition(".")[2]

    @property
    def package(self) -> str:
        """The package that exports its names: ``robustlab.attacks``."""
        return ".".join(self.name.split(".")[:2])


def packages(root: Path = ROOT) -> list[str]:
    """The lazy packages there are: those that hold folders of methods."""
    names = sorted({folder.partition("/")[0] for folder in FOLDERS})
    return [name for name in names if (root / "robustlab" / name / "__init__.py").exists()]


def modules(folder: str, root: Path = ROOT, rows: Iterable[Row] = ROWS) -> list[Module]:
    """The modules that lie in a folder of robustlab such as ``attacks/whitebox``, sorted, without packages."""
    files = sorted((root / "robustlab" / folder).glob("[!_]*.py"))
    return [_read(file, root, tuple(rows)) for file in files]


def exports(package: str, root: Path = ROOT, rows: Iterable[Row] = ROWS) -> dict[str, str]:
    """Each name that a lazy package exports, and the module that holds it.

    Raises:
        ValueError: two modules export the same name.
    """
    found: dict[str, str] = {}
    base = root / "robustlab"
    folders = [package, *sorted(str(path.relative_to(base)) for path in (base / package).rglob("[!_]*/"))]
    for folder in folders:
        for module in modules(folder, root, rows):
            for name in module.exported:
                if name in found:
                    raise ValueError(f"robustlab.{package}: {found[name]} and {module.name} both export {name}")
                found[name] = module.name
    return found | ELSEWHERE.get(package, {})


def _read(file: Path, root: Path, rows: tuple[Row, ...]) -> Module:
    name = ".".join(file.relative_to(root).with_suffix("").parts)
    body = _parsed(file.read_text(encoding="utf-8"))
    definitions = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    public = tuple(node for node in definitions if not node.name.startswith("_"))
    own = tuple(row for row in rows if row.module == name)
    exported = tuple(sorted({row.key for row in own} | set(_listed(body))))
    place = min(((row.chapter, position) for position, row in enumerate(rows) if row in own), default=("", 0))
    return Module(name, exported, public, own, place)


@cache
def _parsed(source: str) -> list[ast.stmt]:
    return ast.parse(source).body


def _listed(body: Iterable[ast.stmt]) -> list[str]:
    """The names in ``__all__``."""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []
