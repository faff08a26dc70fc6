"""A smoke run of the benchmark script, as a user starts it, without the peers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, path: Path) -> str:
    """Its output, with ``path`` first on Python's search path."""
    where = os.pathsep.join([str(path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "attacks.py", "--tiny", "--models", "mnist_cnn", *arguments],
        cwd=path, env=os.environ | {"PYTHONPATH": where}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_smoke_run_without_peers(tmp_path: Path) -> None:
    for name in ("torchattacks", "foolbox"):  # hides them, should they be installed
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n", encoding="utf-8")
    lines = run("all", path=tmp_path).splitlines()
    table = [line.split() for line in lines if line.startswith("mnist_cnn")]
    floor, beside = table[:4], table[4:]
    assert [(row[1], row[2]) for row in floor] == [("2", "linf"), ("2", "l2"), ("3", "linf"), ("3", "l2")]
    assert all(float(row[-1]) > 0 for row in floor), "a ratio to the floor"
    assert [row[1] for row in beside] == ["pgd", "pgd", "deepfool", "cw", "cw"]
    text = "\n".join(lines)
    assert "foolbox is left out: no foolbox here" in text
    assert "pip install" in text and "torchattacks==3.5.1" in text and "foolbox==3.3.4" in text


def test_clean_comparison_of_strength() -> None:
    """The judge of both sides: points outside the ball or the box do not count, failures are infinitely far."""
    import torch

    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import attacks as benchmark
    finally:
        sys.path.pop(0)
    model = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x, y = torch.tensor([[0.6, 0.5]]).repeat(5, 1), torch.zeros(5, dtype=torch.int64)
    x_adv = torch.tensor([[0.6, 0.7], [0.6, 0.8], [0.6, 1.1], [0.6, 0.5], [0.5, 0.6]])
    fooled, median = benchmark.strength(model, x, y, x_adv, "linf", 0.2)
    assert fooled == pytest.approx(0.4) and median == float("inf")
    fooled, median = benchmark.strength(model, x, y, x_adv, "l2", None)
    assert fooled == pytest.approx(0.6) and median == pytest.approx(0.3, abs=1e-6)
    assert benchmark.ratio([2.0, 3.0, 9.0], [1.0, 2.0, 3.0]) == 2.0
