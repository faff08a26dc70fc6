"""Chapter 16: how much of a repair is its learning rate? Fine-tuning and unlearning at equal doses.

The twelve tampered networks and the shipped one with the square, the 500 clean images and the 500 test images of
`experiments.repair`. Both repairs make ten passes at each of three peak rates; unlearning shows the patch of Neural
Cleanse on a fifth of the images, and is left out where nothing was flagged.
"""

from __future__ import annotations

import warnings
from typing import Any

from experiments import nets
from experiments.record import Experiment
from experiments.repair import SEEDS, SHIPPED, TAMPERED, cleansed, images, stamped
from robustlab.attacker.victim import predict
from robustlab.defenses import fine_tuning, unlearn
from robustlab.intervals import Rate

RATES = (1e-3, 3e-3, 1e-2)
PASSES = 10


def measure(net: str, remedy: str, lr: float) -> dict[str, Any]:
    """Clean accuracy and attack success without class 0 after a repair, on 500 images."""
    (model, trigger), have = nets.load(net), images(net)
    pair = (have.x_test[:500], have.y_test[:500])
    x, y = have.x_test[500:1000], have.y_test[500:1000]
    if remedy == "fine-tuning":
        model = fine_tuning(model, pair, epochs=PASSES, lr=lr).model
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a search that has not converged
            found = cleansed(net, 0)
        if not found.flagged.any():
            return {}
        model = unlearn(model, pair, found, epochs=PASSES, lr=lr).model
    return {
        "clean": Rate.of(predict(model, x) == y),
        "attack": Rate.of(predict(model, stamped(trigger, x[y != 0])) == 0),
    }


EXPERIMENT = Experiment(
    name="repair_dose",
    question="How much of a backdoor is left after repairs at three learning rates, and at what price?",
    cases=[
        {"net": net, "remedy": remedy, "lr": lr}
        for net in (SHIPPED, *TAMPERED)
        for remedy in ("fine-tuning", "unlearning")
        for lr in RATES
    ],
    measure=measure,
    n={"networks of each backdoor": 3, "images": 500},
    seeds=[0, *SEEDS],
    data=["mnist5k", "fashion"],
    nets=sorted({SHIPPED, *TAMPERED}),
)

if __name__ == "__main__":
    EXPERIMENT.main()
