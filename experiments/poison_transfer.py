"""Chapter 03: on unseen extractors, what helps a clean-label attack, the polytope or several surrogates?

Three sets of networks, each with four surrogates and the extractors of two victims that the attacker has not seen. In
each set the targets are the first 30 coats that clean heads on the first surrogate and the unseen extractors read
correctly. Collision and polytope get one surrogate or four, the same ones; the polytope takes 40 steps of
the paper's 4,000.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from experiments.record import Experiment
from robustlab import data, fit, models
from robustlab.attacker.victim import predict
from robustlab.attacks import convex_polytope, evaluate_poisoning, feature_collision
from robustlab.intervals import Rate
from robustlab.models.probing import penultimate

PULLOVER, COAT, TARGETS = 2, 4, 30
SCALE = {"mean": 0.286, "std": 0.353}
BUDGET = {"rate": 0.04, "eps": 0.2}
POLYTOPE = {"inner_steps": 10}

Train = Callable[[Tensor, Tensor, int], nn.Module]


def extractor(seed: int, width: int = 64) -> nn.Module:
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
def scene(networks: int) -> tuple[tuple[Tensor, Tensor], list[nn.Module], list[Train], list[Tensor]]:
    """The shop's pictures, four surrogates, the trainings of two victims on unseen extractors, and the targets."""
    fashion, first = data.load("fashion"), 100 * networks
    shop = (fashion.x_train[5500:6000], fashion.y_train[5500:6000])
    x, y = fashion.x_test[1000:], fashion.y_test[1000:]
    surrogates = [extractor(first + seed) for seed in range(10, 14)]
    unseen = [extractor(first + 60), extractor(first + 61, width=100)]
    right = y == COAT
    for net in (surrogates[0], *unseen):
        right &= predict(new_head(net, shop)(*shop, seed=100), x) == COAT
    targets = [x[i : i + 1] for i in right.nonzero().flatten()[:TARGETS]]
    return shop, surrogates, [new_head(net, shop) for net in unseen], targets


def measure(networks: int, attack: str, surrogates: int, steps: int) -> dict[str, Rate | list[float]]:
    """The share of victims fooled, and of each target's two victims how many."""
    shop, nets, victims, targets = scene(networks)
    assert len(targets) == TARGETS
    run, settings = {"collision": (feature_collision, {}), "polytope": (convex_polytope, POLYTOPE)}[attack]
    sets = [
        run(shop, x_target=x_t, target=PULLOVER, model=nets[:surrogates], steps=steps, seed=i, **BUDGET, **settings)
        for i, x_t in enumerate(targets)
    ]
    reports = [evaluate_poisoning(train, sets, victims=1, seed=1) for train in victims]
    fooled = torch.cat([report.success for report in reports], dim=1)
    return {"fooled": Rate.of(fooled), "by_target": fooled.sum(dim=1).tolist()}


EXPERIMENT = Experiment(
    name="poison_transfer",
    question="On unseen extractors, does the polytope beat collisions in the same surrogates?",
    cases=[
        {"networks": networks, "attack": attack, "surrogates": surrogates, "steps": steps}
        for attack, surrogates, steps in (
            ("collision", 1, 60), ("collision", 4, 60), ("polytope", 1, 40), ("polytope", 4, 40),
        )
        for networks in range(3)
    ],
    measure=measure,
    n={"sets of networks": 3, "targets in each": TARGETS, "victims of each target": 2},
    seeds=[first + seed for first in (0, 100, 200) for seed in (10, 11, 12, 13, 60, 61)],
    data=["fashion"],
    tolerance={"by_target": 1},  # a victim near the boundary
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
