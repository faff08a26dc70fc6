"""Chapter 12: what one δ does to images, models and trainings that it was not made for.

Three parts, all in the maximum norm. *One δ*: made from n training images by UAP (five passes), by the singular vector
of DeepFool's steps (its signs, in the better sense on the images it was made from), and by descent on the mean loss of
all images; how many of these images it fools, and how many test images. *Min-max*: one δ from 60 training images for K
models, the opponent's weights held to the mean by γ; losses and fooled test images for each model. *Training*: small
networks trained naturally, on one step of their own, or on one step of an ensemble that holds two frozen networks
besides; accuracy at test images, under attacks on the network itself, and under the same from two networks that no
training has seen. ``adversarial`` are the zoo's networks from PGD in a ball of 0.2, for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data, defenses, models, zoo
from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.victim import predict
from robustlab.attacks import deepfool, fgsm, minmax_universal, pgd, uap
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate
from robustlab.training.fit import fit

DRAWS = (0, 1, 2)
RADII: Mapping[str, tuple[float, float, float]] = {
    "mnist_cnn": (0.2, 0.25, 0.3), "fashion_cnn": (0.08, 0.12, 0.16), "sign_cnn": (0.04, 0.06, 0.08),
}  # fmt: skip
COUNTS, MOST, TESTED = (5, 20), 80, 1000
POOLS = {
    "digits": ("mnist_cnn", "mnist_resnet", "mnist_mlp", "mnist_cnn-1"),
    "clothes": ("fashion_cnn", "fashion_resnet", "fashion_mlp", "fashion_cnn-1"),
    "hands": ("sign_cnn", "sign_noise12", "sign_noise25", "sign_noise12-1"),
}
POOL_RADII = {"digits": (0.25, 0.2), "clothes": (0.12, 0.1), "hands": (0.08, 0.06)}
GAMMAS, EVEN = (0.0, 1.0, 10.0), 1e6
TRAININGS, TRAIN_RADII, ATTACKED = ("natural", "own", "ensemble"), (0.2, 0.3), 500
FROZEN, UNSEEN = ("mnist_cnn", "mnist_resnet"), ("mnist_cnn-2", "mnist_resnet-1")


@cache
def network(name: str) -> nn.Module:
    return nets.load(name)[0].requires_grad_(False)


def images(net: str, n: int, draw: int) -> tuple[Tensor, Tensor]:
    """Training images to make δ from, and test images."""
    have = data.load(zoo.recipe(net.partition("-")[0]).dataset)
    order = torch.randperm(len(have.x_train), generator=torch.Generator().manual_seed(draw))
    return have.x_train[order[:n]], have.x_test[:TESTED]


def moved(model: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """What the model says of x + δ."""
    return predict(model, (x + delta).clamp(0, 1))


def fooled(model: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """Where that is something else than of x, (N,)."""
    return moved(model, x, delta) != predict(model, x)


def singular(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    """ε·sign of the first right singular vector of DeepFool's unit steps, in the sense that fools more of x."""
    steps = (deepfool(model, x).x_adv - x).flatten(1)
    units = steps / steps.norm(dim=1, keepdim=True).clamp_min(1e-9)
    first = eps * torch.linalg.svd(units, full_matrices=False).Vh[0].sign().reshape(x.shape[1:])
    return max((first, -first), key=lambda delta: int(fooled(model, x, delta).sum()))


def even(model: nn.Module, x: Tensor, eps: float) -> Tensor:
    """Descent on the mean loss of all images: 60 signed steps."""
    return minmax_universal(model, x, eps=eps, steps=60, gamma=EVEN, weight_step=0.5 / EVEN).delta


def one_delta(net: str, eps: float, n: int, draw: int) -> Mapping[str, Any]:
    """Shares fooled of the images δ was made from, and of test images, and where the latter are led."""
    model, (x, test) = network(net), images(net, n, draw)
    result = uap(model, x, eps=eps, rate=0.95, passes=5, seed=draw)
    by = {"UAP": result.delta, "singular vector": singular(model, x, eps), "mean loss": even(model, x, eps)}
    noise = eps * Noise(draw, torch.zeros(1, dtype=torch.int64)).sign(0, x.shape[1:])[0]
    told: dict[str, Any] = {"random signs": Rate.of(fooled(model, test, noise))}
    for name, delta in by.items():
        told[f"{name}, made from"] = Rate.of(fooled(model, x, delta))
        told[f"{name}, held out"] = Rate.of(fooled(model, test, delta))
    led = moved(model, test, result.delta)[fooled(model, test, result.delta)]
    told["to the commonest label"] = round(float(led.bincount(minlength=1).max()) / max(1, len(led)), 3)
    told["mean queries"] = int(result.queries.double().mean())
    return told


def many_models(pool: str, k: int, gamma: float, eps: float, draw: int) -> Mapping[str, Any]:
    """For each model: its weight, its mean loss over the images δ was made from and over test images, its share."""
    each = [network(name) for name in POOLS[pool][:k]]
    x, test = images(POOLS[pool][0], 60, draw)
    result = minmax_universal(
        each, x, over="models", eps=eps, steps=50, gamma=gamma, weight_step=min(0.1, 0.5 / max(gamma, 1.0))
    )

    def losses(points: Tensor) -> list[float]:
        loss = attacker_loss("ce")
        seen = (points + result.delta).clamp(0, 1)
        with torch.no_grad():
            return [round(float(loss(model(seen), predict(model, points)).mean()), 3) for model in each]

    return {
        "weights": [round(w, 3) for w in result.weights.tolist()],
        "loss": losses(x),
        "loss, held out": losses(test),
        "fooled": [round(float(fooled(model, test, result.delta).double().mean()), 3) for model in each],
    }


def trained(training: str, eps: float, seed: int) -> nn.Module:
    """A small network; ``own`` has the ensemble's objective with the network itself as its only source."""
    if training == "adversarial":
        return network("mnist_adv" if seed == 0 else f"mnist_adv-{seed}")
    model = models.build("small_cnn", channels=(8, 16), hidden=32, mean=0.1307, std=0.3081, seed=seed)
    sources = [model] if training == "own" else [network(name) for name in FROZEN]
    objective = defenses.ensemble_adversarial_training(surrogates=sources, eps=eps, random_step=0.0)
    how: dict[str, Any] = {} if training == "natural" else {"objective": objective}
    fit(model, data.load("mnist5k"), epochs=10, lr=5e-3, seed=seed, **how)
    return model.eval().requires_grad_(False)


def one_step(model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int = 0) -> dict[str, Tensor]:
    """What FGSM, R+FGSM and PGD-20 make of images."""
    start = x + eps / 2 * Noise(seed, torch.arange(len(x))).sign(0, x.shape[1:])
    return {
        "FGSM": fgsm(model, x, y, eps=eps).x_adv,
        "R+FGSM": fgsm(model, start.clamp(0, 1), y, eps=eps / 2).x_adv,
        "PGD": pgd_maximize(model, x, y, eps=eps, steps=20, seed=seed),
    }


def training(training: str, eps: float, draw: int) -> Mapping[str, Any]:
    """Accuracy at test images, under attacks on the network itself, and under those from unseen networks."""
    model, have = trained(training, eps, draw), data.load("mnist5k")
    x, y = have.x_test[:ATTACKED], have.y_test[:ATTACKED]

    def right(points: Tensor) -> Rate:
        return Rate.of(predict(model, points) == y)

    told = {"clean": right(x)} | {name: right(points) for name, points in one_step(model, x, y, eps).items()}
    told["PGD"] = Rate.of(~pgd(model, x, y, eps=eps, steps=20).success)
    for source in UNSEEN:
        for name, points in one_step(network(source), x, y, eps).items():
            told[f"{name} from {source}"] = right(points)
    return told


PARTS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "one δ": one_delta,
    "min-max": many_models,
    "training": training,
}


def measure(part: str, **case: Any) -> Mapping[str, Any]:
    """One row."""
    return PARTS[part](**case)


EXPERIMENT = Experiment(
    name="universal",
    question="What does one perturbation do to images, models and trainings that it was not made for?",
    cases=[
        *(
            {"part": "one δ", "net": net, "eps": eps, "n": n, "draw": draw}
            for net, radii in RADII.items()
            for eps, n in (*((radii[1], n) for n in COUNTS), *((eps, MOST) for eps in radii))
            for draw in DRAWS
        ),
        *(
            {"part": "min-max", "pool": pool, "k": k, "gamma": gamma, "eps": eps, "draw": draw}
            for pool, radii in POOL_RADII.items()
            for k, eps, gammas in (*((k, radii[0], (*GAMMAS, EVEN)) for k in (2, 3, 4)), (3, radii[1], (0.0, EVEN)))
            for gamma in gammas
            for draw in DRAWS
        ),
        *(
            {"part": "training", "training": kind, "eps": eps, "draw": draw}
            for eps in TRAIN_RADII
            for kind in (*TRAININGS, *(("adversarial",) if eps == 0.2 else ()))
            for draw in DRAWS
        ),
    ],
    measure=measure,
    n={"draws and trainings": len(DRAWS), "test images": TESTED, "images attacked": ATTACKED},
    seeds=DRAWS,
    data=["mnist5k", "fashion", "sign_digits32"],
    nets=list(dict.fromkeys([*RADII, *(name for pool in POOLS.values() for name in pool), *FROZEN, *UNSEEN,
                             "mnist_adv", "mnist_adv-1", "mnist_adv-2"])),
    tolerance={"to the commonest label": 0.2, "mean queries": 5, "weights": 0.2, "loss": 0.5, "loss, held out": 0.5,
               "fooled": 0.08},
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
