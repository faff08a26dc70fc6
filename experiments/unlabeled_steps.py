"""Chapter 18: what images without labels add to a robust training that has as many steps without them.

With images beside the labeled ones a pass over the data has more steps. Here the 500 labeled digits alone are passed
over as often as the steps of 15 passes with the 3,500 others ask for, and stand beside the networks of
:mod:`experiments.robust_training`, which were trained on all; all else is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from experiments.record import Experiment
from experiments.robust_training import EPS, LABELED, NETS, SEEDS, UNLABELED, named, network
from robustlab import data
from robustlab.attacker.victim import predict
from robustlab.evaluation import autoattack
from robustlab.intervals import Rate
from robustlab.zoo.recipes import recipe
from robustlab.zoo.training import train

METHODS, ATTACKED = ("robust_self_training", "unsupervised_adversarial_training"), 500


def measure(method: str, images: int, seed: int) -> Mapping[str, Any]:
    """Accuracy, also under AutoAttack's two that need gradients; without other images, in the steps of all of them."""
    digits = data.load("mnist5k")
    model = network(method, seed) if images else alone(method, seed)
    x, y = digits.x_test[:ATTACKED], digits.y_test[:ATTACKED]
    return {
        "clean": Rate.of(predict(model, digits.x_test) == digits.y_test),
        "APGD": Rate.of(autoattack(model, x, y, norm="linf", eps=EPS, attacks=["apgd-ce", "apgd-t"]).robust),
    }


def alone(method: str, seed: int) -> nn.Module:
    """A training on the labeled images alone."""
    digits, made_by = data.load("mnist5k"), recipe(NETS[method])
    passes = made_by.fit_kwargs["epochs"] * (LABELED + max(UNLABELED)) // LABELED
    longer = replace(made_by, seed=seed, fit_kwargs=made_by.fit_kwargs | {"epochs": passes})
    return train(longer, dataset=digits.subset(LABELED, len(digits.y_test)))


EXPERIMENT = Experiment(
    name="unlabeled_steps",
    question="What do images without labels add to a robust training that has as many steps without them?",
    cases=[
        {"method": method, "images": images, "seed": seed}
        for method in METHODS
        for images in (0, max(UNLABELED))
        for seed in SEEDS
    ],
    measure=measure,
    n={"trainings": len(SEEDS), "images attacked": ATTACKED, "labels": LABELED},
    seeds=SEEDS,
    data=["mnist5k"],
    nets=[named(method, seed) for method in METHODS for seed in SEEDS],
)

if __name__ == "__main__":
    EXPERIMENT.main()
