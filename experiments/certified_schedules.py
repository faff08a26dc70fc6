"""Chapter 26: what the schedules and the radius of the training change in training on interval bounds.

One small convolutional net, 10 epochs, three seeds. It is trained at five radii and measured at 0.1 and at 0.3; kappa
is the weight of the clean loss at the end; start and end are the parts of the training between which ε and κ move, and
0, 0 is the loss of the end from the first step on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from experiments.record import Experiment
from robustlab import data, defenses, models
from robustlab.attacker.victim import predict
from robustlab.attacks import pgd
from robustlab.intervals import Rate
from robustlab.training.fit import fit
from robustlab.verification import certify
from robustlab.zoo.recipes import NORMALIZATION

SEEDS, IMAGES = (0, 1, 2), 300
RADII, KAPPAS = (0.05, 0.1, 0.15, 0.2, 0.35), (0.0, 0.5, 0.9)
SLOW, NONE = (0.05, 0.5), (0.0, 0.0)
MEASURED = (0.1, 0.3)


@cache
def trained(eps: float, kappa: float, start: float, end: float, seed: int) -> nn.Module:
    """The smaller CNN, trained on interval bounds."""
    model = models.build("small_cnn", channels=(8, 16), hidden=32, seed=seed, **NORMALIZATION["mnist5k"])
    loss = defenses.ibp_training(eps=eps, kappa=kappa, ramp=(start, end))
    fit(model, data.load("mnist5k"), objective=loss, epochs=10, lr=5e-3, seed=seed)
    return model.eval()


def measure(eps: float, kappa: float, start: float, end: float, seed: int) -> dict[str, Any]:
    """One row: clean, and at two radii under PGD and by intervals and CROWN."""
    model, test = trained(eps, kappa, start, end, seed), data.load("mnist5k")
    x, y = test.x_test[:IMAGES], test.y_test[:IMAGES]
    found: dict[str, Any] = {"clean": Rate.of(predict(model, test.x_test) == test.y_test)}
    for radius in MEASURED:
        found[f"attacked {radius:g}"] = Rate.of(~pgd(model, x, y, eps=radius, steps=20, seed=0).success)
        for name in ("ibp", "crown"):
            parts = zip(x.split(100), y.split(100), strict=True)
            sure = [certify(model, *part, eps=radius, method=name).verified for part in parts]
            found[f"{name} {radius:g}"] = Rate.of(torch.cat(sure))
    return found


def cases() -> list[dict[str, Any]]:
    """All rows."""
    knobs = [
        *((eps, 0.5, *SLOW) for eps in RADII),
        *((0.1, kappa, *SLOW) for kappa in KAPPAS if kappa != 0.5),
        (0.1, 0.5, *NONE), (0.1, 0.0, *NONE), (0.35, 0.5, *NONE), (0.35, 0.0, *NONE), (0.35, 0.0, *SLOW),
    ]  # fmt: skip
    return [
        {"eps": eps, "kappa": kappa, "start": start, "end": end, "seed": seed}
        for eps, kappa, start, end in knobs
        for seed in SEEDS
    ]


EXPERIMENT = Experiment(
    name="certified_schedules",
    question="What do radius, weight of the clean loss and schedule of a training on interval bounds trade?",
    cases=cases(),
    measure=measure,
    n={"networks of each setting": 3, "images": IMAGES},
    seeds=list(SEEDS),
    data=["mnist5k"],
)

if __name__ == "__main__":
    EXPERIMENT.main()
