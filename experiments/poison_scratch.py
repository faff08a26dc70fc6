"""Chapter 03: victims that train all their weights: what does a clean-label attack of theirs achieve?

Three sets of networks. In each set the attacker trains a clean model on the victim's data and recipe; this model and
two others choose the targets, the first 15 coats that all three read correctly, in three parts of five. Each target has
two victims of other initial weights. Gradient matching stands beside noise and flipped labels at three budgets, with 60
steps from one start, and once with the paper's 250 from eight. Collisions of the attacker's own features are judged on
these victims, and on a new last layer of the attacker's model, where they were made. Last, the paper's watermark with
and without a collision, 50 poisons of any size.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from experiments.poison_transfer import COAT, PARTS, PULLOVER, SCALE, SETS, new_head, on_all_sets
from experiments.record import Experiment
from robustlab import data, fit, models
from robustlab.attacker.victim import predict
from robustlab.attacks import evaluate_poisoning, feature_collision, gradient_matching, poisoning_control
from robustlab.intervals import Rate

PART, VICTIMS = 5, 2
RATE, LEVELS = 0.04, (16, 32, 64)

Pair = tuple[Tensor, Tensor]
Result = dict[str, Rate | list[float]]


class Scene(NamedTuple):
    """One set of networks: the training data and the test data of two classes, the attacker's model, the targets."""

    train: Pair
    test: Pair
    own: nn.Sequential
    targets: list[Tensor]


def two_classes(x: Tensor, y: Tensor) -> Pair:
    """Coats, label 0, and pullovers, label 1."""
    keep = (y == PULLOVER) | (y == COAT)
    return x[keep], (y[keep] == PULLOVER).long()


def scratch(x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    """A victim's whole training."""
    net = models.mlp(hidden=(64,), classes=2, seed=seed, **SCALE)
    fit(net, (x, y), epochs=40, batch_size=250, lr=1e-2, seed=seed)
    return net.eval()


@cache
def scene(networks: int) -> Scene:
    """What one set of networks is made of."""
    fashion, first = data.load("fashion"), 200 + 100 * networks
    train = two_classes(fashion.x_train[2500:5000], fashion.y_train[2500:5000])
    test = two_classes(fashion.x_test[1000:], fashion.y_test[1000:])
    models_ = [scratch(*train, first + k) for k in range(3)]
    fine = test[1] == 0
    for net in models_:
        fine &= predict(net, test[0]) == 0
    targets = [test[0][i : i + 1] for i in fine.nonzero().flatten()[: PART * PARTS]]
    assert len(targets) == PART * PARTS
    return Scene(train, test, models_[0], targets)


ATTACKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "matching": (gradient_matching, {"steps": 60, "restarts": 1, "augment": None}),
    "matching, 8 x 250": (gradient_matching, {"steps": 250, "restarts": 8, "augment": None}),
    "collision": (feature_collision, {"steps": 60}),
    "watermark and collision": (feature_collision, {"rate": 0.1, "eps": None, "watermark": 0.3, "steps": 60}),
    # for a huge beta a poison stays where it starts
    "watermark": (feature_collision, {"rate": 0.1, "eps": None, "watermark": 0.3, "steps": 1, "beta": 1e9}),
    "noise": (poisoning_control, {"kind": "noise"}),
    "flips": (poisoning_control, {"kind": "flips", "source": 0}),
}


def measure(networks: int, part: int, attack: str, levels: int | None = None) -> Result:
    """The share of victims fooled, how many each target fools, and the victims' test accuracy; see the module."""
    here, (run, settings) = scene(networks), ATTACKS[attack]
    settings = {"target": 1, "rate": RATE} | ({} if levels is None else {"eps": levels / 255}) | settings
    settings |= {} if run is poisoning_control else {"model": here.own}
    first = PART * part
    sets = [
        run(here.train, x_target=x_t, seed=first + i, **settings)
        for i, x_t in enumerate(here.targets[first : first + PART])
    ]
    seed = 1 + 10 * networks + part
    report = evaluate_poisoning(scratch, sets, victims=VICTIMS, test=here.test, seed=seed)
    result: Result = {
        "fooled": Rate.of(report.success),
        "by_target": report.success.sum(dim=1).tolist(),
        "accuracy": [round(share, 4) for share in report.accuracy.mean(dim=1).tolist()],
    }
    if attack == "collision":  # an attacker sees it who looks into the model that the poisons were made for
        believed = evaluate_poisoning(new_head(here.own, here.train), sets, victims=1, seed=seed)
        result["believed"] = believed.success.sum(dim=1).tolist()
    return result


def kinds() -> list[dict[str, Any]]:
    """What is varied beside networks and targets."""
    swept = [{"attack": attack, "levels": levels} for attack in ("matching", "noise") for levels in LEVELS]
    once = [{"attack": attack, "levels": 32} for attack in ("matching, 8 x 250", "collision")]
    return [*swept, *once, *({"attack": attack} for attack in ("flips", "watermark and collision", "watermark"))]


EXPERIMENT = Experiment(
    name="poison_scratch",
    question="On victims trained from scratch, what do gradient matching, collisions and a watermark achieve?",
    cases=on_all_sets(kinds()),
    measure=measure,
    n={"sets of networks": SETS, "targets in each": PART * PARTS, "victims of each target": VICTIMS},
    seeds=[200 + 100 * networks + k for networks in range(SETS) for k in range(3)],
    data=["fashion"],
    tolerance={"by_target": 1, "believed": 1, "accuracy": 0.01},  # a victim near the boundary
)

if __name__ == "__main__":
    EXPERIMENT.main()
