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

import torch
from torch import Tensor, nn

from experiments.record import Experiment
from experiments.transfer import (
    CLOTHES,
    IMAGES,
    RADII,
    SEEDS,
    TARGETED_RADII,
    always_right,
    drawn,
    images,
    network,
)
from robustlab.attacker.victim import predict
from robustlab.attacks import ensemble_transfer
from robustlab.intervals import Rate
from robustlab.zoo.recipes import HALVED, HALVES, recipe
from robustlab.zoo.training import train

KINDS = ("mlp", "resnet")
SETS = ("cnn+mlp+adv", "cnn+resnet+adv", "mlp+resnet")
JOINS: Mapping[str, Callable[[Tensor], Tensor]] = {  # log-probabilities (N, K) out of the surrogates' logits (J, N, K)
    "logits": lambda z: z.mean(dim=0).log_softmax(dim=1),
    "losses": lambda z: z.log_softmax(dim=2).mean(dim=0),
}


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
    """Who is fooled by ten signed steps with momentum down the loss of surrogates that are joined so."""
    x, y = images(seed)
    own = [network(f"{kind}_a", seed) for kind in members.split("+")]
    target = drawn(y, seed) if goal == "targeted" else None
    label, sense = (y, 1.0) if target is None else (target, -1.0)
    delta, along = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(10):
        leaf = (x + delta).requires_grad_(True)
        log_p = JOINS[join](torch.stack([model(leaf) for model in own])).gather(1, label[:, None])
        (grad,) = torch.autograd.grad(-sense * log_p.sum(), leaf)
        along += grad / grad.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
        delta = (x + (delta + eps / 10 * along.sign()).clamp(-eps, eps)).clamp(0, 1) - x

    def met(model: nn.Module) -> Tensor:
        said = predict(model, x + delta)
        return said != y if target is None else said == target

    told = {"all surrogates": Rate.of(torch.stack([met(model) for model in own]).all(dim=0))}
    return told | {f"{kind}_b": Rate.of(met(network(f"{kind}_b", seed))) for kind in HALVED}


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
