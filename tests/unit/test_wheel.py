"""The wheel, installed where nothing else is: what it declares must be all it needs, and its data must be inside.

The clean environment is a new virtual environment without pip. To spare a download of torch, the distributions that
the wheel declares, and those that these declare in turn, are linked into it from the environment of the tests; then
pip installs the wheel offline, which fails if a requirement is not met. What is not declared cannot be imported there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

USE = """
import importlib, importlib.util, json, pkgutil, sys
import torch
torch.set_num_threads(1)
import robustlab
from robustlab import data, zoo
from robustlab.attacks import pgd
from robustlab.evaluation import evaluate

modules = [m.name for m in pkgutil.walk_packages(robustlab.__path__, "robustlab.") if not m.name.endswith("__main__")]
for name in modules:
    importlib.import_module(name)
mnist, fashion = data.load("mnist5k"), data.load("fashion")
model = zoo.load("mnist_cnn")
right = (model(mnist.x_test).argmax(dim=1) == mnist.y_test).double().mean()
part = mnist.subset(n_test=100)
result = pgd(model, part.x_test, part.y_test, eps=0.2, steps=10)
curve = evaluate(model, part, attack=pgd, eps=[0.05, 0.2], steps=5)
try:
    data.load("cifar10", root=".")
    refusal = ""
except ImportError as error:
    refusal = str(error)
print(json.dumps({
    "home": robustlab.__file__,
    "version": robustlab.__version__,
    "modules": modules,
    "shapes": [list(mnist.x_train.shape), list(fashion.x_test.shape)],
    "models": {name: type(zoo.load(name)).__name__ for name in zoo.names()},
    "accuracy": float(right),
    "fooled": float(result.success.double().mean()),
    "largest": float(result.distances["linf"].max()),
    "curve": curve.accuracy.tolist(),
    "refusal": refusal,
    "strangers": [n for n in ("torchvision", "pytest", "IPython", "sphinx", "sklearn", "cvxpy", "pip", "hypothesis")
                  if importlib.util.find_spec(n)],
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, without variables that lead Python elsewhere."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))[:300]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def package_files() -> set[str]:
    """Every file of the package in the checkout, relative to it."""
    files = (path for path in (ROOT / "robustlab").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a build folder, from which it would also pick up files of earlier builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "robustlab", source / "robustlab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    (built,) = out.glob("*.whl")
    return built


def declared(path: Path) -> metadata.PathDistribution:
    """The metadata of a wheel."""
    (folder,) = {name.split("/")[0] for name in zipfile.ZipFile(path).namelist() if ".dist-info/" in name}
    return metadata.PathDistribution(zipfile.Path(path, folder + "/"))


def closure(first: metadata.Distribution) -> list[metadata.Distribution]:
    """The distributions that one requires, directly or not, extras followed, in this environment."""
    found: dict[tuple[str, str], metadata.Distribution] = {}
    todo: list[tuple[metadata.Distribution, str]] = [(first, "")]
    while todo:
        distribution, extra = todo.pop()
        for text in distribution.requires or ():
            need = Requirement(text)
            if need.marker and not need.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *need.extras):
                key = (canonicalize_name(need.name), wanted)
                if key not in found:
                    found[key] = metadata.distribution(need.name)
                    todo.append((found[key], wanted))
    return list({name: distribution for (name, _), distribution in found.items()}.values())


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it declares."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for distribution in closure(declared(wheel)):
        tops = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-index", "--no-compile", wheel, cwd=home)
    return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files()


def test_metadata(wheel: Path) -> None:
    import robustlab

    about = declared(wheel).metadata
    assert about["Name"] == "robustlab" and about["Version"] == robustlab.__version__
    assert about["License-Expression"] == "Apache-2.0" and len(about.get_payload() or "") > 200
    always = {Requirement(r).name for r in declared(wheel).requires or () if not Requirement(r).marker}
    assert always == {"torch", "numpy", "scipy", "safetensors", "tqdm", "matplotlib"}


def test_used_from_a_clean_environment(clean_python: Path, tmp_path: Path) -> None:
    facts = json.loads(run(clean_python, "-I", "-c", USE, cwd=tmp_path).splitlines()[-1])
    assert Path(facts["home"]).is_relative_to(clean_python.parents[1])
    assert facts["strangers"] == []
    assert "robustlab[vision]" in facts["refusal"], "torchvision is asked for where it is needed, and only there"
    here = {name.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") for name in package_files()
            if name.endswith(".py") and "__main__" not in name} - {"robustlab"}  # fmt: skip
    assert set(facts["modules"]) >= here
    assert facts["shapes"] == [[4000, 1, 28, 28], [2000, 1, 28, 28]]
    assert len(facts["models"]) >= 8
    assert facts["accuracy"] > 0.9
    assert facts["fooled"] > 0.5 and facts["largest"] <= 0.2 + 1e-6
    assert facts["curve"] == sorted(facts["curve"], reverse=True) and facts["curve"][0] > 0.9
