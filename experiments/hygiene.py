"""Chapter 15: which row of the checklist catches which broken defense, and does it accuse an honest model?

Three draws of forty test images. The eight made-up defenses and the four published ones claim what their own attack
leaves on the draw; an honest model claims what PGD with three restarts leaves. A row of the table is one report of the
checklist: 1 where a question is answered by an objection, 0 where it is not, left out where it has no sense.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from torch import Tensor, nn

from experiments.record import Experiment
from robustlab import data, zoo
from robustlab.attacker.victim import accuracy
from robustlab.attacks import pgd
from robustlab.defenses.broken import Broken, gallery
from robustlab.defenses.published import published
from robustlab.evaluation import Claim, checklist
from robustlab.intervals import Rate

EACH = 40
MADE_UP = (
    "quantization", "random_resize", "logit_squashing", "gradient_shattering", "detector", "train_mode",
    "missing_clamp", "normalized_eps",
)  # fmt: skip
PUBLISHED = ("activation_pruning", "distillation", "mixup_inference", "thermometer")
HONEST = {
    "mnist_cnn_adv": 0.3, "mnist_adv": 0.2, "mnist_trades": 0.2, "mnist_cat": 0.2, "mnist_cnn": 0.05,
    "mnist_resnet": 0.05, "mnist_mlp": 0.05, "fashion_cnn_adv": 0.1,
}  # fmt: skip


def images(draw: int, dataset: str = "mnist5k") -> tuple[Tensor, Tensor]:
    """The images of a draw and their labels."""
    have, part = data.load(dataset), slice(EACH * draw, EACH * (draw + 1))
    return have.x_test[part], have.y_test[part]


@cache
def broken(draw: int) -> dict[str, Broken]:
    """All broken defenses, each with its claim on the images of a draw."""
    return {**gallery(*images(draw)), **published(*images(draw))}


def honest(net: str, x: Tensor, y: Tensor) -> tuple[nn.Module, Claim]:
    """An honest model, and what PGD with three restarts leaves of it."""
    model, eps = zoo.load(net).requires_grad_(False), HONEST[net]
    fooled = pgd(model, x, y, eps=eps, steps=40, restarts=3).success
    left = 1 - float(fooled.double().mean())
    return model, Claim(eps=eps, robust_accuracy=left, clean_accuracy=accuracy(model, x, y))


def measure(model: str, draw: int) -> dict[str, Any]:
    """What is claimed, and each question's answer, by its name."""
    x, y = images(draw, "fashion" if model.startswith("fashion") else "mnist5k")
    if model in HONEST:
        net, claim = honest(model, x, y)
        surrogate = zoo.load("fashion_cnn" if model.startswith("fashion") else "mnist_cnn")
    else:
        entry = broken(draw)[model]
        net, claim, surrogate = entry.model, entry.claim, entry.undefended
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they say what the checklist is to find out
        report = checklist(net, x, y, claim=claim, surrogate=surrogate, steps=12, queries=60)
    assert claim.robust_accuracy is not None
    answers = {asked.name: int(not asked.passed) for asked in report.checks if asked.passed is not None}
    return {"claimed": Rate(round(claim.robust_accuracy * len(x)), len(x)), **answers}


EXPERIMENT = Experiment(
    name="hygiene",
    question="Which question of the checklist catches which broken defense, and which honest model does it accuse?",
    cases=[
        {"model": model, "draw": draw} for model in (*MADE_UP, *PUBLISHED, *HONEST) for draw in range(3)
    ],
    measure=measure,
    n={"made-up defenses": len(MADE_UP), "published defenses": len(PUBLISHED), "honest models": len(HONEST),
       "draws": 3, "images of a draw": EACH},
    seeds=[0],
    data=["mnist5k", "fashion"],
    nets=sorted({*HONEST, "mnist_thermometer", "mnist_distilled", "mnist_mixup", "fashion_cnn"}),
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
