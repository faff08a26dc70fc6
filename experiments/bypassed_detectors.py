"""Chapter 17: three detectors of adversarial images, before and after an attack that knows them, and on natural shifts.

A row is one detector on one network at one ε. Its threshold is set on 400 clean test images for 5 % of false alarms. Of
the same 100 other images PGD makes adversarial examples that do not know of the detector; then two attacks that do are
tried, PGD on the joint function through every squeezer as if it were the identity, and Square on the joint function's
scores, and an image counts as lost if one of them fools the classifier and passes the detector.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacker.results import Detection
from robustlab.attacker.victim import Victim
from robustlab.attacks import bypass_detectors, pgd, square
from robustlab.defenses import feature_squeezing, kernel_density, mahalanobis
from robustlab.defenses.detection.feature_squeezing import Squeezed
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate

BUDGETS = {"mnist": (0.15, 0.3), "fashion": (0.05, 0.1)}
NETS = tuple(f"{kind}_cnn{seed}" for kind in BUDGETS for seed in ("", "-1", "-2"))
DETECTORS = ("squeezing", "mahalanobis", "density")
ATTACKED, CLEAN = 100, 400


class Straight(Squeezed):
    """Feature squeezing whose squeezers pass gradients on as they come (BPDA with the identity)."""

    def squeeze(self, x: Tensor) -> list[Tensor]:
        return [x + (squeezed - x).detach() for squeezed in super().squeeze(x)]


def images_of(net: str) -> data.Dataset:
    """The data set of a network."""
    return data.load("mnist5k" if net.startswith("mnist") else "fashion")


def detect(detector: str, model: nn.Module, x: Tensor, images: data.Dataset) -> Detection:
    """What a detector says of x, with a threshold set on clean test images."""
    clean = images.x_test[ATTACKED : ATTACKED + CLEAN]
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


def measure(net: str, detector: str, eps: float) -> dict[str, Rate | float]:
    """False alarms, the area under the curve, and the images lost to attacks without and with the detector in sight."""
    model, images = nets.load(net)[0], images_of(net)
    x, y = images.x_test[:ATTACKED], images.y_test[:ATTACKED]
    plain = pgd(model, x, y, eps=eps, steps=40)
    fooled = plain.x_adv[plain.success]
    found = detect(detector, model, torch.cat([x, fooled]), images)
    score, known = found.details.score, found.details.clean_scores
    others = images.x_test[ATTACKED + CLEAN : ATTACKED + CLEAN + 300]
    with torch.no_grad():
        alarms = {f"alarms, {name}": Rate.of(score(z) > found.threshold) for name, z in shifted(others).items()}
    spread = float(known.quantile(0.75) - known.quantile(0.25))
    told = {"threshold": found.threshold, "scale": max(spread, 0.05), "eps": eps}
    smooth = Straight(score.model, score.bits, score.window) if detector == "squeezing" else score
    aware = bypass_detectors(model, x, y, detector=smooth, steps=60, **told).x_adv

    def stale(z: Tensor) -> Tensor:
        with torch.no_grad():
            return score(z)

    box = Victim(model, access="soft")
    blind = bypass_detectors(box, x, y, detector=stale, attack=square, queries=1000, targets=1, **told).x_adv

    def passed(z: Tensor) -> Tensor:
        with torch.no_grad():
            return (model(z).argmax(dim=1) != y) & (score(z) <= found.threshold)

    area = found.score(torch.arange(len(found.scores)) >= ATTACKED)["auroc"]
    return {
        "area": area, "fooled": Rate.of(plain.success), "before": Rate.of(passed(plain.x_adv)),
        "gradients": Rate.of(passed(aware)), "scores": Rate.of(passed(blind)),
        "after": Rate.of(passed(aware) | passed(blind)), **alarms,
    }  # fmt: skip


EXPERIMENT = Experiment(
    name="bypassed_detectors",
    question="What is left of three detectors of adversarial images once an attack knows them?",
    cases=[
        {"net": net, "detector": detector, "eps": eps}
        for net in NETS
        for detector in DETECTORS
        for eps in BUDGETS[net.split("_")[0]]
    ],
    measure=measure,
    n={"attacked images": ATTACKED, "clean images for the threshold": CLEAN, "other clean images": 300},
    seeds=[0],
    data=["mnist5k", "fashion"],
    nets=NETS,
    tolerance={"area": 0.02},
)

if __name__ == "__main__":
    EXPERIMENT.main()
