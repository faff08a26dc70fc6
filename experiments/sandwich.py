"""Chapter 23: between which bounds does the robust accuracy of the book's twelve classifiers lie?

Above it is PGD, 20 steps from one start; below it what CROWN and IBP verify. For the two MLPs the complete verifier of
chapter 21 gives the truth itself. A row is one part of the test images at one budget: thirty of them, or three on the
residual networks, on which CROWN is slow.
"""

from __future__ import annotations

import torch

from experiments.record import Experiment
from robustlab import data, zoo
from robustlab.attacks import pgd
from robustlab.intervals import Rate
from robustlab.verification import certify, verify

BUDGETS = {"mnist": (0.01, 0.03, 0.05, 0.1), "fashion": (0.005, 0.015, 0.03, 0.05)}
RESIDUAL = {"mnist_resnet": (0.01, 0.02), "fashion_resnet": (0.005, 0.01), "mnist_warped": (0.005, 0.01)}
OTHERS = (
    "mnist_mlp", "fashion_mlp", "mnist_cnn", "fashion_cnn", "mnist_cnn_adv", "fashion_cnn_adv", "mnist_badnets",
    "fashion_blended", "mnist_input_aware",
)  # fmt: skip
PARTS = {"residual": (3, 1), "others": (30, 1)}


def family(net: str) -> str:
    """Of which data set a network is."""
    return net.split("_")[0]


@torch.no_grad()
def measure(net: str, part: int, eps: float) -> dict[str, Rate | int]:
    """The shares that are read correctly, stand PGD, and are verified, and how often two verdicts clash."""
    images = data.load("mnist5k" if family(net) == "mnist" else "fashion")
    size = PARTS["residual" if net in RESIDUAL else "others"][0]
    x, y = (part_of[size * part : size * (part + 1)] for part_of in (images.x_test, images.y_test))
    model = zoo.load(net)
    broken = pgd(model, x, y, eps=eps, steps=20).success
    crown, ibp = (certify(model, x, y, eps=eps, method=method).verified for method in ("crown", "ibp"))
    result = {"clean": Rate.of(model(x).argmax(dim=1) == y), "PGD": Rate.of(~broken)}
    result |= {"CROWN": Rate.of(crown), "IBP": Rate.of(ibp)}
    clashes = (crown | ibp) & broken
    if "mlp" in net:
        truth = verify(model, x, y, eps=eps)
        assert not truth.unknown.any(), "the search ends"
        result["exact"] = Rate.of(truth.verified)
        clashes |= (truth.verified & broken) | ((crown | ibp) & ~truth.verified)
    return result | {"clashes": int(clashes.sum())}


EXPERIMENT = Experiment(
    name="sandwich",
    question="Between which bounds does the robust accuracy of the book's classifiers lie?",
    cases=[
        {"net": net, "part": part, "eps": eps}
        for kind, nets in (("others", OTHERS), ("residual", RESIDUAL))
        for net in nets
        for eps in RESIDUAL.get(net, BUDGETS[family(net)])
        for part in range(PARTS[kind][1])
    ],
    measure=measure,
    n={"images": 30, "images of residual networks": 3},
    seeds=[0],
    data=["mnist5k", "fashion"],
    nets=sorted((*OTHERS, *RESIDUAL)),
)

if __name__ == "__main__":
    EXPERIMENT.main()
