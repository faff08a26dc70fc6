"""What `make test-lowest` and `make test-newest` install and run. Only the standard library: nothing is installed yet.

python tests/versions.py lowest     the library's dependencies at the least versions of pyproject.toml, and test tools
python tests/versions.py newest     the same without an upper limit
python tests/versions.py files      the tests that need the library alone, none of the book's tools
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# onnxscript is not among the tools: it wants a newer onnx than the library does.
TOOLS = (
    "pytest>=8",
    "pytest-xdist",
    "hypothesis",
    "cvxpy",
    "scikit-learn",
    "build",
    "ipython",  # a claim shows itself in a notebook
    "packaging",
    "setuptools",
    "wheel",
)
BOOK = ("book", "pybtex", "yaml", "nbformat", "nbclient", "playwright", "tests.book")
PEERS = ("onnxruntime", "onnxscript", "vnnlib")


def requirements(which: str) -> list[str]:
    """Arguments for pip: each dependency of the library and of its extras, and the tests' tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["vision"], *extras["onnx"]]
    return [*(need.replace(">=", "==") if which == "lowest" else need for need in needs), *TOOLS]


def files() -> list[str]:
    """Suites and unit tests without an import of the book's or of a peer."""
    imports = re.compile(rf"^\s*(?:import|from) (?:{'|'.join(map(re.escape, BOOK + PEERS))})\b", flags=re.MULTILINE)
    found = [path for folder in ("suite", "unit") for path in sorted((ROOT / "tests" / folder).rglob("test_*.py"))]
    return [path.relative_to(ROOT).as_posix() for path in found if not imports.search(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    print(*(files() if sys.argv[1] == "files" else requirements(sys.argv[1])))
