"""Chapter 07: what the budget of C&W decides, how far PGD's steps must reach, and whether it needs steps or starts.

On each network the images are of the test set and read correctly. All is measured on two draws that share no image:
what was concluded from the first had to hold on the second. C&W gets what fits into the chapter, four weights of 100
steps, or six of 300 shorter ones; its rivals run at their settings in the chapter. PGD spends 40 gradients per image
on one start or on several, from two seeds. Pairs of attacks count the images that one of the two alone fools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import predict
from robustlab.attacks import bim, cw, ddn, deepfool, fgsm, fmn, pgd
from robustlab.intervals import Rate
from robustlab.zoo import recipe

EPS = {"mnist_cnn": 0.1, "mnist_mlp": 0.1, "fashion_cnn": 0.03, "mnist_cnn_adv": 0.3}
NEAREST, STANDING, SEEDS, DRAWS = 48, 200, (0, 1), (0, 1)
FIRST = {NEAREST: (0, 100), STANDING: (0, 400)}  # image of each draw, by the number of images
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
    return {"DeepFool": deepfool(*who), "DDN": ddn(*who, steps=100), "FMN": fmn(*who, norm="l2", steps=100)}


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
    question="Does C&W beat DeepFool once it may run longer, and does PGD need longer ways, more steps or more starts?",
    cases=[
        {"net": net, "part": part, "how": how, "draw": draw}
        for draw in DRAWS
        for part, settings in (
            ("c&w", [*BUDGETS]),
            ("starts", [f"{T} x {R}" for T, R in SPLITS]),
            ("pairs", [*PAIRS]),
        )
        for how in settings
        for net in EPS
    ],
    measure=measure,
    n={
        "networks": len(EPS),
        "draws of images": len(DRAWS),
        "images for C&W": NEAREST,
        "images for PGD": STANDING,
        "seeds of PGD per draw": len(SEEDS),
    },
    seeds=[2 * draw + seed for draw in DRAWS for seed in SEEDS],
    data=["mnist5k", "fashion"],
    nets=[*EPS],
    tolerance={
        "gradients": 100,
        "standing": 2,
        "alone": 2,
    },  # a run that ends early elsewhere, an image near the boundary
)

if __name__ == "__main__":
    EXPERIMENT.main()
