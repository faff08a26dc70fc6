"""Accuracy against robustness over architectures.

Su, Zhang, Chen, Yi, Chen and Gao, "Is robustness the cost of accuracy? A comprehensive study on the robustness of 18
deep image classification models" (2018). Networks of many architectures, trained in the same way, are compared by their
accuracy and by how far inputs must be moved to fool them:

    distortion(f) = median over x of min { ‖δ‖ : f(x + δ) ≠ y, x + δ ∈ box },   x right under all networks

On ImageNet it fell in a straight line with the logarithm of the error, distortion ≈ a + b·log(error) with b > 0: the
more accurate, the less robust. Which networks nobody beats in both is the front. Schmidt, Santurkar, Tsipras, Talwar
and Mądry, "Adversarially robust generalization requires more data" (2018), and Carmon et al. (2019) say what moves it:
samples, labeled or not.

Different here: the networks are small, and the smallest distortion is sought by FMN, where the paper takes the distance
of an attack of a fixed kind (I-FGSM, C&W, EAD) and CLEVER's estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Result
from robustlab.attacker.victim import predict
from robustlab.attacks.whitebox.fmn import fmn
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.norms import ProperNorm
from robustlab.models.architectures import mlp, resnet_tiny, small_cnn
from robustlab.models.probing import count_outputs

__all__ = ["Tradeoff", "architectures", "tradeoff"]


@dataclass(frozen=True, eq=False, repr=False)
class Tradeoff(Result):
    """What :func:`tradeoff` saw; tensors have one value per network, in the order of ``names``.

    Attributes:
        names: of the networks.
        accuracy: on all samples, (M,).
        distortion: median of the distances at which samples that all networks get right are fooled, (M,).
        distances: of each network and each such sample, (M, n); ∞ where the attack failed.
        parameters: how many weights each network has.
        slope: b of distortion ≈ a + b·log(error), by least squares; NaN where fewer than two errors differ.
        correlation: of the two, in [−1, 1]; NaN likewise.
    """

    names: tuple[str, ...]
    accuracy: Tensor
    distortion: Tensor
    distances: Tensor
    parameters: tuple[int, ...]
    slope: float
    correlation: float

    @property
    def front(self) -> tuple[str, ...]:
        """The networks that no other beats in one of the two without losing in the other, by accuracy."""
        pairs = list(zip(self.accuracy.tolist(), self.distortion.tolist(), strict=True))
        kept = [
            (mine, name)
            for mine, name in zip(pairs, self.names, strict=True)
            if not any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in pairs)
        ]
        return tuple(name for _, name in sorted(kept))


def tradeoff(models: Mapping[str, nn.Module], data: Pairs, *, norm: ProperNorm = "linf", steps: int = 100) -> Tradeoff:
    """Measure accuracy and smallest distortion of several networks on the same samples.

    Args:
        models: trained networks with logits (N, K) by name, at least two. :func:`architectures` makes nine.
        data: a Dataset, whose test part is used, a pair (x, y) or a loader of pairs, in [0, 1].
        norm: in which distances are measured: ``"linf"``, ``"l2"`` or ``"l1"``.
        steps: of the attack, :func:`robustlab.attacks.fmn`; default 100. It finds an upper bound of the distance.

    Returns:
        A :class:`Tradeoff`.

    Raises:
        ValueError, TypeError: for wrong data or models, or where no sample is right under all networks.

    Source:
        Su et al. (2018), section 4. Departure: one attack, for the smallest distance.
    """
    if not isinstance(models, Mapping) or not all(isinstance(model, nn.Module) for model in models.values()):
        raise TypeError(f"models: want a mapping of names to torch modules, got {type(models).__name__}")
    if len(models) < 2:
        raise ValueError(f"models: want at least two, got {len(models)}")
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    checks.at_least("steps", steps, 1, integer=True)
    x, y = read_labeled(data, part="test")
    checks.images(x, (0.0, 1.0), takes=None)
    for model in models.values():
        checks.at_home(model, x)
        checks.in_classes("y", y, count_outputs(model, x))
    right = torch.stack([predict(model, x) == y for model in models.values()])
    common = right.all(dim=0)
    if not bool(common.any()):
        raise ValueError("data: want samples that all models get right, got none")
    results = [fmn(model, x[common], y[common], norm=norm, steps=steps) for model in models.values()]
    distances = torch.stack([result.radius(norm) for result in results])
    accuracy, distortion = right.double().mean(dim=1), distances.double().median(dim=1).values
    slope, correlation = _line((1 - accuracy).clamp_min(0.5 / len(x)).log(), distortion)
    sizes = tuple(sum(p.numel() for p in model.parameters()) for model in models.values())
    return Tradeoff(tuple(models), accuracy, distortion, distances, sizes, slope, correlation)


def _line(u: Tensor, v: Tensor) -> tuple[float, float]:
    """Slope and correlation of v over u, (M,), both finite; NaN where u or v does not vary."""
    u, v = u - u.mean(), v - v.mean()
    spread = float((u * u).sum()), float((v * v).sum())
    if not min(spread) > 0:
        return float("nan"), float("nan")
    return float((u * v).sum()) / spread[0], float((u * v).sum()) / (spread[0] * spread[1]) ** 0.5


def architectures(
    *, in_shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, seed: int = 0
) -> dict[str, nn.Module]:
    """Nine small untrained networks: linear, three of full connections, three of convolutions, two residual.

    Args:
        in_shape: (C, H, W) of one input.
        classes: number of outputs.
        seed: of the initial weights.
    """
    fully = {"linear": (), "mlp-20": (20,), "mlp-20-20": (20, 20), "mlp-100": (100,)}
    convolved = {"cnn-4-8": (4, 8), "cnn-8-16": (8, 16), "cnn-16-32": (16, 32)}
    residual = {"resnet-4-8": (4, 8), "resnet-8-16-24": (8, 16, 24)}
    shared: dict[str, Any] = {"in_shape": in_shape, "classes": classes, "seed": seed}
    return {
        **{name: mlp(hidden=hidden, **shared) for name, hidden in fully.items()},
        **{name: small_cnn(channels=c, hidden=2 * c[-1], **shared) for name, c in convolved.items()},
        **{name: resnet_tiny(channels=c, **shared) for name, c in residual.items()},
    }
