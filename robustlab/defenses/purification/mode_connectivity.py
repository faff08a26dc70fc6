"""Repair along a mode-connecting curve.

Zhao, Chen, Das, Ramamurthy and Lin, "Bridging mode connectivity in loss landscapes and adversarial robustness" (2020),
section 3. Two trained networks can be joined by a path of weights on which the loss on clean data stays low, equation
(2) of Garipov et al. (2018):

    φ(t) = (1 − t)²·θ₁ + 2t(1 − t)·θ + t²·θ₂,   minimize over θ:  E_{t ~ U(0, 1)} [ loss of φ(t) on clean data ]

The ends stay what they are. Only the control point θ is trained, and on clean data only: nothing on the way keeps the
backdoor alive, and a way from the backdoored end it is gone; the accuracy stays. How far one has to go the clean data
do not tell: the accuracy is flat along the curve. Different here: the paper takes its model at t = 0.1; our default is
the middle, the point that is farthest from both ends, where the control point, which has seen clean data only, weighs
most. On the digits of chapter 16, halfway between two tampered networks, 1 % of the triggered images reach the target;
at t = 0.1 it is 96 %.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robustlab import checks
from robustlab.attacker.results import Repair, Result
from robustlab.attacker.victim import accuracy
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.defenses.purification.batch_statistics import estimate_again
from robustlab.defenses.purification.fine_tuning import fine_tuning
from robustlab.geometry.keyed import Noise
from robustlab.training.fit import fit


class BezierCurve(nn.Module):
    """The curve φ(t) between the weights of two models of one architecture. Its parameters are the control point alone.

    Args:
        first, last: the models at t = 0 and t = 1. They are copied.

    Raises:
        TypeError, ValueError: if they are not modules whose parameters agree in names and shapes.
    """

    def __init__(self, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        for name, model in (("model", first), ("other", last)):
            if not isinstance(model, nn.Module):
                raise TypeError(f"{name}: want a torch.nn.Module, got {type(model).__name__}")
        shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (first, last)]
        if shapes[0] != shapes[1]:
            differ = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
            raise ValueError(
                f"other: want parameters of the model's names and shapes, got a difference at {differ[:2]}"
            )
        self.base = copy.deepcopy(first).requires_grad_(False)
        self.first = {name: p.detach().clone() for name, p in first.named_parameters()}
        self.last = {name: p.detach().clone() for name, p in last.named_parameters()}
        self.names = list(self.first)
        self.control = nn.ParameterList((self.first[name] + self.last[name]) / 2 for name in self.names)

    def weights(self, t: float) -> dict[str, Tensor]:
        """φ(t), by the names of the model's parameters."""
        middle = zip(self.names, self.control, strict=True)
        return {n: (1 - t) ** 2 * self.first[n] + 2 * t * (1 - t) * c + t**2 * self.last[n] for n, c in middle}

    def forward(self, x: Tensor, t: float) -> Tensor:
        """The logits of the model with weights φ(t). Running statistics are read, but not moved."""
        buffers = {name: b.clone() for name, b in self.base.named_buffers()}
        return functional_call(self.base, {**self.weights(t), **buffers}, (x,))

    def at(self, t: float, x: Tensor) -> nn.Module:
        """A model of its own with weights φ(t), batch norm's statistics estimated on x, in evaluation mode."""
        model = copy.deepcopy(self.base).requires_grad_(True)
        with torch.no_grad():
            for name, value in self.weights(t).items():
                model.get_parameter(name).copy_(value)
        estimate_again(model, x)
        return model.eval()


@dataclass(frozen=True, eq=False, repr=False)
class Connection(Result):
    """A curve between two models and what was measured on it.

    Attributes:
        curve: from one to the other.
        t: (points,), places on it.
        accuracy: (points,), on the clean data.
    """

    curve: BezierCurve
    t: Tensor
    accuracy: Tensor


def mode_connectivity(
    model: nn.Module,
    data: Pairs,
    *,
    other: nn.Module | None = None,
    t: float = 0.5,
    points: int = 11,
    epochs: int = 20,
    lr: float = 3e-3,
    batch_size: int = 100,
    seed: int = 0,
) -> Repair[Connection]:
    """Replace a tampered model by one from the curve to another, trained on clean data.

    Args:
        model: the tampered model, at t = 0. It is not changed.
        data: clean inputs and labels, a Dataset (its training part), a pair (x, y) or a loader.
        other: the model at t = 1, of the same architecture: another one that may have been tampered with, in another
            way, or None for a copy of `model` that is fine-tuned on `data` (5 epochs).
        t: where on the curve the repaired model is taken, in [0, 1]. The default ½ is farthest from both ends, of which
            either may be tampered with; the paper reports 0.1, where our backdoors still live (see the module).
        points: how many t, evenly spaced from 0 to 1, are measured on `data`; at least 2.
        epochs, lr, batch_size, seed: of the training of the control point, as in :func:`robustlab.training.fit.fit`;
            each step draws its own t.

    Returns:
        A Repair with the model at t, in the mode of `model`; its ``details`` are the :class:`Connection`.

    Raises:
        ValueError, TypeError: for a wrong argument.

    Source:
        Zhao et al. (2020), section 3.1; Garipov et al. (2018), equation (2), for the training of the curve.
    """
    checks.at_least("t", t, 0.0)
    if t > 1:
        raise ValueError(f"t: want at most 1, got {t}")
    checks.at_least("points", points, 2, integer=True)
    x, y = read_labeled(data)
    checks.at_home(model, x, "data")
    checks.unit_pixels("data", x)
    if other is None:
        other = fine_tuning(model, (x, y), batch_size=batch_size, seed=seed).model
    curve = BezierCurve(model, other)
    fit(curve, (x, y), objective=_along, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    grid = torch.linspace(0, 1, points)
    measured = [accuracy(curve.at(float(s), x), x, y) for s in grid]
    repaired = curve.at(t, x)
    for part, own in zip(repaired.modules(), model.modules(), strict=True):
        part.training = own.training
    return Repair(repaired, Connection(curve, grid, torch.tensor(measured)))


def _along(curve: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    """Cross-entropy at one random point of the curve."""
    t = float(Noise(seed, ids[:1] * 0).uniform(0, (1,), torch.float64))
    return F.cross_entropy(curve(x, t), y)
