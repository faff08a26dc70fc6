"""Robust trainings, and squeezed images, beside those of the Adversarial Robustness Toolbox (ART).

    PYTHONPATH=PEERS python benchmarks/defenses.py

Each side trains one architecture on the same digits, with PGD of the same steps in the same ball, Adam at the same rate
and as many passes, in turns; it is CPU time. Both begin at one net that reads digits already: from scratch, without a
warm-up of the radius, a training may stay at chance on either side. One judge, PGD-40 of ours, says what each net
withstands; means over the rounds, with the least and the most. Squeezed images are compared pixel by pixel. ART is no
dependency of ours; see README.md beside this file.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attacks import in_turns, keep_freed_memory, ratio
from peers import available
from torch import Tensor, nn

from robustlab import data, models, zoo
from robustlab.attacker.victim import predict
from robustlab.attacks import pgd
from robustlab.defenses import adversarial_training, trades
from robustlab.defenses.detection.feature_squeezing import Squeezed
from robustlab.training.fit import fit

WANTED = {"art": "1.20.1"}
INSTALL = "python -m pip install --target PEERS --no-deps adversarial-robustness-toolbox==1.20.1"
EPS, STEPS, BATCH, RATE = 0.1, 5, 100, 2e-3
TRAININGS = {"adversarial_training": adversarial_training, "trades": partial(trades, beta=6.0)}

print = partial(print, flush=True)


class Whole(nn.Module):
    """A model whose layers ART does not see: its TRADES takes the first layer's output of a Sequential for logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def natural(x: Tensor, y: Tensor) -> nn.Module:
    """The net at which both begin: three passes over the digits without an attack."""
    model = models.build("small_cnn", channels=(8, 16), hidden=32, mean=0.1307, std=0.3081, seed=0)
    fit(model, (x, y), epochs=3, batch_size=BATCH, lr=5e-3, seed=0)
    return model


def by_us(training: str, start: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    """A net trained by :func:`~robustlab.training.fit.fit`, at a constant rate."""
    model, objective = deepcopy(start), TRAININGS[training](eps=EPS, steps=STEPS)
    fit(model, (x, y), objective=objective, epochs=epochs, batch_size=BATCH, lr=RATE, schedule="constant", seed=seed)
    return model.eval()


def by_art(training: str, start: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    """The same by ART's trainer; its TRADES crafts against the cross-entropy, ours against the divergence."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences import trainer as trainers
    from art.estimators.classification import PyTorchClassifier

    model = deepcopy(start)
    np.random.seed(seed)  # noqa: NPY002  what ART draws from
    torch.manual_seed(seed)
    wrapped: Any = PyTorchClassifier(
        Whole(model), nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, torch.optim.Adam(model.parameters(), lr=RATE),
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    shown, labels = x.numpy(), F.one_hot(y, 10).float().numpy()
    how = {"eps": EPS, "eps_step": 2.5 * EPS / STEPS, "max_iter": STEPS, "num_random_init": 1}
    if training == "trades":
        attack = ProjectedGradientDescent(wrapped, batch_size=BATCH, verbose=False, **how)
        told: Any = trainers.AdversarialTrainerTRADESPyTorch(wrapped, attack, beta=6.0)
        told.fit(shown, labels, batch_size=BATCH, nb_epochs=epochs)
    else:
        told = trainers.AdversarialTrainerMadryPGD(wrapped, nb_epochs=epochs, batch_size=BATCH, **how)
        told.fit(shown, labels)
    return model.eval()


def judged(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy, and what PGD-40 leaves, in percent."""
    model.requires_grad_(False)
    right = (predict(model, x) == y).double().mean().item()
    return 100 * right, 100 - 100 * pgd(model, x, y, eps=EPS, steps=40).success.double().mean().item()


def summed(values: list[float]) -> str:
    """The mean, with the least and the most."""
    return f"{sum(values) / len(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def squeezed_apart(x: Tensor) -> list[tuple[str, float]]:
    """The largest difference of a pixel between our squeezed images and ART's."""
    from art.defences.preprocessor import FeatureSqueezing, SpatialSmoothing

    rows = []
    for bits, window in ((1, 2), (4, 3)):
        ours = Squeezed(zoo.load("mnist_cnn"), bits, window).squeeze(x)
        theirs = (
            FeatureSqueezing((0.0, 1.0), bit_depth=bits)(x.numpy())[0],
            SpatialSmoothing(window_size=window, channels_first=True)(x.numpy())[0],
        )
        names = (f"{2**bits} levels", f"median {window}×{window}")
        rows += [(n, (a - torch.as_tensor(b)).abs().max().item()) for n, a, b in zip(names, ours, theirs, strict=True)]
    return rows


def main() -> None:
    """One line for each training, and one for each squeezer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, remarks = available(WANTED)
    print("\n".join([*remarks, *([] if found else [INSTALL])]) or f"ART {WANTED['art']}")
    if not found:
        return
    digits = data.load("mnist5k")
    x, y = digits.x_train[: given.images], digits.y_train[: given.images]
    start = natural(x, y)
    print(f"{'training':<22}{'time':>6}{'clean, ours':>20}{'theirs':>20}{'PGD-40, ours':>20}{'theirs':>20}")
    for training in TRAININGS:
        kept: dict[str, list[nn.Module]] = {"us": [], "art": []}

        def run(who: str, training: str = training, kept: dict[str, list[nn.Module]] = kept) -> None:
            made_by = by_us if who == "us" else by_art
            kept[who].append(made_by(training, start, x, y, given.epochs, seed=len(kept[who])))

        ours, theirs = in_turns([partial(run, who) for who in kept], given.rounds)
        seen = [[judged(net, digits.x_test[:300], digits.y_test[:300]) for net in nets] for nets in kept.values()]
        shares = [summed([share[part] for share in side]) for part in (0, 1) for side in seen]
        print(f"{training:<22}{ratio(ours, theirs):>6.2f}" + "".join(f"{share:>20}" for share in shares))
    for name, apart in squeezed_apart(digits.x_test[:100]):
        print(f"{name:<22}{apart:>14.1e}")


if __name__ == "__main__":
    keep_freed_memory()
    main()
