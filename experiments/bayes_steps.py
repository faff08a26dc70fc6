"""Chapter 09: what a Gaussian process between the questions saves, and what it costs in length.

BO-ADMM and ZO-ADMM ask about the same 5 images with 50 queries each, ZO-ADMM also with 1,000. Weights decide how long a
step is, and with it whether a mistake is found soon or near. So BO-ADMM runs with three settings, from near to soon,
ZO-ADMM with three numbers of directions, each with its own weights and with those of BO-ADMM; of each the best counts,
for each number of queries.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import attacks, data
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim, predict
from robustlab.intervals import Rate

IMAGES, BUDGET, MORE, ENDLESS = 5, 50, 1000, 10**6
GRID = (25, BUDGET)
THREE = ("mnist_cnn", "fashion_cnn", "fashion_mlp")
OURS = [{}, {"gamma": 0.03, "rho": 0.3, "reach": 0.3}, {"gamma": 0.01, "rho": 0.1, "reach": 0.5}]
RIVALS = [{"q": q} | weights for q in (3, 8, 20) for weights in ({}, {"gamma": 0.1, "rho": 1.0, "alpha": 0.5})]


@cache
def scene(net: str, draw: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and 5 of the test images that it reads correctly, others at each draw."""
    model = nets.load(net)[0]
    have = data.load("mnist5k" if net.startswith("mnist") else "fashion")
    right = (predict(model, have.x_test) == have.y_test).nonzero().flatten()[IMAGES * draw : IMAGES * (draw + 1)]
    return model, have.x_test[right], have.y_test[right]


def bayes(net: str, draw: int, budget: int, **how: Any) -> AttackResult:
    model, x, y = scene(net, draw)
    return attacks.bo_admm(Victim(model, access="soft", budget=budget), x, y, steps=ENDLESS, seed=draw, **how)


def rival(net: str, draw: int, budget: int, **how: Any) -> AttackResult:
    model, x, y = scene(net, draw)
    return attacks.zo_admm(Victim(model, access="soft", budget=budget), x, y, steps=ENDLESS, seed=draw, **how)


def fooled(result: AttackResult, budget: int) -> Rate:
    return Rate.of(result.success & (result.first_success <= budget))


def length(result: AttackResult) -> float:
    """Median ℓ2 of the successes; 0 where there is none."""
    won = result.distances["l2"][result.success]
    return round(float(won.median()), 3) if len(won) else 0.0


def measure(net: str, draw: int) -> dict[str, Any]:
    """One row."""
    ours = [bayes(net, draw, BUDGET, **how) for how in OURS]
    theirs = [rival(net, draw, BUDGET, **how) for how in RIVALS]
    longer = max((rival(net, draw, MORE, **how) for how in RIVALS), key=_rank)
    found: dict[str, Any] = {}
    for name, results in (("bayes", ours), ("zo", theirs)):
        found |= {
            f"{name} {budget}": max((fooled(r, budget) for r in results), key=lambda r: r.hits) for budget in GRID
        }
        found[f"{name} length"] = length(max(results, key=_rank))
    return found | {"zo more": fooled(longer, MORE), "zo more length": length(longer)}


def _rank(result: AttackResult) -> tuple[int, float]:
    """Most successes, then the shortest."""
    return int(result.success.sum()), -length(result)


EXPERIMENT = Experiment(
    name="bayes_steps",
    question="How many queries does a Gaussian process between the questions save, and how much longer is its δ?",
    cases=[{"net": net, "draw": draw} for net in THREE for draw in range(3)],
    measure=measure,
    n={"networks": 3, "draws": 3, "images of each": IMAGES, "queries": BUDGET},
    seeds=[0, 1, 2],
    data=["fashion", "mnist5k"],
    nets=THREE,
    tolerance={"bayes length": 1.5, "zo length": 1.0, "zo more length": 0.5},
)


if __name__ == "__main__":
    EXPERIMENT.main()
