"""Chapter 05: what comes of model replacement where the attacker's factor is too small or too large.

Clients, network, trigger and attack are those of :mod:`experiments.federated`. One client trains its X from the
converged model G, and a row holds main and backdoor accuracy at G + τ(X − G) for each τ: the global model after a round
in which it sent τ times what it should, and the others nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from experiments.federated import (
    POISON,
    REPLACE,
    SEEDS,
    SELECTED,
    SETS,
    TARGET,
    TESTED,
    converged,
    divided,
    moved,
    pictures,
    trigger,
)
from experiments.record import Experiment
from robustlab.attacks import evaluate_backdoor, model_replacement

TAUS = (0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 10.0)


def flat(model: nn.Module) -> Tensor:
    """All parameters."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def measure(set: str, seed: int) -> dict[str, Any]:
    """One row."""
    G, told = converged(set, seed), POISON | REPLACE
    made = model_replacement(
        G, divided(set, seed)[0], trigger=trigger(set), weight=1 / SELECTED, alpha=0.7, seed=seed, **told
    )
    way = flat(made.model) - flat(G)
    seen = [evaluate_backdoor(moved(G, tau * way), pictures(set)[1], trigger(set), TARGET) for tau in TAUS]
    return {
        "tau": list(TAUS),
        "main": [round(float(r.clean_accuracy), 3) for r in seen],
        "backdoor": [round(float(r.attack_success), 3) for r in seen],
    }


EXPERIMENT = Experiment(
    name="factor",
    question="What comes of model replacement with a factor that is too small or too large?",
    cases=[{"set": name, "seed": seed} for name in SETS for seed in SEEDS],
    measure=measure,
    n={"data sets": len(SETS), "divisions": len(SEEDS), "test pictures": TESTED},
    seeds=SEEDS,
    data=["fashion", "sign_digits32"],
    tolerance={"tau": 0.0, "main": 0.1, "backdoor": 0.35},  # those of the rounds in experiments/federated.py
)

if __name__ == "__main__":
    EXPERIMENT.main()
