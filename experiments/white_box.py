"""Chapter 07: distances of all searches, what the budget of C&W decides, and what PGD's steps, ways and starts do.

On each network the images are of the test set and read correctly. All is measured on draws that share no image, four
for distances and two for PGD: what was concluded from the first had to hold on the others. C&W gets what fits into the
chapter, four weights of 100 steps, or six of 300 shorter ones; its rivals run at their settings in the chapter. FGSM
enters the distances three times: with the smallest ε that fools 90 % of a draw, with an ε of each image's own, and so
in ℓ2; on the hardened network, which no ε of one step defeats, it is left out. PGD spends 40 gradients per image on
one start or on several, from two seeds. Pairs of attacks count the images that one of the two alone fools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import predict
from robustlab.attacks import bim, cw, ddn, deepfool, fgsm, fmn, lbfgs, pgd
from robustlab.intervals import Rate
from robustlab.zoo import recipe

EPS = {"mnist_cnn": 0.1, "mnist_mlp": 0.1, "fashion_cnn": 0.03, "mnist_cnn_adv": 0.3}
FREE = ("mnist_cnn", "mnist_mlp", "fashion_cnn")
SEARCHES = ("FGSM", "FGSM, own ε", "FGSM, ℓ2, own ε", "DeepFool", "C&W", "L-BFGS", "DDN", "FMN")
NEAREST, STANDING, SEEDS = 48, 200, (0, 1)
FIRST = {NEAREST: (0, 100, 200, 300), STANDING: (0, 400)}  # image of each draw, by the number of images
BUDGETS: dict[str, dict[str, Any]] = {
    "4 x 100": {"search_steps": 4, "steps": 100, "lr": 0.1, "c": 1.0},
    "6 x 300": {"search_steps": 6, "steps": 300, "lr": 0.02, "c": 0.1},
}
SPLITS = ((40, 1), (20, 2), (10, 4), (5, 8))
PAIRS: dict[
    str, tuple[Callable[..., AttackResult], dict[str, float], Callable[..., AttackResult], dict[str, float]]
] = {
    "FGSM, BIM": (fgsm, {}, bim, {"steps": 10}),
    "a quarter, 2.5": (
        pgd,
        {"steps": 10, "step_size": 0.025},
        pgd,
        {"steps": 10, "step_size": 0.25},
    ),  # α in units of ε
}


@cache
def victim(net: str, images: int, draw: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and images that it reads correctly with their labels."""
    model, test = nets.load(net)[0].requires_grad_(False), data.load(recipe(net).dataset)
    right = predict(model, test.x_test) == test.y_test
    taken = slice(FIRST[images][draw], FIRST[images][draw] + images)
    return model, test.x_test[right][taken], test.y_test[right][taken]


@cache
def rivals(net: str, draw: int) -> dict[str, AttackResult]:
    """The other searches of the chapter."""
    who = victim(net, NEAREST, draw)
    return {
        "DeepFool": deepfool(*who),
        "L-BFGS": lbfgs(*who, steps=16, search_steps=6),
        "DDN": ddn(*who, steps=100),
        "FMN": fmn(*who, norm="l2", steps=100),
    }


def fooling_most(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Distances of FGSM at the smallest common ε that fools 90 %, in steps of 0.02."""
    for eps in torch.arange(0.02, 0.9, 0.02).tolist():
        found = fgsm(model, x, y, eps=eps)
        if found.success.double().mean() >= 0.9:
            break
    return found.radius("l2")


def own_budget(model: nn.Module, x: Tensor, y: Tensor, norm: str, top: float) -> Tensor:
    """The ℓ2 distance of each image's nearest success under FGSM, while ten halvings look for its smallest ε."""
    low, high = torch.zeros(len(x)), torch.full((len(x),), top)
    nearest, middle = torch.full((len(x),), torch.inf), high
    for _ in range(10):
        tried = fgsm(model, x, y, eps=middle, norm=norm)
        nearest = nearest.minimum(tried.radius("l2"))
        low, high = torch.where(tried.success, low, middle), torch.where(tried.success, middle, high)
        middle = (low + high) / 2
    return nearest


def distances(net: str, draw: int) -> dict[str, float | list[float]]:
    """All searches on the same images, in the order of `SEARCHES`; relative distances over what all of them fool."""
    who = victim(net, NEAREST, draw)
    runs = {"C&W": cw(*who, **BUDGETS["4 x 100"]), **rivals(net, draw)}
    radius = {name: run.radius("l2") for name, run in runs.items()}
    if net in FREE:
        radius["FGSM"] = fooling_most(*who)
        radius["FGSM, own ε"] = own_budget(*who, "linf", 0.9)
        radius["FGSM, ℓ2, own ε"] = own_budget(*who, "l2", 8.0)
    found = [radius[name] for name in SEARCHES if name in radius]
    shared = torch.stack(found).isfinite().all(dim=0)
    size = who[1].flatten(1).norm(dim=1)
    return {
        "fooled by all": int(shared.sum()),
        "unfooled": [int(r.isinf().sum()) for r in found],
        "relative": [round(float((r / size)[shared].mean()), 4) for r in found],
        "mean of fooled": [round(float(r[r.isfinite()].mean()), 3) for r in found],
        "farther than DeepFool": [int((radius["DeepFool"] < r).sum()) for r in found],
        "nearer than DeepFool": [int((r < radius["DeepFool"]).sum()) for r in found],
        "nearer than DDN": [int((r < radius["DDN"]).sum()) for r in found],
        "price": [round(float(runs[name].gradients.double().mean())) for name in SEARCHES if name in runs],
    }


def pair(net: str, how: str, draw: int) -> dict[str, list[float]]:
    """Two attacks on the same images: how many stand under each, and how many it alone has fooled."""
    first, one, second, other = PAIRS[how]
    fooled = []
    for attack, settings in ((first, one), (second, other)):
        scaled = {key: value * EPS[net] if key == "step_size" else value for key, value in settings.items()}
        fooled.append(attack(*victim(net, STANDING, draw), eps=EPS[net], **scaled).success)
    a, b = fooled
    return {
        "standing": [int((~a).sum()), int((~b).sum())],
        "alone": [int((a & ~b).sum()), int((b & ~a).sum())],
    }


def measure(net: str, part: str, how: str, draw: int) -> Mapping[str, Rate | float | list[float]]:
    """Of C&W: the share fooled, nearer than DeepFool, farther than DDN and FMN. Of PGD: images standing, per seed."""
    if part == "pairs":
        return pair(net, how, draw)
    if part == "distances":
        return distances(net, draw)
    if part == "starts":
        steps, starts = map(int, how.split(" x "))
        who = victim(net, STANDING, draw)
        runs = [pgd(*who, eps=EPS[net], steps=steps, restarts=starts, seed=2 * draw + seed) for seed in SEEDS]
        return {"standing": [int((~run.success).sum()) for run in runs]}
    found = cw(*victim(net, NEAREST, draw), **BUDGETS[how])
    radius = found.radius("l2")
    others = {name: result.radius("l2") for name, result in rivals(net, draw).items()}
    return {
        "fooled": Rate.of(found.success),
        "gradients": round(float(found.gradients.double().mean())),
        "nearer than DeepFool": Rate.of(radius < others["DeepFool"]),
        "DDN nearer": Rate.of(others["DDN"] < radius),
        "FMN nearer": Rate.of(others["FMN"] < radius),
    }


EXPERIMENT = Experiment(
    name="white_box",
    question="How near do the searches come, does C&W beat DeepFool if it may run longer, and what do PGD's knobs do?",
    cases=[
        {"net": net, "part": part, "how": how, "draw": draw}
        for part, settings, images in (
            ("distances", ["all"], NEAREST),
            ("c&w", [*BUDGETS], NEAREST),
            ("starts", [f"{T} x {R}" for T, R in SPLITS], STANDING),
            ("pairs", [*PAIRS], STANDING),
        )
        for draw in range(len(FIRST[images]))
        for how in settings
        for net in EPS
    ],
    measure=measure,
    n={
        "networks": len(EPS),
        "draws for distances": len(FIRST[NEAREST]),
        "draws for PGD": len(FIRST[STANDING]),
        "images for distances": NEAREST,
        "images for PGD": STANDING,
        "seeds of PGD per draw": len(SEEDS),
    },
    seeds=[2 * draw + seed for draw in range(len(FIRST[STANDING])) for seed in SEEDS],
    data=["mnist5k", "fashion"],
    nets=[*EPS],
    tolerance={
        "gradients": 100,
        "standing": 2,
        "alone": 2,
        "fooled by all": 2,
        "unfooled": 2,
        "relative": 0.004,
        "mean of fooled": 0.1,
        "farther than DeepFool": 3,
        "nearer than DeepFool": 3,
        "nearer than DDN": 3,
        "price": 100,
    },  # a run that ends early elsewhere, an image near the boundary
)

if __name__ == "__main__":
    EXPERIMENT.main()
