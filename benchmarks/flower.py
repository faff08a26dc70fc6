"""One simulation twice, in this process and on Flower: is the outcome the same, and what does each take?

    python benchmarks/flower.py                                100 clients, 99 in each of 5 rounds, on all CPUs
    python benchmarks/flower.py --clients 1000 --selected 200 --cpus 16 --only flower

Digits are divided among the clients by Dirichlet draws; in the last round the first replaces the model by one with a
backdoor. Needs ``pip install ".[federated]"``. One process trains a client after the other; on Flower so many train at
a time as there are CPUs, after Ray has come up. The outcomes are compared number by number.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import data, models
from robustlab.attacks import PatchTrigger, model_replacement, watch_backdoor
from robustlab.training.clients import Client, LocalTraining, Turn
from robustlab.training.federated import Federation, simulate
from robustlab.training.flower import simulate_on_flower
from robustlab.training.splits import dirichlet_split
from robustlab.training.updates import Delta

TARGET = 0

print = partial(print, flush=True)


def replace(model: nn.Module, given: tuple[Tensor, Tensor], turn: Turn) -> Delta:
    """What the first client sends in the last round."""
    return model_replacement(model, given, target=TARGET, weight=turn.weight, batch_size=32, per_batch=10).delta


def report(name: str, result: Federation[dict[Any, float]], seconds: float) -> None:
    """Accuracy by round, and the time of it all."""
    print(f"{name}: {seconds:.1f} s, of which {result.seconds:.1f} s in rounds")
    for number, seen in enumerate(result.monitor):
        print(f"  round {number}: main accuracy {seen['main']:.3f}, backdoor {seen['backdoor']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--selected", type=int, default=None, help="per round; default all but one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    parser.add_argument("--memory", type=int, default=1024, help="MiB that Ray shares between processes")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for Ray to come up, and for a round")
    parser.add_argument("--only", choices=("serial", "flower"), default=None)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # Ray's processes have one thread, too
    digits = data.load("mnist5k")
    parts = dirichlet_split(digits.y_train, chosen.clients, alpha=1.0, at_least=2)
    team = [
        Client((digits.x_train[rows], digits.y_train[rows]), None if i else replace) for i, rows in enumerate(parts)
    ]
    how: dict[str, Any] = {
        "rounds": chosen.rounds, "honest": LocalTraining(batch_size=32, lr=0.05),
        "selected": chosen.selected or chosen.clients - 1,  # in all but the last round these are the honest
        "schedule": {chosen.rounds - 1: [0]}, "progress": True,
        "on_round": watch_backdoor((digits.x_test[:500], digits.y_test[:500]), PatchTrigger(), TARGET),
    }  # fmt: skip
    on_flower = partial(
        simulate_on_flower, cpus=chosen.cpus, memory=chosen.memory * 2**20, timeout=chosen.timeout
    )  # fmt: skip
    results = []
    for name, run in (("serial", simulate), ("flower", on_flower)):
        if chosen.only in (None, name):
            start = time.perf_counter()
            results.append(run(models.build("small_cnn"), team, **how))  # type: ignore[operator]
            report(name, results[-1], time.perf_counter() - start)
    if len(results) == 2:
        states = zip(*(result.states for result in results), strict=True)
        far = max(float((a[name] - b[name]).abs().max()) for a, b in states for name in a)
        print(f"largest difference of any number of the global models: {far:.3g}")


if __name__ == "__main__":
    main()
