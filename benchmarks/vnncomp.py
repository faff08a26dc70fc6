"""Public instances of the verification competition: answer, seconds, and seconds of CPU time for each.

    python benchmarks/vnncomp.py FOLDER [--timeout 60] [--only TEXT]

FOLDER holds ``acasxu/``, ``mnist_fc/`` and ``test/`` as VNN-COMP 2022 has them (``.gz`` or not). Every network of a
folder is paired with every property of it, those of ``test/`` as its ``instances.csv`` says. In ``hard/``, names begin
with the benchmark's and ``--``, and the pairs of ``HARD`` are run. Known answers are from the literature; an answer
that contradicts them ends the run with status 1.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch

from robustlab.verification.complete.competition import check

KNOWN = {
    **{("1_1", f"prop_{i}"): "unsat" for i in (1, 3, 4)},
    ("1_7", "prop_1"): "unsat",
    ("2_1", "prop_1"): "unsat",
    ("2_1", "prop_2"): "sat",
    ("1_7", "prop_3"): "sat",
    ("test_sat", "test_prop"): "sat",
    ("test_unsat", "test_prop"): "unsat",
    ("256x2", "prop_0_0.03"): "unsat",
    ("1_9", "prop_7"): "sat",
    ("gcas", "gcas_0"): "unsat",
    ("robot", "robot_0"): "sat",
    ("tllBench_n=2_N=M=24_m=1_instance_2_0", "property_N=24_0"): "unsat",
}
HARD = (
    ("1_9", "prop_7"),
    ("3_3", "prop_9"),
    ("gcas", "gcas_0"),
    ("robot", "robot_0"),
    ("tllBench_n=2_N=M=24_m=1_instance_2_0", "property_N=24_0"),
    ("Convnet_avgpool", "prop_0_0.02"),
    ("cifar_bias_field_0", "prop_0"),
)


def instances(folder: Path) -> list[tuple[Path, Path]]:
    """Pairs of a network and a property."""
    found = []
    for listed in sorted(folder.glob("*/instances.csv")):
        with listed.open(newline="") as file:
            found += [
                (listed.parent / row[0].strip(), listed.parent / row[1].strip()) for row in csv.reader(file) if row
            ]
    for family in sorted(path for path in folder.iterdir() if (path / "onnx").is_dir()):
        found += [(n, s) for n in sorted((family / "onnx").iterdir()) for s in sorted((family / "vnnlib").iterdir())]
    files = {}
    for path in (folder / "hard").glob("*"):
        files[path.name.split("--")[0], short(path)] = path
    for network, specification in HARD:
        found += [
            (files[family, network], files[family, specification])
            for family, name in files
            if name == network and (family, specification) in files
        ]
    return found


def short(path: Path) -> str:
    """A name without endings."""
    name = path.name.split("--")[-1].removesuffix(".gz").removesuffix(".onnx").removesuffix(".vnnlib")
    return name.removeprefix("ACASXU_run2a_").removesuffix("_batch_2000").removeprefix("mnist-net_")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--only", default="", help="run instances whose name contains this")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for network, specification in instances(given.folder):
        name = f"{short(network)} {short(specification)}"
        if given.only not in name:
            continue
        start, used = time.perf_counter(), time.process_time()
        answer, _ = check(network, specification, timeout=given.timeout, device=given.device)
        known = KNOWN.get((short(network), short(specification)))
        verdict = "" if known is None else ("as known" if answer == known else f"known: {known}")
        wrong += known is not None and answer in ("sat", "unsat") and answer != known
        seconds, used = time.perf_counter() - start, time.process_time() - used
        print(f"{name:32} {answer:8} {seconds:7.2f} s {used:7.2f} s of CPU   {verdict}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
