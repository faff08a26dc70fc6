"""Chapter 17: three detectors of adversarial images, before and after attacks that know them, and on natural shifts.

A row is one detector on one network at one ε. Each of the three networks of a kind has images of its own: 400 clean
ones, which set the threshold beforehand for 5 % of false alarms, 50 that are attacked, and 300 others for the false
alarms. PGD makes adversarial examples that do not know of the detector. Then come attacks that do, at the same ε: PGD
on the joint function with the score in three units, through every squeezer as if it were the identity; for squeezing
also PGD on what all squeezed versions say together, and Square on the joint function's scores. An image is lost if one
of all is misread and passes the detector.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.losses import rivals
from robustlab.attacker.results import Detection
from robustlab.attacker.victim import Victim
from robustlab.attacks import bypass_detectors, pgd, square
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.defenses import feature_squeezing, kernel_density, mahalanobis
from robustlab.defenses.detection.by_score import passes
from robustlab.defenses.detection.feature_squeezing import Squeezed
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate

BUDGETS = {"mnist_cnn": (0.15, 0.3), "mnist_resnet": (0.15,), "fashion_cnn": (0.05,)}
NETS = tuple(kind + seed for kind in BUDGETS for seed in ("", "-1", "-2"))
DETECTORS = ("squeezing", "mahalanobis", "density")
ATTACKED, CLEAN, OTHERS = 50, 400, 300
UNITS = (1, 10, 100)  # units of the score in the joint function, in interquartile ranges of clean scores


class Versions(nn.Module):
    """What a model says of an image and of its squeezed versions together: the mean of their log probabilities."""

    def __init__(self, score: Squeezed) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor) -> Tensor:
        said = [self.score.model(version).log_softmax(dim=1) for version in (x, *self.score.squeeze(x))]
        return torch.stack(said).mean(dim=0)


def images_of(net: str) -> tuple[data.Dataset, Tensor]:
    """The data set of a network, and the order in which its test images are taken."""
    images = data.load("mnist5k" if net.startswith("mnist") else "fashion")
    own = int(net.partition("-")[2] or 0)
    return images, torch.arange(len(images.x_test)).roll(-150 * own)


def detect(detector: str, model: nn.Module, x: Tensor, images: data.Dataset, clean: Tensor) -> Detection:
    """What a detector says of x, with a threshold set on clean test images."""
    if detector == "squeezing":
        return feature_squeezing(model, x, clean, bits=1 if images.name == "mnist5k" else 4)
    known = images.subset(2000)
    return (mahalanobis if detector == "mahalanobis" else kernel_density)(model, x, known, clean)


def shifted(x: Tensor) -> dict[str, Tensor]:
    """Other clean images, and what may naturally happen to them: noise, a turn by 15°, dim light."""
    angle = math.radians(15)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
    grid = F.affine_grid(turn.expand(len(x), -1, -1), list(x.shape), align_corners=False)
    noise = Noise(0, torch.arange(len(x))).normal(0, x.shape[1:])
    return {
        "clean": x,
        "noise": (x + 0.1 * noise).clamp(0, 1),
        "turned": F.grid_sample(x, grid, align_corners=False).clamp(0, 1),
        "dim": 0.7 * x,
    }


def aware(model: nn.Module, found: Detection, x: Tensor, y: Tensor, spread: float, eps: float) -> dict[str, Tensor]:
    """Adversarial examples of attacks that know of the detector."""
    score = found.details.score
    told: dict[str, Any] = {"threshold": found.threshold, "eps": eps}
    smooth = Squeezed(score.model, score.bits, score.window, straight=True) if isinstance(score, Squeezed) else score
    made = {
        f"joint, {unit}": bypass_detectors(model, x, y, detector=smooth, scale=unit * spread, steps=60, **told).x_adv
        for unit in UNITS
    }
    if not isinstance(smooth, Squeezed):
        return made
    versions = Versions(smooth)
    with torch.no_grad():
        likely = rivals(versions(x), y)[:, :2]

    def stale(z: Tensor) -> Tensor:
        with torch.no_grad():
            return score(z)

    def toward(logits: Tensor, target: Tensor, *_: object) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    box = Victim(model, access="soft")
    asks: dict[str, Any] = {"attack": square, "queries": 500, "targets": 1}
    return made | {
        "scores": bypass_detectors(box, x, y, detector=stale, scale=spread, **asks, **told).x_adv,
        **{
            f"versions {place}": pgd_maximize(versions, x, goal, eps=eps, steps=60, loss=toward)
            for place, goal in enumerate(likely.mT)
        },
    }


def measure(net: str, detector: str, eps: float) -> dict[str, Rate | float]:
    """False alarms, the area under the curve, and the images lost to attacks without and with the detector in sight."""
    model, (images, order) = nets.load(net)[0], images_of(net)
    attacked, clean, others = order[: ATTACKED + CLEAN + OTHERS].split([ATTACKED, CLEAN, OTHERS])
    x, y = images.x_test[attacked], images.y_test[attacked]
    plain = pgd(model, x, y, eps=eps, steps=40)
    fooled = plain.x_adv[plain.success]
    found = detect(detector, model, torch.cat([x, fooled]), images, images.x_test[clean])
    score, known = found.details.score, found.details.clean_scores
    spread = max(float(known.quantile(0.75) - known.quantile(0.25)), 0.05)

    def passed(z: Tensor) -> Tensor:
        with torch.no_grad():
            return (model(z).argmax(dim=1) != y) & ~passes(score(z), found.threshold)

    with torch.no_grad():
        alarms = {
            f"alarms, {name}": Rate.of(passes(score(z), found.threshold))
            for name, z in shifted(images.x_test[others]).items()
        }
    knowing = aware(model, found, x, y, spread, eps)
    lost = {name: passed(x_adv) for name, x_adv in {"before": plain.x_adv, **knowing}.items()}
    area = found.score(torch.arange(len(found.scores)) >= ATTACKED)["auroc"]
    return {
        "area": area, "fooled": Rate.of(plain.success),
        **{name: Rate.of(share) for name, share in lost.items() if name.startswith(("before", "joint"))},
        "after": Rate.of(torch.stack(list(lost.values())).any(dim=0)), **alarms,
    }  # fmt: skip


EXPERIMENT = Experiment(
    name="bypassed_detectors",
    question="What is left of three detectors of adversarial images once an attack knows them?",
    cases=[
        {"net": net, "detector": detector, "eps": eps}
        for net in NETS
        for detector in DETECTORS
        for eps in BUDGETS[net.partition("-")[0]]
    ],
    measure=measure,
    n={"attacked images": ATTACKED, "clean images for the threshold": CLEAN, "other clean images": OTHERS},
    seeds=[0],
    data=["mnist5k", "fashion"],
    nets=NETS,
    tolerance={"area": 0.02},
)

if __name__ == "__main__":
    EXPERIMENT.main()
