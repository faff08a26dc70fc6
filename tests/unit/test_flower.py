"""Federated learning on Flower: what is refused before Flower is asked; and all the rest, in an environment with it.

The latter is in ``on_flower.py`` beside this file: an environment of its own has what the extra ``federated`` pins.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

from robustlab.attacks import flower_mod
from robustlab.training.clients import Client
from robustlab.training.flower import simulate_on_flower
from tests.suite.training.cases import images, net

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "_build" / "flower"


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter that has Flower and Ray, and all that this one has; installed once."""
    there = HOME / "bin" / "python"
    if not (HOME / "bin" / "flwr").exists():
        venv.create(HOME, with_pip=True)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = project["optional-dependencies"]["federated"]
        done = subprocess.run([there, "-m", "pip", "install", "--quiet", *wanted], check=False)
        if done.returncode:
            pytest.skip("Flower cannot be installed here")
        (packages,) = HOME.glob("lib/python*/site-packages")
        (packages / "this.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return there


@pytest.mark.slow
@pytest.mark.full("on_flower", "flower_mod", "federated")
@pytest.mark.threads
def test_all_of_it_where_flower_is_installed(python: Path) -> None:
    command = [python, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:nbval", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "tests/unit/on_flower.py"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_robustlab_imports_neither_flower_nor_ray() -> None:
    code = (
        "import sys, robustlab.training.federated, robustlab.training.flower, robustlab.attacks, robustlab.defenses\n"
        "robustlab.attacks.flower_mod, robustlab.defenses.krum\n"
        "raise SystemExit(str([name for name in ('flwr', 'ray') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        ({"cpus": 0}, ValueError, "cpus"),
        ({"cpus": 10_000}, ValueError, "cpus: want .*got 10000"),
        ({"cpus": 1.5}, TypeError, "cpus"),
        ({"memory": 1000}, ValueError, "memory"),
        ({"timeout": 0.0}, ValueError, "timeout"),
        ({"rounds": 0}, ValueError, "rounds"),
        ({}, ImportError, r'flwr is not installed: pip install "robustlab\[federated\]"'),
    ],
)
def test_what_cannot_be_is_refused_before_flower_starts(
    wrong: dict[str, Any], error: type[Exception], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    x, y = images(8)
    with pytest.raises(error, match=named):
        simulate_on_flower(net(0), [Client((x, y))] * 2, **({"rounds": 1} | wrong))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"attack": 3}, "attack"),
        ({"model": "net"}, "model"),
        ({"weight": 0.0}, "weight"),
        ({"clients": ()}, "clients"),
        ({"claimed": 0}, "claimed"),
    ],
)
def test_a_mod_names_the_argument_that_is_wrong(wrong: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"attack": print, "model": net(0), "data": images(8), "weight": 0.5} | wrong
    with pytest.raises((ValueError, TypeError), match=rf"^{named}: want .*got"):
        flower_mod(given.pop("attack"), **given)
