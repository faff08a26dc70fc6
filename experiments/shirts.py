"""Chapter 13: what a shirt against one detector, and one against two, is worth on three pairs of detectors.

Each pair is a detector of each kind, by the zoo's recipes at seeds of its own. Frames, folds, steps and draws are those
of the chapter: shirts are made in up to 24 training frames whose persons both find without a print, and judged in up to
20 test frames in three folds each. A rate is the share of pictures in which a detector does not find the wearer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab.attacks import tshirt
from robustlab.attacks.physical.shirts import Shirts
from robustlab.data import people
from robustlab.intervals import Rate
from robustlab.models import detected, detections

DRAWS = (0, 1, 2)
PAIRS: Mapping[str, tuple[str, str]] = {
    "zoo": ("person_anchor", "person_point"),
    "second": ("person_anchor-10", "person_point-11"),
    "third": ("person_anchor-20", "person_point-21"),
}
SHEET = torch.ones(1, 20, 16, dtype=torch.bool)


@cache
def network(name: str) -> nn.Module:
    return nets.load(name)[0].requires_grad_(False)


def walkers(
    each: Sequence[nn.Module], count: int, part: Literal["train", "test"], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames with one person whom all detectors find without a print, boxes and shirts."""
    have = people(count, least=1, most=1, part=part, seed=seed)
    found = torch.stack([detected(detections(one, have.images), have.boxes[:, 0]) for one in each]).all(dim=0)
    return have.images[found], have.boxes[found, 0], have.shirts[found, 0]


def measure(pair: str, draw: int) -> Mapping[str, Any]:
    """How often each shirt, a gray one too, hides its wearer from each detector."""
    anchor, point = (network(name) for name in PAIRS[pair])
    each = [anchor, point]
    walk, boxes, cloth = walkers(each, 24, "train", draw)
    street, street_boxes, street_cloth = walkers(each, 20, "test", 50 + draw)
    views = Shirts(street_cloth).views(3)
    prints = {"gray": torch.full((3, 20, 16), 0.5)}
    for name, against in (("anchor", [anchor]), ("point", [point]), ("both", each)):
        prints[name] = tshirt(
            against if len(against) > 1 else against[0], walk, boxes, scenes=Shirts(cloth), steps=20, draws=8, lr=0.1,
            seed=draw, held_out=(street, views, street_boxes),
        ).texture  # fmt: skip
    return {
        f"{name} > {kind}": Rate.of(
            torch.stack([~detected(detections(one, view(street, print_, SHEET)), street_boxes) for view in views])
        )
        for name, print_ in prints.items()
        for kind, one in (("anchor", anchor), ("point", point))
    }


EXPERIMENT = Experiment(
    name="shirts",
    question="How often does a shirt hide its wearer from the detectors it was made against, and from another?",
    cases=[{"pair": pair, "draw": draw} for pair in PAIRS for draw in DRAWS],
    measure=measure,
    n={"pairs of detectors": len(PAIRS), "draws": len(DRAWS), "pictures of a rate, at most": 60},
    seeds=DRAWS,
    data=[],
    nets=[name for pair in PAIRS.values() for name in pair],
)

if __name__ == "__main__":
    EXPERIMENT.main()
