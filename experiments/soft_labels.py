"""Chapter 18: are CAT's soft labels what lets PGD overrate it?

The zoo's recipe of CAT at two weights ω of the smoothing, three trainings each; 0 leaves every label as it is, 1.5 is
the recipe's. Everything else of a training is the same: architecture, passes, radii, seed. Each network is attacked by
PGD-20 on the cross-entropy and on the margin of the logits, and by AutoAttack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from torch import nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.victim import predict
from robustlab.attacks import pgd
from robustlab.evaluation import autoattack
from robustlab.intervals import Rate
from robustlab.zoo.recipes import recipe
from robustlab.zoo.training import train

SEEDS, ATTACKED, EPS = (0, 1, 2), 200, 0.2
SMOOTHING = (0.0, 1.5)


@cache
def network(smoothing: float, seed: int) -> nn.Module:
    """CAT's network at this smoothing; at the recipe's own it is the zoo's."""
    made_by = recipe("mnist_cat")
    if smoothing == made_by.objective_kwargs["smoothing"]:
        return nets.load("mnist_cat" + (f"-{seed}" if seed else ""))[0]
    told = {**made_by.objective_kwargs, "smoothing": smoothing}
    return train(replace(made_by, objective_kwargs=told, seed=seed))


def measure(smoothing: float, seed: int) -> Mapping[str, Any]:
    """Accuracy at the inputs, under both losses of PGD-20 and under AutoAttack."""
    model, test = network(smoothing, seed), data.load("mnist5k")
    x, y = test.x_test[:ATTACKED], test.y_test[:ATTACKED]
    return {
        "clean": Rate.of(predict(model, test.x_test) == test.y_test),
        "PGD-20": Rate.of(~pgd(model, x, y, eps=EPS, steps=20, seed=0).success),
        "PGD-20, margin": Rate.of(~pgd(model, x, y, eps=EPS, steps=20, loss="margin", seed=0).success),
        "AutoAttack": Rate.of(autoattack(model, x, y, norm="linf", eps=EPS).robust),
    }


EXPERIMENT = Experiment(
    name="soft_labels",
    question="Are the soft labels of CAT what lets PGD overrate its networks?",
    cases=[{"smoothing": smoothing, "seed": seed} for smoothing in SMOOTHING for seed in SEEDS],
    measure=measure,
    n={"trainings": len(SEEDS), "images attacked": ATTACKED},
    seeds=SEEDS,
    data=["mnist5k"],
    nets=["mnist_cat", *(f"mnist_cat-{seed}" for seed in SEEDS[1:])],
)

if __name__ == "__main__":
    EXPERIMENT.main()
