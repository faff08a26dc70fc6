"""Chapter 15: do attacks without settings leave fewer samples standing than PGD with any of its step sizes?

Five adversarially trained networks, each at the budget of its training and beyond it. PGD with five step sizes and APGD
take twenty steps on 100 images, from three starts. AutoAttack, on the first forty of them and a tenth beyond the budget
of training, stands beside PGD with as many gradients: 48 restarts of 40 steps of 5ε / steps.
"""

from __future__ import annotations

from typing import Any

from experiments.record import Experiment
from robustlab import data, zoo
from robustlab.attacks import apgd, pgd
from robustlab.evaluation import autoattack
from robustlab.intervals import Rate

EACH, FEW, STEPS = 100, 40, 20
TRAINED = {
    "mnist_cnn_adv": 0.3, "mnist_adv": 0.2, "mnist_trades": 0.2, "mnist_cat": 0.2, "fashion_cnn_adv": 0.1,
}  # fmt: skip
STEP_SIZES = (1, 2.5, 5, 10, 20)
"""Of PGD, in ε / steps."""
LONG = ("AutoAttack", "PGD, 48 restarts")
"""1,901 and 1,920 gradients for a sample that resists."""


def measure(net: str, eps: float, attack: str, seed: int) -> dict[str, Any]:
    """The share that an attack leaves standing; of AutoAttack also who broke what, and the most that one image cost."""
    have = data.load("fashion" if net.startswith("fashion") else "mnist5k")
    n = FEW if attack in LONG else EACH
    x, y = have.x_test[:n], have.y_test[:n]
    model = zoo.load(net).requires_grad_(False)
    if attack == "AutoAttack":
        report = autoattack(model, x, y, eps=eps, seed=seed)
        names = ("wrong at x", *(run.name for run in report.attacks))
        broken = {name: Rate.of(report.broken_by == k) for k, name in enumerate(names)}
        cost = {"queries": int(report.queries.max()), "gradients": int(report.gradients.max())}
        return {"left": Rate.of(report.robust), **broken, **cost}
    if attack == "APGD":
        result = apgd(model, x, y, eps=eps, steps=STEPS, seed=seed)
    elif attack == "PGD, 48 restarts":
        result = pgd(model, x, y, eps=eps, steps=40, step_size=5 * eps / 40, restarts=48, seed=seed)
    else:
        factor = float(attack.removeprefix("PGD, "))
        result = pgd(model, x, y, eps=eps, steps=STEPS, step_size=factor * eps / STEPS, seed=seed)
    return {"left": Rate.of(~result.success)}


EXPERIMENT = Experiment(
    name="untuned",
    question="Do attacks without settings leave fewer samples standing than PGD with any of its step sizes?",
    cases=[
        {"net": net, "eps": round(factor * eps, 3), "attack": attack, "seed": seed}
        for net, eps in TRAINED.items()
        for factor in (1, 1.1, 1.3)
        for attack in (*(f"PGD, {size:g}" for size in STEP_SIZES), "APGD", *(LONG if factor == 1.1 else ()))
        for seed in range(1 if attack in LONG else 3)
    ],
    measure=measure,
    n={"networks": len(TRAINED), "budgets": 3, "starts": 3, "images": EACH, "images under AutoAttack": FEW},
    seeds=[0, 1, 2],
    data=["mnist5k", "fashion"],
    nets=sorted(TRAINED),
)

if __name__ == "__main__":
    EXPERIMENT.main()
