"""Chapter 18: how robust a training with 500 labels and no other image becomes in the steps that more images take.

With images beside the labeled ones a pass over the data has more steps. Here the 500 alone are passed over as often as
the steps of 15 passes with 1,000 and with 3,500 images more ask for; all else is as in the part *unlabeled* of
:mod:`experiments.robust_training`, beside which these rows are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from experiments.record import Experiment
from experiments.robust_training import ATTACKED, EPS, LABELED, NETS, SEEDS
from robustlab import data
from robustlab.attacker.victim import predict
from robustlab.evaluation import autoattack
from robustlab.intervals import Rate
from robustlab.zoo.recipes import recipe
from robustlab.zoo.training import train

AS_WITH = (1000, 3500)  # images beside the labeled ones


def measure(method: str, as_with: int, seed: int) -> Mapping[str, Any]:
    """A training on the first 500 labels alone, of as many steps as with so many images more."""
    digits, plain = data.load("mnist5k"), recipe(NETS[method])
    passes = plain.fit_kwargs["epochs"] * (LABELED + as_with) // LABELED
    longer = replace(plain, seed=seed, fit_kwargs=plain.fit_kwargs | {"epochs": passes})
    model = train(longer, dataset=digits.subset(LABELED, len(digits.y_test)))
    x, y = digits.x_test[:ATTACKED], digits.y_test[:ATTACKED]
    return {
        "passes": passes,
        "clean": Rate.of(predict(model, digits.x_test) == digits.y_test),
        "APGD": Rate.of(autoattack(model, x, y, norm="linf", eps=EPS, attacks=["apgd-ce", "apgd-t"]).robust),
    }


EXPERIMENT = Experiment(
    name="unlabeled_steps",
    question="How robust does training with 500 labels become with the steps that more images would take?",
    cases=[
        {"method": method, "as_with": n, "seed": seed}
        for method in ("robust_self_training", "unsupervised_adversarial_training")
        for n in AS_WITH
        for seed in SEEDS
    ],
    measure=measure,
    n={"trainings": len(SEEDS), "images attacked": ATTACKED, "labels": LABELED},
    seeds=SEEDS,
    data=["mnist5k"],
    tolerance={},
)

if __name__ == "__main__":
    EXPERIMENT.main()
