"""Chapter 13: does a print need the expectation over scenes where any wrong label will do?

The things, scenes, judges and budgets are those of the experiment ``physical``, whose stickers and patch want a label.
Here they want any but the true one, by descent on its lead over the next: the cross-entropy of a network that is sure
of every picture has no slope in single precision (``road_cnn-2`` before plain signs). A picture counts if it is read
rightly without the thing in the same scene; a plain gray thing of the same shape is judged alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from experiments.physical import DRAWS, JUDGES, NETS, VIEWS, World, network, world
from experiments.record import Experiment
from robustlab.attacker.losses import margin
from robustlab.attacker.victim import predict
from robustlab.attacks.physical.scenes import View
from robustlab.intervals import Rate

METHODS = ("rp2", "patch")


def lead(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
    """z_y − max_{k ≠ y} z_k, which falls on where an image is misread already."""
    return margin(logits, y)


def turned(w: World, model: nn.Module, views: Sequence[View], texture: Tensor, mask: Tensor) -> Rate:
    """Of the pictures that are read rightly without the thing, the share that are misread with it."""
    bare, seen = (
        torch.stack([predict(model, view(w.judges, texture, shown)) for view in views])
        for shown in (torch.zeros_like(mask), mask)
    )
    return Rate.of((seen != w.labels)[bare == w.labels])


def measure(method: str, net: str, made: str, draw: int) -> Mapping[str, Any]:
    """Success in both worlds of a thing made over one of them, and of a plain gray one in the other's place."""
    w, model = replace(world(method, draw), target=None), network(net)
    result = w.make(model, w.digital if made == "digital" else w.physical, draw, loss=lead)
    told = {kind: turned(w, model, w.views(kind), result.texture, result.mask) for kind in ("digital", "physical")}
    gray = torch.full_like(result.texture, 0.5)
    return told | {"gray": turned(w, model, w.views("physical"), gray, result.mask)}


EXPERIMENT = Experiment(
    name="any_label",
    question="Does a print need the expectation over scenes where any wrong label will do?",
    cases=[
        {"method": method, "net": net, "made": made, "draw": draw}
        for method in METHODS
        for net in NETS[method]
        for made in ("digital", "physical")
        for draw in DRAWS
    ],
    measure=measure,
    n={"networks of a method": 3, "draws": len(DRAWS), "held-out images": JUDGES, "scenes of each, at most": VIEWS},
    seeds=DRAWS,
    data=["sign_digits32", "photos128"],
    nets=[net for method in METHODS for net in NETS[method]],
)

if __name__ == "__main__":
    EXPERIMENT.main()
