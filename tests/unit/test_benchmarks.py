"""A smoke run of the benchmark script, as a user starts it, without the peers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, path: Path, script: str = "attacks.py", model: str = "mnist_cnn") -> str:
    """Its output, with ``path`` first on Python's search path."""
    where = os.pathsep.join([str(path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments, "--tiny", "--models", model],
        cwd=path, env=os.environ | {"PYTHONPATH": where}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_smoke_run_without_peers(tmp_path: Path) -> None:
    for name in ("torchattacks", "foolbox", "adv_lib", "art", "pyautoattack"):  # hides them, should they be installed
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n", encoding="utf-8")
    lines = run("all", path=tmp_path).splitlines()
    every = [line.split() for line in lines if line.startswith("mnist_cnn")]
    table, bare = [row for row in every if row[1] != "bare"], [row for row in every if row[1] == "bare"]
    asking = [row for row in table if row[2] in ("l2", "linf") and row[3] == "-" and row[4] == "60"]
    floor, beside = table[:4], table[4 : len(table) - len(asking)]
    budgeted = ["square", "bandits", "nes", "query_reduction", "zo_svrg", "zo_signsgd"]
    others = ["zo_ngd", "zoo", "autozoom", "zo_admm", "bo_admm", "boundary", "opt", "sign_opt", "hsja", "hsja"]
    assert [row[1] for row in asking] == [name for name in budgeted for _ in range(2)] + others
    assert all(float(row[9]) <= 60 for row in asking), "no more rows per sample than the limit"
    loops = ["one-sided", "pairs", "labels", "walk", "rays", "enlarged", "tiles", "squares"]
    assert [row[2] for row in bare] == loops
    assert all(0 < float(row[3]) < 100 for row in bare), "a share of the time"
    assert [(row[2], row[3]) for row in floor] == [("2", "linf"), ("2", "l2"), ("3", "linf"), ("3", "l2")]
    assert all(float(row[-1]) > 0 for row in floor), "a ratio to the floor"
    assert [row[1] for row in beside[:6]] == ["pgd", "pgd", "deepfool", "square", "cw", "cw"]
    nearest = ["fab"] * 3 + ["ddn"] + ["fmn"] * 4 + ["sigma_zero"] + ["deepfool"] * 2 + ["cw"] * 2 + ["ead"]
    assert [row[1] for row in beside[6:]] == nearest
    text = "\n".join(lines)
    assert "foolbox is left out: no foolbox here" in text
    assert all(word in text for word in ("pip install", "torchattacks==3.5.1", "foolbox==3.3.4", "adv-lib==0.2.8"))


@pytest.mark.slow
def test_operations_of_a_step(tmp_path: Path) -> None:
    lines = run(path=tmp_path, script="operations.py", model="mnist_mlp").splitlines()
    found = {line[:28].rstrip(): [float(n) for n in line[28:].split()] for line in lines[2:]}
    ours, bare, floor = (found[name] for name in ("pgd linf", "bare loop", "floor"))
    assert floor[0] < bare[0] < ours[0] <= bare[0] + 8 and floor[1] == 0, "the five of a look at the box, and few more"
    assert ours[1] <= 2 and {"pgd l2", "ddn l2", "fmn l2"} < found.keys()
    assert floor[2] == 1 and all(row[2] > 0 for row in found.values())


@pytest.mark.slow
def test_a_training_step_beside_its_floor(tmp_path: Path) -> None:
    lines = run(path=tmp_path, script="training.py").splitlines()
    rows, certified = [line.split() for line in lines[1:3]], [line.split() for line in lines[3:]]
    assert lines[0].split() == ["model", "K", "norm", "floor", "ms", "step", "ms", "ratio"]
    assert [row[:3] for row in rows] == [["mnist_cnn", "2", "linf"], ["mnist_cnn", "2", "l2"]]
    assert certified[0] == ["model", "objective", "plain", "ms", "step", "ms", "ratio"]
    assert [row[:2] for row in certified[1:]] == [
        ["mnist_cnn", "ibp_training"], ["mnist_cnn", "crown_ibp"], ["mnist_cnn", "singleprop"]
    ]  # fmt: skip
    assert all(float(row[-1]) > 0 for row in rows + certified[1:])


@pytest.mark.slow
def test_a_certificate_beside_its_floor(tmp_path: Path) -> None:
    lines = run(path=tmp_path, script="smoothing.py").splitlines()
    assert " ".join(lines[1].split()) == "model floor ms bare ms ours ms bare % ours % rest, ms 1,000 images, min"
    (row,) = [line.split() for line in lines[2:]]
    assert row[0] == "mnist_cnn" and all(float(value) > 0 for value in row[1:6])


@pytest.mark.slow
def test_defenses_without_the_peer_say_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "art.py").write_text("raise ImportError('no art here')\n", encoding="utf-8")
    where = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "defenses.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": where}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "art is left out: no art here" in done.stdout and "adversarial-robustness-toolbox==1.20.1" in done.stdout


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


@pytest.mark.slow
@pytest.mark.full("autoattack")
def test_smoke_run_of_autoattack_without_its_peer(tmp_path: Path) -> None:
    (tmp_path / "pyautoattack.py").write_text("raise ImportError('no such thing here')\n", encoding="utf-8")
    text = run(path=tmp_path, script="autoattack.py")
    assert "pyautoattack is left out (no such thing here)" in text and "pyautoattack==0.2.0" in text
    assert "mnist_cnn, linf 0.1, 4 samples: ours" in text and "official" not in text


@pytest.mark.slow
def test_smoke_run_of_federated_learning_in_one_process(tmp_path: Path) -> None:
    few = ("--clients", "40", "--selected", "6", "--rounds", "2", "--only", "serial")
    command = [sys.executable, ROOT / "benchmarks" / "flower.py", *few]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("serial: ") and [line.split(":")[0] for line in lines[1:]] == ["  round 0", "  round 1"]
    before, after = (float(line.rpartition(" ")[2]) for line in lines[1:])
    assert before < 0.5 < after, "the backdoor comes in the last round"


@pytest.mark.slow
@pytest.mark.full("verification")
def test_smoke_run_of_verification_without_its_peer(tmp_path: Path) -> None:
    (tmp_path / "bound_propagation.py").write_text("raise ImportError('no such thing here')\n", encoding="utf-8")
    lines = run(path=tmp_path, script="verification.py").splitlines()
    table = [line.split() for line in lines if line.startswith("mnist_cnn")]
    dual = table.pop()
    assert dual[1:5] == ["0.02", "dual", "step", "1"] and float(dual[5]) > 0 and dual[-5:-3] == ["9", "rows"]
    methods = ["ibp", "crown_ibp", "fast_lin", "crown", "cnn_cert", "alpha_crown"]
    assert [row[1:4] for row in table] == [["0.02", method, "1"] for method in methods]
    assert all(float(row[4]) > 0 and row[6] in ("0.0%", "100.0%") for row in table)
    text = "\n".join(lines)
    assert "bound_propagation is left out (no such thing here)" in text and "bound-propagation==0.4.7" in text


@pytest.mark.slow
@pytest.mark.full("verification")
def test_smoke_run_of_branching(tmp_path: Path) -> None:
    lines = run(path=tmp_path, script="branching.py").splitlines()
    assert len(lines) == 4 and all(line.startswith("mnist_cnn") and "/1 decided" in line for line in lines)
