"""Chapter 07: what the budget of C&W decides, and whether gradients are better spent on steps or on starts.

On each network the images are the first of the test set that it reads correctly. C&W gets what fits into the chapter,
four weights of 100 steps, or six of 300 shorter ones; its rivals run at their settings in the chapter. PGD spends 40
gradients per image on one start or on several, from two seeds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import predict
from robustlab.attacks import cw, ddn, deepfool, fmn, pgd
from robustlab.intervals import Rate
from robustlab.zoo import recipe

EPS = {"mnist_cnn": 0.1, "mnist_mlp": 0.1, "fashion_cnn": 0.03, "mnist_cnn_adv": 0.3}
NEAREST, STANDING, SEEDS = 48, 200, (0, 1)
BUDGETS: dict[str, dict[str, Any]] = {
    "4 x 100": {"search_steps": 4, "steps": 100, "lr": 0.1, "c": 1.0},
    "6 x 300": {"search_steps": 6, "steps": 300, "lr": 0.02, "c": 0.1},
}
SPLITS = ((40, 1), (20, 2), (10, 4), (5, 8))


@cache
def victim(net: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and images that it reads correctly with their labels."""
    model, test = nets.load(net)[0].requires_grad_(False), data.load(recipe(net).dataset)
    right = predict(model, test.x_test) == test.y_test
    return model, test.x_test[right][:images], test.y_test[right][:images]


@cache
def rivals(net: str) -> dict[str, AttackResult]:
    """The other searches of the chapter."""
    who = victim(net, NEAREST)
    return {"DeepFool": deepfool(*who), "DDN": ddn(*who, steps=100), "FMN": fmn(*who, norm="l2", steps=100)}


def measure(net: str, part: str, how: str) -> dict[str, Rate | float | list[float]]:
    """Of C&W: the share fooled, nearer than DeepFool, farther than DDN and FMN. Of PGD: images standing, per seed."""
    if part == "starts":
        steps, starts = map(int, how.split(" x "))
        runs = [pgd(*victim(net, STANDING), eps=EPS[net], steps=steps, restarts=starts, seed=seed) for seed in SEEDS]
        return {"standing": [int((~run.success).sum()) for run in runs]}
    found = cw(*victim(net, NEAREST), **BUDGETS[how])
    radius = found.radius("l2")
    others = {name: result.radius("l2") for name, result in rivals(net).items()}
    return {
        "fooled": Rate.of(found.success),
        "gradients": round(float(found.gradients.double().mean())),
        "nearer than DeepFool": Rate.of(radius < others["DeepFool"]),
        "DDN nearer": Rate.of(others["DDN"] < radius),
        "FMN nearer": Rate.of(others["FMN"] < radius),
    }


EXPERIMENT = Experiment(
    name="white_box",
    question="Does C&W beat DeepFool once it may run longer, and do more steps or more starts fool more images?",
    cases=[
        {"net": net, "part": part, "how": how}
        for part, settings in (("c&w", [*BUDGETS]), ("starts", [f"{T} x {R}" for T, R in SPLITS]))
        for how in settings
        for net in EPS
    ],
    measure=measure,
    n={"networks": len(EPS), "images for C&W": NEAREST, "images for PGD": STANDING, "seeds of PGD": len(SEEDS)},
    seeds=[*SEEDS],
    data=["mnist5k", "fashion"],
    nets=[*EPS],
    tolerance={"gradients": 100, "standing": 2},  # a run that ends early elsewhere, an image near the boundary
)

if __name__ == "__main__":
    EXPERIMENT.main()
