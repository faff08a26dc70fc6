"""Chapter 26: what each training for certificates gives: clean, under attack, certified by three relaxations, exact.

Four parts. *cnn*: a small convolutional net, trained in 10 epochs at seeds 0 to 2; adversarial training is the zoo's,
at ε = 0.2, and the same recipe at two other seeds. *mlp*: nets of 40 ReLUs, which the complete verifier decides, by all
trainers that know a radius. *sdp*: one hidden layer of 20 ReLUs on digits of 14×14 pixels, beside the semidefinite
certificate. *zoo*: the shipped networks, trained for longer.

A net is trained at 1.5 times the radius of its certificate where that is 0.1 or 0.05, and at 0.35 for 0.3, but for the
convex outer polytope, as its authors do. Every share is of all images: one that is misclassified counts as lost.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments import nets
from experiments.record import Experiment
from robustlab import data, defenses, models
from robustlab.attacker.victim import predict
from robustlab.attacks import pgd
from robustlab.data import Dataset
from robustlab.evaluation import autoattack
from robustlab.intervals import Rate
from robustlab.training.fit import cross_entropy, fit
from robustlab.verification import certify, sdp_certificate, verify
from robustlab.zoo.recipes import NORMALIZATION

SEEDS, RADII = (0, 1, 2), (0.1, 0.3)
TRAINED_AT = {0.05: 0.075, 0.1: 0.15, 0.3: 0.35}
IMAGES, STRONGLY, EXACTLY, FEW = 300, 50, 30, 100  # bounded and under PGD; under AutoAttack; decided: cnn, mlp
RELAXATIONS = ("ibp", "crown_ibp", "crown")
ZOO = {
    "mnist_ibp10": 0.1, "mnist_crown_ibp10": 0.1, "mnist_singleprop10": 0.1, "mnist_convex10": 0.1,
    "mnist_ibp30": 0.3, "mnist_crown_ibp30": 0.3,
}  # fmt: skip

Result = dict[str, Any]


def objective(method: str, eps: float) -> Any:
    """The loss by its name, for a certificate at eps."""
    if method == "plain":
        return cross_entropy
    if method == "adversarial_training":
        return defenses.adversarial_training(norm="linf", eps=eps, steps=5, warmup=0.4)
    if method == "convex_adversarial_training":
        return defenses.convex_adversarial_training(eps=eps, projections=10, evaluated_at=eps)
    return getattr(defenses, method)(eps=TRAINED_AT[eps], ramp=(0.05, 0.5), evaluated_at=eps)


@cache
def cnn(method: str, eps: float, seed: int) -> nn.Module:
    """The smaller CNN."""
    if method == "adversarial_training":
        return nets.load("mnist_adv" + (f"-{seed}" if seed else ""))[0]
    model = models.build("small_cnn", channels=(8, 16), hidden=32, seed=seed, **NORMALIZATION["mnist5k"])
    fit(model, data.load("mnist5k"), objective=objective(method, eps), epochs=10, lr=5e-3, seed=seed)
    return model.eval()


def mlp(method: str, eps: float, seed: int) -> nn.Module:
    """40 ReLUs, in two layers."""
    model = models.build("mlp", hidden=(20, 20), seed=seed, **NORMALIZATION["mnist5k"])
    fit(model, data.load("mnist5k"), objective=objective(method, eps), epochs=10, lr=5e-3, seed=seed)
    return model.eval()


def shallow(method: str, eps: float, seed: int) -> nn.Module:
    """20 ReLUs, in one layer, on small digits."""
    model = models.build("mlp", in_shape=(1, 14, 14), hidden=(20,), seed=seed, **NORMALIZATION["mnist5k"])
    loss = defenses.sdp_training(weight=0.002) if method == "sdp_training" else objective(method, eps)
    fit(model, halved(data.load("mnist5k")), objective=loss, epochs=8, lr=5e-3, seed=seed)
    return model.eval()


def halved(digits: Dataset) -> Dataset:
    """Means of four pixels each."""
    return replace(digits, x_train=F.avg_pool2d(digits.x_train, 2), x_test=F.avg_pool2d(digits.x_test, 2))


def shares(model: nn.Module, test: Dataset, eps: float, exactly: int, timeout: float) -> Result:
    """Clean, attacked, certified and exact shares of one network."""
    x, y = test.x_test[:IMAGES], test.y_test[:IMAGES]
    found: Result = {
        "clean": Rate.of(predict(model, test.x_test) == test.y_test),
        "attacked": Rate.of(~pgd(model, x, y, eps=eps, steps=20, seed=0).success),
    }
    for name in RELAXATIONS:
        parts = zip(x.split(100), y.split(100), strict=True)
        sure = torch.cat([certify(model, *part, eps=eps, method=name).verified for part in parts])  # type: ignore[arg-type]
        found[name] = Rate.of(sure)
    answer = verify(model, x[:exactly], y[:exactly], eps=eps, timeout=timeout)
    return found | {"exact": Rate.of(answer.verified), "lost": Rate.of(answer.falsified)}


def measure(part: str, method: str, eps: float, seed: int) -> Result:
    """One row."""
    digits = data.load("mnist5k")
    if part == "mlp":
        return shares(mlp(method, eps, seed), digits, eps, FEW, timeout=5.0)
    if part == "sdp":
        model, small = shallow(method, eps, seed), halved(digits)
        sdp = sdp_certificate(model, small.x_test[:FEW], small.y_test[:FEW], eps=eps, steps=40)
        return {**shares(model, small, eps, FEW, timeout=5.0), "sdp": Rate.of(sdp.verified)}
    model = nets.load(method)[0] if part == "zoo" else cnn(method, eps, seed)
    x, y = digits.x_test[:STRONGLY], digits.y_test[:STRONGLY]
    strong = autoattack(model, x, y, norm="linf", eps=eps, attacks=["apgd-ce", "apgd-t"])
    return {**shares(model, digits, eps, EXACTLY, timeout=2.0), "APGD": Rate.of(strong.robust)}


def cases() -> list[dict[str, Any]]:
    """All rows."""
    deep = ("adversarial_training", "ibp_training", "crown_ibp", "singleprop")
    small = ("plain", *deep, "convex_adversarial_training")
    return [
        *({"part": "cnn", "method": method, "eps": eps, "seed": seed} for eps in RADII for method in deep
          for seed in SEEDS),
        *({"part": "mlp", "method": method, "eps": eps, "seed": seed} for eps in RADII for method in small
          for seed in SEEDS),
        *({"part": "zoo", "method": name, "eps": eps, "seed": 0} for name, eps in ZOO.items()),
        *({"part": "sdp", "method": method, "eps": 0.05, "seed": seed}
          for method in ("ibp_training", "sdp_training") for seed in SEEDS),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    name="certified_training",
    question="What do trainings for certificates give: clean, attacked, certified by three relaxations, and exactly?",
    cases=cases(),
    measure=measure,
    n={"networks of each kind": 3, "images bounded": IMAGES, "images under APGD": STRONGLY,
       "images decided (cnn, zoo)": EXACTLY, "images decided (mlp, sdp)": FEW},
    seeds=list(SEEDS),
    data=["mnist5k"],
    nets=[*ZOO, "mnist_adv", "mnist_adv-1", "mnist_adv-2"],
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
