"""Chapter 11: two questions about surrogates that the experiment ``transfer`` leaves open.

Networks, halves, images and attack are those of ``transfer``. *Twins*: an MLP and a residual network of half a with the
seed of their namesakes of half b (initial weights, order and shifts), as ``cnn_a2`` is for the CNN there; rates both
ways between two networks that share nothing, their data, or their seed, on those of the 200 images that the twin reads
rightly, too. *Joined*: surrogates joined by the mean of their logits, or of their losses, instead of their
probabilities; each set is without a kind of target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from torch import nn

from experiments.record import Experiment
from experiments.transfer import (
    CLOTHES,
    IMAGES,
    RADII,
    SEEDS,
    TARGETED_RADII,
    always_right,
    images,
    network,
    shown,
)
from robustlab.attacker.victim import predict
from robustlab.attacks import ensemble_transfer
from robustlab.intervals import Rate
from robustlab.zoo.recipes import HALVES, recipe
from robustlab.zoo.training import train

KINDS = ("mlp", "resnet")
SETS = ("cnn+mlp+adv", "cnn+resnet+adv", "mlp+resnet")
JOINS = ("logits", "losses")


@cache
def twin(kind: str, seed: int) -> nn.Module:
    """Trained on half a like ``kind_a``, from the initial weights and in the order of ``kind_b``."""
    return train(replace(recipe(f"fashion_half_{kind}_a"), seed=seed, start=dict(HALVES)["b"])).requires_grad_(False)


def twins(kind: str, eps: float, seed: int) -> Mapping[str, Any]:
    """Rates both ways between networks of a kind that share nothing, their data, or their seed."""
    each = {"a": network(f"{kind}_a", seed), "b": network(f"{kind}_b", seed), "a2": twin(kind, seed)}
    x, y = images(seed)
    right = predict(each["a2"], x) == y
    x, y = x[right], y[right]
    told: dict[str, Any] = {}
    for s, source in each.items():
        x_adv = ensemble_transfer(always_right(y), x, y, surrogates=[source], eps=eps, momentum=1.0).x_adv
        told |= {f"{s} > {t}": Rate.of(predict(judge, x_adv) != y) for t, judge in each.items() if t != s}
    return told


def joined(members: str, goal: str, eps: float, join: str, seed: int) -> Mapping[str, Any]:
    """Rates of the networks of half b under what surrogates make that are joined so."""
    return shown(members, goal, eps, seed, momentum=1.0, join=join)


PARTS: Mapping[str, Callable[..., Mapping[str, Any]]] = {"twins": twins, "joined": joined}


def measure(part: str, **case: Any) -> Mapping[str, Any]:
    """One row."""
    return PARTS[part](**case)


EXPERIMENT = Experiment(
    name="surrogates",
    question="What does a shared seed give to other kinds of networks, and how should surrogates be joined?",
    cases=[
        *(
            {"part": "joined", "members": members, "goal": goal, "eps": eps, "join": join, "seed": seed}
            for goal, radii in (("untargeted", RADII), ("targeted", TARGETED_RADII))
            for eps in radii
            for members in SETS
            for join in JOINS
            for seed in SEEDS
        ),
        *(
            {"part": "twins", "kind": kind, "eps": eps, "seed": seed}
            for kind in KINDS
            for seed in SEEDS
            for eps in RADII
        ),
    ],
    measure=measure,
    n={"seeds of data, networks and images": len(SEEDS), "images per rate, at most": IMAGES},
    seeds=SEEDS,
    data=["fashion"],
    nets=[f"fashion_half_{name}{again}" for again in ("", "-1", "-2") for name in CLOTHES],
)

if __name__ == "__main__":
    EXPERIMENT.main()
