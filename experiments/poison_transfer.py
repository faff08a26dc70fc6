"""Chapter 03: frozen features, known or unseen: whom does a clean-label attack fool, and what helps it there?

Three sets of networks, each with four surrogates and the extractors of two victims that the attacker has not seen. In
each set the targets are the first 30 coats that clean heads on the first surrogate and the unseen extractors read
correctly, in three parts of ten. On the first surrogate, whose features are known, collisions stand beside noise and
flipped labels. On unseen features collision and polytope get one surrogate or four, the same ones. Attacks and noise
have three budgets. The polytope takes 40 steps, and in one row 400, of the paper's 4,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.record import Experiment
from robustlab import data, fit, models
from robustlab.attacker.victim import predict
from robustlab.attacks import convex_polytope, evaluate_poisoning, feature_collision, poisoning_control
from robustlab.attacks.poisoning.clean_label import CleanLabelPoison
from robustlab.attacks.poisoning.convex_polytope import coefficients
from robustlab.intervals import Rate
from robustlab.models.probing import penultimate

PULLOVER, COAT, PART, PARTS, SETS = 2, 4, 10, 3, 3
SCALE = {"mean": 0.286, "std": 0.353}
RATE, BUDGETS = 0.04, (0.1, 0.2, 0.3)
STEPS = {"collision": 60, "polytope": 40}

Train = Callable[[Tensor, Tensor, int], nn.Module]
Result = dict[str, Rate | list[float]]


class Scene(NamedTuple):
    """One set of networks: the shop's pictures, the networks, the victims' trainings by name, and the targets."""

    shop: tuple[Tensor, Tensor]
    surrogates: list[nn.Sequential]
    unseen: list[nn.Sequential]
    victims: dict[str, list[Train]]
    targets: list[Tensor]


def extractor(seed: int, width: int = 64) -> nn.Sequential:
    """A network for garments, trained on 4,000 pictures."""
    fashion = data.load("fashion")
    net = models.mlp(hidden=(width,), seed=seed, **SCALE)
    fit(net, (fashion.x_train[:4000], fashion.y_train[:4000]), epochs=4, lr=3e-3, seed=seed)
    return net.eval().requires_grad_(False)


def new_head(net: nn.Sequential, shop: tuple[Tensor, Tensor]) -> Train:
    """A victim that keeps all but the last layer of `net`."""
    spread = float(penultimate(net, shop[0]).std())

    def train(x: Tensor, y: Tensor, seed: int) -> nn.Module:
        features = penultimate(net, x)
        head = models.mlp(in_shape=features.shape[1:], hidden=(), classes=int(y.max()) + 1, std=spread, seed=seed)
        fit(head, (features, y), epochs=60, batch_size=500, lr=0.1, seed=seed)
        return nn.Sequential(net[:-1], head).eval()

    return train


@cache
def scene(networks: int) -> Scene:
    """What one set of networks is made of."""
    fashion, first = data.load("fashion"), 100 * networks
    shop = (fashion.x_train[5500:6000], fashion.y_train[5500:6000])
    x, y = fashion.x_test[1000:], fashion.y_test[1000:]
    surrogates = [extractor(first + seed) for seed in range(10, 14)]
    unseen = [extractor(first + 60), extractor(first + 61, width=100)]
    right = y == COAT
    for net in (surrogates[0], *unseen):
        right &= predict(new_head(net, shop)(*shop, seed=100), x) == COAT
    targets = [x[i : i + 1] for i in right.nonzero().flatten()[: PART * PARTS]]
    assert len(targets) == PART * PARTS
    victims = {"known": [new_head(surrogates[0], shop)], "unseen": [new_head(net, shop) for net in unseen]}
    return Scene(shop, surrogates, unseen, victims, targets)


def poisons(
    here: Scene, part: int, attack: str, surrogates: int = 0, steps: int = 0, eps: float = 0.0
) -> list[CleanLabelPoison]:
    """One poisoned training set for each target of a part."""
    nets, job = here.surrogates[:surrogates], {"target": PULLOVER, "rate": RATE}
    how: dict[str, tuple[Any, dict[str, Any]]] = {
        "collision": (feature_collision, {"model": nets, "steps": steps, "eps": eps}),
        "polytope": (convex_polytope, {"model": nets, "steps": steps, "eps": eps, "inner_steps": 10}),
        "noise": (poisoning_control, {"kind": "noise", "eps": eps}),
        "flips": (poisoning_control, {"kind": "flips", "source": COAT}),
    }
    run, settings = how[attack]
    first = PART * part
    return [
        run(here.shop, x_target=x_t, seed=first + i, **job, **settings)
        for i, x_t in enumerate(here.targets[first : first + PART])
    ]


def hull_gaps(poisoned: CleanLabelPoison, nets: list[nn.Sequential]) -> Tensor:
    """Distance of the target from the poisons' hull over its length, in the features of each network."""
    hulls = [penultimate(net, poisoned.x[poisoned.is_poison]) for net in nets]
    goals = [penultimate(net, poisoned.x_target)[0] for net in nets]
    weights = coefficients(hulls, goals, steps=100, tol=1e-5)
    return torch.stack([
        (row @ hull - goal).norm() / goal.norm() for row, hull, goal in zip(weights, hulls, goals, strict=True)
    ])  # fmt: skip


def measure(networks: int, part: int, victim: str, **case: Any) -> Result:
    """The share of victims fooled, and how many each target fools; on unseen features the hulls' mean gaps, too."""
    here = scene(networks)
    sets = poisons(here, part, **case)
    success = torch.cat(
        [evaluate_poisoning(train, sets, victims=1, seed=1 + part).success for train in here.victims[victim]], dim=1
    )
    result: Result = {"fooled": Rate.of(success), "by_target": success.sum(dim=1).tolist()}
    if victim == "unseen":
        for name, nets in (("gap, surrogates", here.surrogates), ("gap, unseen", here.unseen)):
            gaps = [float(hull_gaps(poisoned, nets).mean()) for poisoned in sets]
            result[name] = [round(gap, 4) for gap in gaps]
    return result


def kinds() -> list[dict[str, Any]]:
    """What is varied beside networks and targets."""
    crafted = [
        {"victim": victim, "attack": attack, "surrogates": several, "steps": STEPS[attack], "eps": eps}
        for victim, attack, several in (
            ("known", "collision", 1),
            *(("unseen", attack, several) for attack in STEPS for several in (1, 4)),
        )
        for eps in BUDGETS
    ]
    longer = {"victim": "unseen", "attack": "polytope", "surrogates": 4, "steps": 400, "eps": 0.2}
    controls = [
        {"victim": victim, "attack": attack} | ({"eps": eps} if eps else {})
        for victim in ("known", "unseen")
        for attack, eps in (*(("noise", eps) for eps in BUDGETS), ("flips", None))
    ]
    return [*crafted, longer, *controls]


def on_all_sets(kinds: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each of these on every part of the targets of every set of networks."""
    return [
        {"networks": networks, "part": part, **kind}
        for kind in kinds
        for networks in range(SETS)
        for part in range(PARTS)
    ]


EXPERIMENT = Experiment(
    name="poison_transfer",
    question="On frozen features, known or unseen, whom do collision and polytope fool, and does one beat the other?",
    cases=on_all_sets(kinds()),
    measure=measure,
    n={"sets of networks": SETS, "targets in each": PART * PARTS, "unseen victims of each target": 2},
    seeds=[100 * networks + seed for networks in range(SETS) for seed in (10, 11, 12, 13, 60, 61)],
    data=["fashion"],
    # a victim near the boundary; steps of Adam and of a search for weights, rounded otherwise
    tolerance={"by_target": 1, "gap, surrogates": 0.02, "gap, unseen": 0.02},
)

if __name__ == "__main__":
    EXPERIMENT.main()
