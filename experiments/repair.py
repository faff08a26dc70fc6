"""Chapter 16: what detectors see and repairs leave, on three networks of each kind and three draws of clean images.

The networks are the recipes of the zoo at seeds 1, 2 and 3: four backdoors, and for Neural Cleanse's false alarms four
kinds of honest networks. Some rows are of the shipped network with the square, which the chapter computes again.
From draw to draw Neural Cleanse and the data-limited detector have
other clean images, STRIP other images and overlays, the data-free detector other noise.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.results import Detection
from robustlab.attacker.victim import predict
from robustlab.data import Dataset
from robustlab.defenses import (
    fine_pruning,
    fine_tuning,
    mode_connectivity,
    neural_cleanse,
    strip,
    tnd_data_free,
    tnd_data_limited,
    unlearn,
)
from robustlab.intervals import Rate

BACKDOORS = ("mnist_badnets", "fashion_blended", "mnist_warped", "mnist_input_aware")
HONEST = ("mnist_cnn", "fashion_cnn", "mnist_resnet", "mnist_mlp")
SEEDS = (1, 2, 3)
TAMPERED = [f"{name}-{seed}" for name in BACKDOORS for seed in SEEDS]
CLEAN = [f"{name}-{seed}" for name in HONEST for seed in SEEDS]
SHIPPED = "mnist_badnets"
COMPARED = [f"{name}-{seed}" for name in ("mnist_badnets", "mnist_cnn") for seed in SEEDS]
REMEDIES = ("none", "fine-tuning", "fine-pruning", "unlearning", "unlearning, harder", "curve to copy")
CLEANSE = {"steps": 80, "patience": 3}
LIMITED = {"steps": 30, "searches": 3}
UNLEARN = {
    "unlearning": {"epochs": 5},
    "unlearning, harder": {"epochs": 10, "lr": 3e-3, "share": 0.5},  # chosen on mnist_badnets and mnist_badnets-2
}

Result = dict[str, Any]


def images(net: str) -> Dataset:
    """The data set that a network was trained on."""
    return data.load("mnist5k" if net.startswith("mnist") else "fashion")


@cache
def cleansed(net: str, draw: int) -> Detection[Any]:
    """Neural Cleanse on 15 images."""
    return neural_cleanse(nets.load(net)[0], images(net).x_test[15 * draw : 15 * draw + 15], **CLEANSE)


def cleanse(net: str, draw: int) -> Result:
    """Its index for each class, how many searches have converged, and how much of the mask to 0 is in the corner."""
    found = cleansed(net, draw)
    mask = found.details.masks[0, 0]
    inside = float(mask[24:27, 24:27].sum() / mask.sum())
    return {"index": rounded(found.scores), "converged": int(found.details.converged.sum()), "inside": round(inside, 3)}


def limited(net: str, draw: int) -> Result:
    """The data-limited statistic of each class, from one image of each."""
    part = slice(10 * draw, 10 * draw + 10)
    have = images(net)
    return {
        "cosine": rounded(tnd_data_limited(nets.load(net)[0], (have.x_test[part], have.y_test[part]), **LIMITED).scores)
    }


def free(net: str, draw: int) -> Result:
    """The data-free rise of each class's logit, for two weights of the masks."""
    model = nets.load(net)[0]
    rises = {weight: tnd_data_free(model, steps=50, sparsity=weight, seed=draw).scores for weight in (0.1, 0.01)}
    return {f"rise, {weight}": rounded(scores) for weight, scores in rises.items()}


def stripped(net: str, draw: int) -> Result:
    """The shares of triggered and of clean images that STRIP rejects, 200 of each, at 5 % by 200 others."""
    (model, trigger), have = nets.load(net), images(net)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(draw))
    held, new = have.x_test[order[:200]], have.x_test[order[200:400]]
    flagged = strip(model, torch.cat([new, stamped(trigger, new)]), held, overlays=10, rejection_rate=0.05).flagged
    return {"clean": Rate.of(flagged[:200]), "caught": Rate.of(flagged[200:])}


def repaired(net: str, remedy: str) -> Result:
    """Clean accuracy, attack success without class 0, and accuracy with the trigger, on 500 images after a repair."""
    (model, trigger), have = nets.load(net), images(net)
    pair = (have.x_test[:500], have.y_test[:500])
    x, y = have.x_test[500:1000], have.y_test[500:1000]
    flagged = cleansed(net, 0).flagged.nonzero().flatten().tolist() if remedy in UNLEARN else []
    if remedy in UNLEARN and not flagged:
        return {"flagged": []}  # nothing to unlearn
    if remedy == "fine-tuning":
        model = fine_tuning(model, pair, epochs=10).model
    elif remedy == "fine-pruning":
        model = fine_pruning(model, pair, tolerance=0.1, epochs=10).model
    elif remedy in UNLEARN:
        model = unlearn(model, pair, cleansed(net, 0), **UNLEARN[remedy]).model
    elif remedy == "curve to copy":
        copied = fine_tuning(model, pair, epochs=10).model
        model = mode_connectivity(model, pair, other=copied, points=2, epochs=20).details.curve.at(0.5, pair[0])
    said = predict(model, stamped(trigger, x[y != 0]))
    rates = {
        "clean": Rate.of(predict(model, x) == y),
        "attack": Rate.of(said == 0),
        "triggered": Rate.of(said == y[y != 0]),
    }
    return rates | ({"flagged": flagged} if flagged else {})


def stamped(trigger: nn.Module | None, x: Tensor) -> Tensor:
    """Images with the trigger."""
    assert trigger is not None
    with torch.no_grad():
        return trigger(x)


def rounded(scores: Tensor) -> list[float]:
    """As the table holds them."""
    return [round(score, 3) for score in scores.double().tolist()]


def measure(what: str, **case: Any) -> Result:
    """One row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a search that has not converged: the row says so
        return {"cleanse": cleanse, "limited": limited, "free": free, "strip": stripped, "repair": repaired}[what](
            **case
        )


EXPERIMENT = Experiment(
    name="repair",
    question="Which backdoors do detectors see, how often do they flag honest models, and what does a repair leave?",
    cases=[
        *({"what": "repair", "net": net, "remedy": remedy} for net in (SHIPPED, *TAMPERED) for remedy in REMEDIES),
        *({"what": what, "net": SHIPPED, "draw": 0} for what in ("cleanse", "strip", "limited", "free")),
        *({"what": "strip", "net": net, "draw": draw} for net in TAMPERED for draw in range(3)),
        *({"what": "cleanse", "net": net, "draw": 0} for net in CLEAN),
        *({"what": "cleanse", "net": net, "draw": draw} for draw in range(3) for net in TAMPERED),
        *(
            {"what": what, "net": net, "draw": draw}
            for what in ("limited", "free")
            for draw in range(3)
            for net in COMPARED
        ),
    ],
    measure=measure,
    n={"networks of each backdoor": 3, "honest networks": 12, "draws": 3, "images": 500},
    seeds=[0, *SEEDS],
    data=["mnist5k", "fashion"],
    nets=sorted({SHIPPED, *TAMPERED, *CLEAN}),
    tolerance={"index": 0.5, "converged": 1, "inside": 0.1, "cosine": 0.1, "rise, 0.1": 1, "rise, 0.01": 1},
)

if __name__ == "__main__":
    EXPERIMENT.main()
