"""Chapter 18: how robust each way of training makes a small network, and on what that depends.

Five parts, each over three trainings. *ball*: accuracy under one step, under PGD-20 and under AutoAttack, in the ball
of the training, in a smaller and in a larger one; the networks are those of the zoo and the same recipes at two other
seeds, of one architecture and with the same passes over the data, beside one that was trained naturally. *unlabeled*:
500 labels, and so many images without, up to the 3,500 of the zoo's networks. *steps*: adversarial training with one
step or five, with the check for catastrophic overfitting. *epochs*: robust accuracy in the course of a long training on
few images, on what is trained on and on what is not; with averaged and with perturbed weights too. *architecture*:
accuracy and smallest distortion of nine architectures, trained naturally.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from torch import nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data, defenses, models
from robustlab.attacker.victim import predict
from robustlab.attacks import fgsm, pgd
from robustlab.evaluation import autoattack
from robustlab.intervals import Rate
from robustlab.training.fit import cross_entropy, fit
from robustlab.zoo.recipes import Recipe, recipe
from robustlab.zoo.training import train

NETS = {
    "adversarial_training": "mnist_adv", "trades": "mnist_trades", "cat": "mnist_cat", "sprout": "mnist_sprout",
    "robust_self_training": "mnist_self_trained", "unsupervised_adversarial_training": "mnist_uat",
}  # fmt: skip
SEEDS, ATTACKED, EPS = (0, 1, 2), 100, 0.2
BALLS, ONE_STEP = (0.1, 0.2, 0.3), (0.2, 0.3)
UNLABELED, LABELED = (0, 1000, 3500), 500
FEW, EPOCHS, EVERY = 500, 80, 4
AGAINST_OVERFITTING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # settings of the objective and of the loop
    "plain": ({}, {}),
    "averaged": ({}, {"averaging": 0.98}),
    "perturbed": ({"weight_perturbation": 0.01}, {}),
}


def named(method: str, seed: int) -> str:
    """The network of a method at a seed; seed 0 is the zoo's."""
    return NETS[method] + (f"-{seed}" if seed else "")


@cache
def network(method: str, seed: int) -> nn.Module:
    """A trained network; the natural one has the architecture and the passes of the others."""
    if method != "natural":
        return nets.load(named(method, seed))[0]
    return train(replace(recipe("mnist_adv"), objective=None, objective_kwargs={}, seed=seed))


def ball(method: str, eps: float, seed: int) -> Mapping[str, Any]:
    """Accuracy at the inputs, under one step, under PGD-20 and under AutoAttack."""
    model, test = network(method, seed), data.load("mnist5k")
    x, y = test.x_test[:ATTACKED], test.y_test[:ATTACKED]
    return {
        "clean": Rate.of(predict(model, test.x_test) == test.y_test),
        "one step": Rate.of(~fgsm(model, x, y, eps=eps).success),
        "PGD-20": Rate.of(~pgd(model, x, y, eps=eps, steps=20, seed=0).success),
        "AutoAttack": Rate.of(autoattack(model, x, y, norm="linf", eps=eps).robust),
    }


def unlabeled(method: str, n: float, seed: int) -> Mapping[str, Any]:
    """Trained on the first 500 labels and the n images after them; attacked by AutoAttack's two that need gradients."""
    all_of_it = data.load("mnist5k")
    if n < max(UNLABELED):
        made_by: Recipe = replace(recipe(NETS[method]), seed=seed)
        model = train(made_by, dataset=all_of_it.subset(LABELED + int(n), len(all_of_it.y_test)))
    else:
        model = network(method, seed)
    x, y = all_of_it.x_test[:ATTACKED], all_of_it.y_test[:ATTACKED]
    return {
        "clean": Rate.of(predict(model, all_of_it.x_test) == all_of_it.y_test),
        "APGD": Rate.of(autoattack(model, x, y, norm="linf", eps=EPS, attacks=["apgd-ce", "apgd-t"]).robust),
    }


def steps(method: str, eps: float, seed: int) -> Mapping[str, Any]:
    """What the check saw in each epoch, and the accuracy under PGD-20 in the end."""
    test, rows = data.load("mnist5k"), 40
    how = defenses.adversarial_training(eps=eps, steps=int(method), warmup=0.4, check_every=rows)
    model = models.build("small_cnn", channels=(8, 16), hidden=32, mean=0.1307, std=0.3081, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overfitting is what is recorded
        fit(model, test, objective=how, epochs=15, lr=5e-3, seed=seed)
    x, y = test.x_test[:ATTACKED], test.y_test[:ATTACKED]
    return {
        "crafted": [round(seen.crafted, 3) for seen in how.checks],
        "pgd": [round(seen.pgd, 3) for seen in how.checks],
        "PGD-20": Rate.of(~pgd(model.eval(), x, y, eps=eps, steps=20, seed=0).success),
    }


def epochs(method: str, eps: float, seed: int) -> Mapping[str, Any]:
    """Accuracy under PGD-10 every fourth epoch, on images of the training and on those held out of it."""
    seen, held_out = data.hold_out(data.load("mnist5k"), n=FEW)
    seen = (seen[0][:FEW], seen[1][:FEW])
    on = [defenses.robust_validation((x[:300], y[:300]), eps=eps) for x, y in (seen, held_out)]
    model = models.build("small_cnn", channels=(8, 16), hidden=32, mean=0.1307, std=0.3081, seed=seed)
    of_objective, of_loop = AGAINST_OVERFITTING[method]
    history = fit(
        model, seen, objective=defenses.adversarial_training(eps=eps, steps=5, warmup=0.2, **of_objective),
        epochs=EPOCHS, lr=5e-3, schedule="piecewise", seed=seed, **of_loop,
        on_epoch=lambda epoch, net: [score(net) for score in on] if epoch % EVERY == EVERY - 1 else None,
    )  # fmt: skip
    watched = [pair for pair in history.monitor if pair]
    return {"trained on": [round(a, 3) for a, _ in watched], "held out": [round(b, 3) for _, b in watched]}


def architecture(method: str, eps: float, seed: int) -> Mapping[str, Any]:
    """Accuracy and median distortion (ℓ∞) of each architecture, in the order of ``architectures``."""
    test, trained = data.load("mnist5k"), defenses.architectures(seed=seed)
    for model in trained.values():
        fit(model, test, objective=cross_entropy, epochs=6, lr=5e-3, seed=seed)
        model.eval()
    found = defenses.tradeoff(trained, (test.x_test[:300], test.y_test[:300]), steps=60)
    return {
        "accuracy": [round(v, 4) for v in found.accuracy.tolist()],
        "distortion": [round(v, 4) for v in found.distortion.tolist()],
        "correlation": round(found.correlation, 3),
    }


PARTS = {"ball": ball, "unlabeled": unlabeled, "steps": steps, "epochs": epochs, "architecture": architecture}


def measure(part: str, method: str, value: float, seed: int) -> Mapping[str, Any]:
    """One row; `value` is ε, or how many images have no label."""
    return PARTS[part](method, value, seed)


def cases(part: str, methods: tuple[str, ...], values: tuple[float, ...]) -> list[dict[str, Any]]:
    """All methods at all values of the knob, at three seeds."""
    return [
        {"part": part, "method": method, "value": value, "seed": seed}
        for method in methods
        for value in values
        for seed in SEEDS
    ]


EXPERIMENT = Experiment(
    name="robust_training",
    question="How robust does each way of training make a small network, and on what does that depend?",
    cases=[
        *cases("ball", ("natural", *NETS), BALLS),
        *cases("unlabeled", ("robust_self_training", "unsupervised_adversarial_training"), UNLABELED),
        *cases("steps", ("1", "5"), ONE_STEP),
        *cases("epochs", tuple(AGAINST_OVERFITTING), (EPS,)),
        *cases("architecture", ("natural",), (0.0,)),
    ],
    measure=measure,
    n={"trainings": len(SEEDS), "images attacked": ATTACKED, "labels beside unlabeled images": LABELED},
    seeds=SEEDS,
    data=["mnist5k"],
    nets=[named(method, seed) for method in NETS for seed in SEEDS],
    tolerance={"crafted": 0.5, "pgd": 0.5, "trained on": 0.1, "held out": 0.1, "accuracy": 0.02, "distortion": 0.01,
               "correlation": 0.3},
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
