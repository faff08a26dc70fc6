"""Chapter 01: where random noise beats FGSM, on classifiers that carry a generative model of each digit.

Three networks of one recipe, three draws of 100 digits and three budgets. Noise moves every pixel up or down by ε,
three times anew, and FGSM follows the cross-entropy or the margin. "certain" counts the digits whose label has the
probability 1 in float32: there the slope of the cross-entropy in the label's own logit, that probability less 1, is 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.victim import predict
from robustlab.attacks import fgsm
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate

NETS, BUDGETS, DRAWS, DIGITS, NOISES = ("mnist_vae", "mnist_vae-1", "mnist_vae-2"), (0.05, 0.1, 0.15), 3, 100, 3


@cache
def network(net: str) -> nn.Module:
    return nets.load(net)[0].requires_grad_(False)


def digits(draw: int) -> tuple[Tensor, Tensor]:
    """The chapter's digits, then the next hundred, and the next."""
    drawn, taken = data.load("mnist5k").subset(2000), slice(draw * DIGITS, (draw + 1) * DIGITS)
    return drawn.x_test[taken], drawn.y_test[taken]


def noisy(x: Tensor, eps: float, seed: int) -> Tensor:
    """Digits of which each pixel goes up or down by ε, at random."""
    return (x + eps * (Noise(seed, torch.arange(len(x))).uniform(0, x.shape[1:]) - 0.5).sign()).clamp(0, 1)


def measure(net: str, eps: float, draw: int) -> Mapping[str, Rate | float | list[float]]:
    """The shares that stay correct, of noise the counts of three draws; of FGSM's, how many are certain or not."""
    model, (x, y) = network(net), digits(draw)

    def kept(loss: Literal["ce", "margin"]) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the loss without a slope is what is measured
            return predict(model, fgsm(model, x, y, eps=eps, loss=loss).x_adv) == y

    right, by_loss = predict(model, x) == y, kept("ce")
    certain = right & (model(x).softmax(dim=1).gather(1, y[:, None]).squeeze(1) == 1)
    return {
        "clean": Rate.of(right),
        "noise": [int((predict(model, noisy(x, eps, seed)) == y).sum()) for seed in range(NOISES)],
        "FGSM": Rate.of(by_loss),
        "FGSM, margin": Rate.of(kept("margin")),
        "certain": int(certain.sum()),
        "certain, kept": int((certain & by_loss).sum()),
        "other, kept": int((~certain & by_loss).sum()),
    }


EXPERIMENT = Experiment(
    name="generative",
    question="On which budgets, digits and networks does random noise do more than FGSM on the cross-entropy?",
    cases=[{"net": net, "eps": eps, "draw": draw} for net in NETS for eps in BUDGETS for draw in range(DRAWS)],
    measure=measure,
    n={"networks": len(NETS), "budgets": len(BUDGETS), "draws of digits": DRAWS, "digits": DIGITS, "noises": NOISES},
    seeds=[0, 1, 2],
    data=["mnist5k"],
    nets=[*NETS],
    # A digit near the boundary, a probability that rounds to 1 elsewhere.
    tolerance={"noise": 3, "certain": 3, "certain, kept": 4, "other, kept": 4},
)

if __name__ == "__main__":
    EXPERIMENT.main()
