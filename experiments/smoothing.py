"""Chapter 20: what randomized smoothing certifies at four noises, with matching and other training, and under attack.

Three networks for each noise: those of the zoo and the same recipes at seeds 1 and 2. Curves and the three certificates
are from the same votes. The attack is projected gradient descent on the expected softmax over draws that it fixes; it
is judged by draws of its own, and has succeeded where the smoothed classifier answers another class at 99.9 %.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data
from robustlab.attacks.whitebox.pgd import pgd_maximize
from robustlab.defenses import (
    higher_order_smoothing,
    pixeldp_radius,
    randomized_smoothing,
    renyi_radius,
    smoothed_prediction,
)
from robustlab.defenses.certified.smoothing.votes import Smoothed, bounds_of_two, clopper_pearson
from robustlab.evaluation import eot
from robustlab.intervals import Rate

SIGMAS = {"mnist_noise12": 0.12, "mnist_noise25": 0.25, "mnist_noise50": 0.5, "mnist_noise100": 1.0}
COLOR = {"sign_noise12": 0.12, "sign_noise25": 0.25, "sign_noise50": 0.5, "sign_noise100": 1.0}
NATURAL = ("mnist_cnn", "mnist_cnn-1", "mnist_cnn-2")
SEEDS = ("", "-1", "-2")
RADII = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
N = {"mnist": 4_000, "sign": 2_000}
ALPHA = 0.001
ATTACKED = {
    "mnist_noise25": (0.25, (0.5, 1.0, 2.0)),
    "mnist_noise50": (0.5, (0.5, 1.0, 2.0)),
    "sign_noise12": (0.12, (0.25, 0.5)),
}
IMAGES, FEW, FEWEST = 200, 100, 50  # for curves; for the matrix; for attacks, gradients and draws

Result = dict[str, Any]


@cache
def images(net: str, count: int) -> tuple[Tensor, Tensor]:
    """The first so many test images of the network's data set, in one random order."""
    have = data.load("mnist5k" if net.startswith("mnist") else "sign_digits32")
    order = torch.randperm(len(have.x_test), generator=torch.Generator().manual_seed(20))[:count]
    return have.x_test[order], have.y_test[order]


def curve_of(certified: Smoothed, radius: Tensor) -> Result:
    """The share of images that are right and certified at least so far, by radius; the strict one at 0."""
    return {f"{r:g}": Rate.of(certified.verified & (radius >= r) & (radius > 0)) for r in RADII}


def curve(net: str, sigma: float) -> Result:
    """The three certificates, from one count of votes."""
    x, y = images(net, IMAGES)
    n = N[net.split("_")[0]]
    cohen = randomized_smoothing(nets.load(net)[0], x, y, sigma=sigma, n=n, alpha=ALPHA)
    p1, p2 = bounds_of_two(cohen.counts, cohen.counts.argmax(dim=1), n, ALPHA)
    right = cohen.counts.argmax(dim=1) == y
    older = {"renyi": renyi_radius(p1, p2), "pixeldp": pixeldp_radius(p1, p2)}
    return {
        **curve_of(cohen, cohen.radius),
        "abstains": Rate.of(cohen.prediction < 0),
        "cohen": mean(cohen.radius),
        **{name: mean(sigma * torch.where(right, radius, 0.0)) for name, radius in older.items()},
    }


def match(net: str, sigma: float) -> Result:
    """A shorter certification, of a network that was trained under another noise, or under none."""
    x, y = images(net, FEW)
    found = randomized_smoothing(nets.load(net)[0], x, y, sigma=sigma, n=1000, alpha=ALPHA)
    return {**curve_of(found, found.radius), "abstains": Rate.of(found.prediction < 0), "cohen": mean(found.radius)}


def draws(net: str, sigma: float, n: int) -> Result:
    """What more draws buy."""
    x, y = images(net, FEWEST)
    found = randomized_smoothing(nets.load(net)[0], x, y, sigma=sigma, n=n, alpha=ALPHA)
    return {**curve_of(found, found.radius), "abstains": Rate.of(found.prediction < 0), "cohen": mean(found.radius)}


def attack(net: str, sigma: float, eps: float) -> Result:
    """An attack on the smoothed classifier beside its certificate: which images stand, and which do both."""
    x, y = images(net, FEWEST)
    model = nets.load(net)[0]
    certified = randomized_smoothing(model, x, y, sigma=sigma, n=1000, alpha=ALPHA)
    found = smoothed_pgd(model, x, y, sigma, eps)
    answer = smoothed_prediction(model, found, sigma=sigma, n=1000, alpha=ALPHA, seed=1)
    clean = smoothed_prediction(model, x, sigma=sigma, n=1000, alpha=ALPHA, seed=1)
    stands = ((answer == y) | (answer < 0)) & ((clean == y) | (clean < 0))
    sure = certified.verified & (certified.radius >= eps)
    return {
        "stands": Rate.of(stands), "answers": Rate.of((answer == y) & (clean == y)), "certified": Rate.of(sure),
        "both": int((sure & ~stands).sum()),
    }  # fmt: skip


def smoothed_pgd(model: nn.Module, x: Tensor, y: Tensor, sigma: float, eps: float, samples: int = 16) -> Tensor:
    """PGD in ℓ2, 20 steps, on the log of the expected softmax under noise."""
    smooth = eot(model, lambda z: z + sigma * torch.randn_like(z), samples=samples)
    return pgd_maximize(smooth, x, y, norm="l2", eps=eps, steps=20)


def gradient(net: str, sigma: float) -> Result:
    """First-order information beside the votes alone, at the same confidence and at half of α, from the same draws."""
    x, y = images(net, FEWEST)
    model = nets.load(net)[0]
    first = higher_order_smoothing(model, x, y, sigma=sigma, n=10_000, alpha=ALPHA)
    hits = first.counts.gather(1, y[:, None])[:, 0]
    zeroth, half = (
        sigma * torch.special.ndtri(clopper_pearson(hits, 10_000, level)[0].clamp_min(0.5))
        for level in (ALPHA, ALPHA / 2)
    )
    gain = (first.radius - zeroth)[first.verified]
    return {
        "first": mean(first.radius), "zeroth": mean(zeroth.where(first.verified, 0.0)),
        "half": mean(half.where(first.verified, 0.0)),
        "longer": Rate.of(gain > 0), "largest": round(float(gain.max()), 4),
    }  # fmt: skip


def mean(radius: Tensor) -> float:
    """Over all images, those without a certificate as 0."""
    return round(float(radius.double().mean()), 4)


def measure(what: str, **case: Any) -> Result:
    """One row."""
    return {"curve": curve, "match": match, "draws": draws, "attack": attack, "gradient": gradient}[what](**case)


def cases() -> list[dict[str, Any]]:
    """All rows; those that a chapter needs first come first."""
    every = [(name + seed, sigma) for seed in SEEDS for name, sigma in {**SIGMAS, **COLOR}.items()]
    digits = [(net, sigma) for net, sigma in every if net.startswith("mnist")]
    return [
        *({"what": "match", "net": net, "sigma": sigma} for net in (*(net for net, _ in digits), *NATURAL)
          for sigma in SIGMAS.values()),
        *({"what": "match", "net": net, "sigma": sigma} for net, sigma in every if net.startswith("sign")),
        *({"what": "gradient", "net": net + seed, "sigma": SIGMAS[net]}
          for net in ("mnist_noise25", "mnist_noise100") for seed in SEEDS),
        *({"what": "attack", "net": net + seed, "sigma": sigma, "eps": eps}
          for net, (sigma, budgets) in ATTACKED.items() for seed in SEEDS for eps in budgets),
        *({"what": "draws", "net": f"mnist_noise50{seed}", "sigma": 0.5, "n": n} for seed in SEEDS
          for n in (200, 1000, 10_000)),
        *({"what": "curve", "net": net, "sigma": sigma} for net, sigma in sorted(every)),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    name="smoothing",
    question="What does Gaussian noise certify in l2, and what do its size, its training and its draws change?",
    cases=cases(),
    measure=measure,
    n={"networks of each noise": 3, "images of a curve": IMAGES, "images of the matrix": FEW, "attacked": FEWEST},
    seeds=[0, 1, 2],
    data=["mnist5k", "sign_digits32"],
    nets=sorted({case["net"] for case in cases()}),
    tolerance={"cohen": 0.02, "renyi": 0.02, "pixeldp": 0.02, "first": 0.02, "zeroth": 0.02, "half": 0.02,
               "largest": 0.05},
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
