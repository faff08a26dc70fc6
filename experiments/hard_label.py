"""Chapter 10: how near attacks that see only labels come, by the queries that they may ask.

On each network 36 test images that it reads correctly, three draws of twelve. Each attack runs with its own default
settings and start, once with each budget; a query is a row that the network was asked about, the clean and the final
one included. A distance is told by how often the white-box one has to be doubled to reach it: 0 is the same, 1 twice
as far. The white-box distance of an image is the smallest that FMN, and in ℓ2 also DDN, finds. In the rows with the
start "image" all attacks begin at training images of other classes, the nearest first.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import attacks, data, zoo
from robustlab.attacker.victim import Victim, predict

DRAWS, IMAGES = 3, 12
NETS = ("mnist_cnn", "fashion_cnn", "sign_cnn")
BUDGETS = (500, 1000, 2000, 4000)
Norm = Literal["l2", "linf"]
L2 = ("boundary", "opt", "sign_opt", "hsja")


@cache
def scene(net: str) -> tuple[nn.Module, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """A network, test images that it reads correctly with their labels, and the training images."""
    model, have = nets.load(net)[0], data.load(zoo.recipe(net).dataset)
    right = (predict(model, have.x_test) == have.y_test).nonzero().flatten()
    chosen = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(0))[: DRAWS * IMAGES]]
    return model, have.x_test[chosen], have.y_test[chosen], (have.x_train, have.y_train)


@cache
def white_box(net: str, norm: Norm) -> Tensor:
    """The smallest distance that attacks with gradients find, for each image."""
    model, x, y, _ = scene(net)
    found = [attacks.fmn(model, x, y, norm=norm, steps=300).radius(norm)]
    if norm == "l2":
        found.append(attacks.ddn(model, x, y, steps=300).radius(norm))
    return torch.stack(found).amin(dim=0)


def measure(net: str, attack: str, norm: Norm, start: str, budget: int) -> dict[str, Any]:
    """Each draw's median of the doublings, the median distance of all images, and for how many no start was found."""
    model, x, y, pool = scene(net)
    near = white_box(net, norm)
    if attack == "white-box":
        return {"distance": round(middle(near), 4)}
    how = {"pool": pool} if start == "image" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no start was found: the row says for how many
        result = getattr(attacks, attack)(Victim(model, access="hard", budget=budget), x, y, norm=norm, **how)
    assert int(result.queries.max()) <= budget
    far = result.radius(norm)
    doublings = (far / near).log2()
    return {
        "doublings": [round(middle(part), 3) for part in doublings.split(IMAGES)],
        "distance": round(middle(far), 4),
        "no start": int((~result.success).sum()),
    }


def middle(values: Tensor) -> float:
    """The median; of an even number the mean of the middle two."""
    ordered = values.double().sort().values
    return float((ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2)


EXPERIMENT = Experiment(
    name="hard_label",
    question="How near do attacks that see only labels come to the white-box distance, by their queries?",
    cases=[
        *(
            {"net": net, "attack": "white-box", "norm": norm, "start": "none", "budget": 0}
            for net in NETS
            for norm in ("l2", "linf")
        ),
        *(
            {"net": net, "attack": attack, "norm": norm, "start": "noise", "budget": budget}
            for budget in BUDGETS
            for net in NETS
            for attack, norm in (*((attack, "l2") for attack in L2), ("hsja", "linf"))
        ),
        *(
            {"net": net, "attack": attack, "norm": "l2", "start": "image", "budget": 1000}
            for net in NETS
            for attack in L2
        ),
    ],
    measure=measure,
    n={"networks": len(NETS), "draws": DRAWS, "images in each": IMAGES},
    seeds=[0],
    data=["mnist5k", "fashion", "sign_digits32"],
    nets=NETS,
    tolerance={"doublings": 0.5, "distance": 1.0, "no start": 1},  # one label told otherwise turns all that follows
)

if __name__ == "__main__":
    EXPERIMENT.main()
