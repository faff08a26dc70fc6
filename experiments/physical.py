"""Chapter 13: what becomes of stickers, patches, glasses and textures where they were never tried.

Nothing is printed and nothing is photographed: the "physical" world is sampled scenes (size, place, angle, side view,
light, blur, noise of the sensor), the "digital" one is a single scene with a plain camera. Judges are backgrounds and
scenes that no attack has drawn, and the first two parts also judge where papers report digital success. All with
the same number of steps and of pictures per step.

*Worlds*: made over digital or physical scenes, judged over both, beside a plain gray thing of the same shape.
*Views*: made over a fixed list of physical scenes, judged over the same list and over others.
*Printing*: made with all colors, then printed in a few inks; and made with the non-printability score, then printed.
*Area*: the stickers' share of the sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import attacks
from robustlab.attacker.results import PhysicalResult
from robustlab.attacker.victim import predict
from robustlab.attacks.physical import mesh
from robustlab.attacks.physical.camera import PLAIN, Camera
from robustlab.attacks.physical.eyeglasses import frames
from robustlab.attacks.physical.few_scenes import Few
from robustlab.attacks.physical.mounted import Mounted
from robustlab.attacks.physical.patch import disk
from robustlab.attacks.physical.printing import printable_colors, printed
from robustlab.attacks.physical.scenes import Listed, Placed, Scenes, Turned, View, Worn
from robustlab.data import backgrounds, load, rendered_faces, sign_faces
from robustlab.intervals import Rate

DRAWS = (0, 1, 2)
ROAD, FACE = ("road_cnn", "road_cnn-1", "road_cnn-2"), ("face_cnn", "face_cnn-1", "face_cnn-2")
HANDS = ("sign_cnn", "sign_noise12", "sign_noise25")
NETS = {"rp2": ROAD, "patch": HANDS, "dodging": FACE, "impersonation": FACE, "eot_3d": ROAD}
PAIRS = ((1, 5), (2, 6), (0, 4))  # persons: the wearer of the glasses, and the one to be taken for
STOP, LIMIT = 0, 1  # labels of road signs
MADE, JUDGES, VIEWS = 64, 40, 10  # images that a thing is made before, and that judge it, each in so many scenes
BUDGET: dict[str, Any] = {"steps": 60, "draws": 24}
COUNTS = (1, 2, 4, 8, 16)
AREAS = (0.05, 0.1, 0.4, 1.0)  # 0.2 is in the first part
INKS = {"27 inks": 3, "8 inks": 2}
# Weights of the score. It is a product of as many distances as there are inks, so that 27 of them leave little of it.
SCORES: Mapping[str, Mapping[str, float]] = {
    "27 inks": {"score": 100.0}, "8 inks": {"score": 1.0, "heavy score": 10.0},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class World:
    """What an attack works on: images, labels and target; its scenes, digital and physical; what is painted."""

    attack: Callable[..., PhysicalResult]
    x: Tensor
    y: Tensor
    judges: Tensor
    labels: Tensor
    target: int | None
    digital: Scenes
    physical: Scenes
    mask: Tensor
    arguments: Mapping[str, Any]

    def held_out(self, views: Sequence[View]) -> tuple[Tensor, Sequence[View], Tensor]:
        return self.judges, views, self.labels

    def views(self, kind: str) -> list[View]:
        """Scenes that judge; there is one digital scene alone."""
        return self.physical.views(VIEWS, seed=99) if kind == "physical" else self.digital.views(1)

    def make(self, model: nn.Module, scenes: Scenes | Sequence[View], draw: int, **changes: Any) -> PhysicalResult:
        told = {
            "held_out": self.held_out(self.views("physical")),
            "target": self.target,
            "seed": draw,
            "mask": self.mask,
        }
        return self.attack(model, self.x, self.y, scenes=scenes, **{**told, **BUDGET, **self.arguments, **changes})

    def rate(self, model: nn.Module, views: Sequence[View], texture: Tensor, mask: Tensor) -> Rate:
        """The share of held-out pictures that are taken for the target, or for anybody else where there is none."""
        seen = torch.stack([predict(model, view(self.judges, texture, mask)) for view in views])
        return Rate.of(seen != self.labels if self.target is None else seen == self.target)


@cache
def network(name: str) -> nn.Module:
    return nets.load(name)[0].requires_grad_(False)


@cache
def world(method: str, draw: int = 0) -> World:
    """The stop sign, the patch among hands, the glasses of a person, the box before photographs."""
    wearer, other = PAIRS[draw]
    if method == "dodging":
        return _glasses(draw, wearer, None)
    if method == "impersonation":
        return _glasses(draw, wearer, other)
    return {"rp2": _sign, "patch": _hands, "eot_3d": _box}[method](draw)


def _sign(draw: int) -> World:
    faces, outlines = sign_faces(32)
    face, outline = faces[STOP], outlines[STOP]
    still = Mounted(face, outline, scale=(0.7, 0.7), shift=0.0, yaw=0.0, turn=0.0, camera=PLAIN)
    x, judges = backgrounds(MADE, seed=draw), backgrounds(JUDGES, part="test", seed=draw)
    return World(
        attacks.rp2, x, torch.full((MADE,), STOP), judges, torch.full((JUDGES,), STOP), LIMIT, still,
        Mounted(face, outline), outline > 0.99,
        {"mask": None, "region": outline > 0.99, "clean": face, "area": 0.2, "lr": 0.1, "lam": 0.0},
    )  # fmt: skip


def pasted(images: Tensor, texture: Tensor, mask: Tensor) -> Tensor:
    """The patch as it is, at one place of every image: below the middle and to the right."""
    seen = images.clone()
    seen[:, :, 12:28, 12:28] = torch.where(mask, texture, images[:, :, 12:28, 12:28])
    return seen


def _hands(draw: int) -> World:
    have, target = load("sign_digits32"), (0, 8, 5)[draw]
    others = [(y != target).nonzero().flatten() for y in (have.y_train, have.y_test)]
    order, judges = (
        rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(draw))[:n]]
        for rows, n in zip(others, (MADE, JUDGES), strict=True)
    )
    over = Placed(scale=(0.4, 0.7), turn=45.0, camera=Camera(tilt=0.08, gain=(0.7, 1.2), blur=(0.0, 0.8), noise=0.02))
    return World(
        attacks.patch, have.x_train[order], have.y_train[order], have.x_test[judges], have.y_test[judges], target,
        Listed([pasted]), over, disk(16, have.x_train), {"lr": 0.1},
    )  # fmt: skip


def _glasses(draw: int, person: int, target: int | None) -> World:
    have = rendered_faces(10 * MADE, 10 * JUDGES, seed=100 + draw)
    x, judges = have.x_train[person::10], have.x_test[person::10]
    over = Worn(slip=2.0, turn=6.0, camera=Camera(tilt=0.08, gain=(0.7, 1.2), blur=(0.0, 0.8), noise=0.02))
    return World(
        attacks.eyeglasses, x, torch.full((MADE,), person), judges, torch.full((JUDGES,), person), target,
        Worn(camera=PLAIN), over, frames(x), {"lr": 0.1},
    )  # fmt: skip


def _box(draw: int) -> World:
    over = Turned(mesh.box(), yaw=(-180.0, 180.0), pitch=(-25.0, 25.0), shift=0.2, camera=Camera(tilt=0.0, noise=0.02))
    none = (0.0, 0.0)
    still = Turned(mesh.box(), yaw=none, pitch=none, roll=none, distance=(4.0, 4.0), shift=0.0, camera=PLAIN)
    x, judges = backgrounds(MADE, seed=draw), backgrounds(JUDGES, part="test", seed=draw)
    nothing = torch.full((1,), LIMIT)  # the box has no label; any but the target
    return World(
        attacks.eot_3d, x, nothing.expand(MADE), judges, nothing.expand(JUDGES), STOP, still, over,
        torch.ones(1, 48, 72, dtype=torch.bool), {"lr": 0.1, "lam": 0.0},
    )  # fmt: skip


@cache
def over_scenes(method: str, net: str, draw: int) -> PhysicalResult:
    """Made over fresh physical scenes, in all colors."""
    w = world(method, draw)
    return w.make(network(net), w.physical, draw)


def worlds(method: str, net: str, made: str, draw: int) -> Mapping[str, Any]:
    """Success in both worlds of a thing made over one of them, and of a plain gray one in the other's place."""
    w, model = world(method, draw), network(net)
    result = w.make(model, w.digital, draw) if made == "digital" else over_scenes(method, net, draw)
    gray = torch.full_like(result.texture, 0.5)
    told: dict[str, Any] = {
        kind: w.rate(model, w.views(kind), result.texture, result.mask) for kind in ("digital", "physical")
    }
    return told | {"gray": w.rate(model, w.views("physical"), gray, result.mask)}


def views(method: str, net: str, count: int, draw: int) -> Mapping[str, Any]:
    """Success over the scenes that a thing was made in, and over others; before the same held-out images."""
    w, model = world(method, draw), network(net)
    given = Few(w.physical, count, seed=draw)
    result = w.make(model, given, draw)
    return {
        "own scenes": w.rate(model, given.each(), result.texture, result.mask),
        "held out": w.rate(model, w.views("physical"), result.texture, result.mask),
    }


def printing(method: str, net: str, inks: str, draw: int) -> Mapping[str, Any]:
    """Success with all colors, of the same in inks, and of one that was made for the inks."""
    w, model, colors = world(method, draw), network(net), printable_colors(INKS[inks])
    free, judges = over_scenes(method, net, draw), w.views("physical")
    told = {
        "all colors": w.rate(model, judges, free.texture, free.mask),
        "printed": w.rate(model, judges, printed(free.texture, free.mask, colors), free.mask),
    }
    for name, weight in SCORES[inks].items():
        bound = w.make(model, w.physical, draw, colors=colors, printability=weight)
        told[name] = w.rate(model, judges, bound.texture, bound.mask)
    return told


def area(net: str, share: float, draw: int) -> Mapping[str, Any]:
    """Success of stickers on a share of the sign, and of gray ones in their place."""
    w, model = world("rp2", draw), network(net)
    result, judges = w.make(model, w.physical, draw, area=share), w.views("physical")
    gray = torch.full_like(result.texture, 0.5)
    return {
        "stickers": w.rate(model, judges, result.texture, result.mask),
        "gray": w.rate(model, judges, gray, result.mask),
    }


PARTS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "worlds": worlds, "views": views, "printing": printing, "area": area,
}  # fmt: skip


def measure(part: str, **case: Any) -> Mapping[str, Any]:
    """One row."""
    return PARTS[part](**case)


EXPERIMENT = Experiment(
    name="physical",
    question="What becomes of stickers, patches, glasses and textures in scenes where they were never tried?",
    cases=[
        *(
            {"part": "worlds", "method": method, "net": net, "made": made, "draw": draw}
            for method, each in NETS.items() for net in each for made in ("digital", "physical") for draw in DRAWS
        ),
        *(
            {"part": "views", "method": method, "net": net, "count": count, "draw": draw}
            for method in ("rp2", "patch") for net in NETS[method] for count in COUNTS for draw in DRAWS
        ),
        *(
            {"part": "printing", "method": method, "net": net, "inks": inks, "draw": draw}
            for method in ("rp2", "patch", "impersonation") for net in NETS[method] for inks in INKS for draw in DRAWS
        ),
        *(
            {"part": "area", "net": net, "share": share, "draw": draw}
            for net in ROAD for share in AREAS for draw in DRAWS
        ),
    ],
    measure=measure,
    n={"networks of a method": 3, "draws": len(DRAWS), "held-out images": JUDGES, "scenes of each": VIEWS},
    seeds=DRAWS,
    data=["sign_digits32", "photos128"],
    nets=[*ROAD, *FACE, *HANDS],
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
