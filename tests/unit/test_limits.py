"""Sizes that are promised: of a checkout, a notebook, the checkpoints. What git would commit is counted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MB = 1_000_000


@pytest.fixture(scope="module")
def files() -> dict[str, int]:
    """Bytes of every file that git tracks or would add, by its path in the checkout."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    paths = [path for path in listed.split("\0") if (ROOT / path).is_file()]
    assert "pyproject.toml" in paths, "git sees the checkout"
    return {path: (ROOT / path).stat().st_size for path in paths}


def test_checkout_is_small(files: dict[str, int]) -> None:
    largest = sorted(files, key=lambda path: -files[path])[:5]
    assert sum(files.values()) < 60 * MB, [(path, files[path]) for path in largest]


def test_notebooks_are_small(files: dict[str, int]) -> None:
    notebooks = {path: size for path, size in files.items() if path.endswith(".ipynb")}
    assert notebooks and max(notebooks.values()) < 1 * MB, notebooks


def test_checkpoints_are_small_and_safe(files: dict[str, int]) -> None:
    checkpoints = {path: size for path, size in files.items() if path.endswith(".safetensors")}
    assert checkpoints and sum(checkpoints.values()) < 25 * MB
    pickled = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
    assert not [path for path in files if path.lower().endswith(pickled)], "nothing that ships is unpickled"
