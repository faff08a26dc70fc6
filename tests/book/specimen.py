"""Small notebooks for the tests of the book's own tools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "from robustlab.teaching import plot\nfrom robustlab.teaching.claims import claim\nplot.style()"
DRAW = "values = [0.0, 0.5, 1.0]\ndef draw(axes, value):\n    axes.plot([0, value], [0, 1])"
FIGURE = f'{DRAW}\nfigure = plot.small_multiples(values, draw, label="{{:.1f}}")'
SLIDER = 'plot.slider(values, draw, name="slope", alt="A line", label="{:.1f}")'
CLAIM = 'claim("one-below-two", "One is below two", 1 < 2, method="fgsm", ours=0.5)'


def write(path: Path, *sources: str) -> Path:
    """A notebook with these code cells, not yet run."""
    cells = [nbformat.v4.new_code_cell(text, id=f"cell-{place}") for place, text in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def nbval(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Strict nbval over a notebook or a folder, as `make test` runs it, in a process of its own."""
    options = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=120", "-p", "no:cacheprovider", "-q"]
    options += ["--nbval-sanitize-with", str(ROOT / "tests/nbval.cfg"), *more]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(path.parent), *options, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=path.parent, env=environment)
