"""What the targeted clean-label attacks share: the samples they may touch, their arguments' checks, their result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.poisoned_data import Poisoned
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.keyed import Noise
from robustlab.models.probing import Layer

__all__ = ["CleanLabelPoison"]


class CleanLabelPoison(Poisoned):
    """Poisoned training data made for one target image: a ``Poisoned`` with its purpose.

    Attributes:
        x_target: (1, ...), the test input that is to be misread. It is no part of the training data.
        target: the label t that it is to get.
    """

    def __init__(self, x: Tensor, y: Tensor, *, x_target: Tensor, target: int, **rest: Any) -> None:
        super().__init__(x, y, **rest)
        self.x_target, self.target = x_target, target


@dataclass(frozen=True)
class Job:
    """The checked arguments of a clean-label attack, and the samples that it may change.

    Attributes:
        x, y: the training data.
        rows: (P,) the rows to be poisoned, all of class t.
        x_target, target: the target input (1, ...) and the label t.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    x_target: Tensor
    target: int

    @property
    def bases(self) -> Tensor:
        """(P, ...), the clean images of the rows."""
        return self.x[self.rows]

    def poisoned(self, x_poison: Tensor, details: Mapping[str, Any]) -> CleanLabelPoison:
        """The training data with ``x_poison`` (P, ...) in the place of the bases; no label is changed."""
        is_poison = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        is_poison[self.rows] = True
        return CleanLabelPoison(
            self.x.index_copy(0, self.rows, x_poison.detach()),
            self.y.clone(),
            is_poison=is_poison,
            original_y=self.y.clone(),
            x_target=self.x_target,
            target=self.target,
            details={"rows": self.rows, **details},
        )


def prepare(data: Pairs, x_target: Tensor, target: int, rate: float, seed: int) -> Job:
    """Check the arguments that all clean-label attacks have, and draw the samples that are poisoned.

    The rows are a random draw of round(rate·n) samples of class ``target``: the same for every attack with this seed.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    x, y = read_labeled(data)
    checks.images(x, (0.0, 1.0), takes=None)
    checks.at_least("target", target, 0, integer=True)
    if not isinstance(x_target, Tensor) or x_target.shape != (1, *x.shape[1:]):
        shown = tuple(x_target.shape) if isinstance(x_target, Tensor) else type(x_target).__name__
        raise ValueError(f"x_target: want one sample of shape {(1, *x.shape[1:])}, got {shown}")
    if x_target.dtype != x.dtype or x_target.device != x.device:
        raise TypeError(f"x_target: want {x.dtype} on {x.device}, as data, got {x_target.dtype} on {x_target.device}")
    checks.finite("x_target", x_target)
    checks.images(x_target, (0.0, 1.0), takes=None)
    checks.positive("rate", rate)
    count, eligible = round(rate * len(x)), (y == target).nonzero().flatten()
    if not len(eligible):
        raise ValueError(f"target: want a label that the training data has, got {target}")
    if not 1 <= count <= len(eligible):
        raise ValueError(
            f"rate: want between 1 and {len(eligible)} poisons, all of class {target}, got {rate} of {len(x)}: {count}"
        )
    order = Noise(seed, eligible).uniform(0, (), torch.float64).argsort()
    return Job(x, y, eligible[order[:count]].sort().values, x_target.detach(), target)


def surrogates(model: nn.Module | Sequence[nn.Module], x: Tensor) -> list[nn.Module]:
    """One model, or several, as a list, checked to be modules of the dtype and device of the data x."""
    models = [model] if isinstance(model, nn.Module) else list(model) if isinstance(model, Sequence) else [model]
    if not models or not all(isinstance(m, nn.Module) for m in models):
        raise TypeError(f"model: want a torch.nn.Module, got {[type(m).__name__ for m in models]}")
    for m in models:
        if not any(p.is_floating_point() for p in m.parameters()):
            raise ValueError("model: want parameters, got none")
        checks.at_home(m, x, "data")
    return models


def layer_of_each(layer: Layer | Sequence[Layer | None] | None, nets: Sequence[nn.Module]) -> list[Layer | None]:
    """The layer whose output are the features, for each surrogate: one name for all, or one name or module for each."""
    layers = [layer] * len(nets) if layer is None or isinstance(layer, str | nn.Module) else list(layer)
    if len(layers) != len(nets):
        raise ValueError(f"layer: want one for each of {len(nets)} surrogates, got {len(layers)}")
    return layers


def ball(center: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    """Lower and upper end of [0, 1] ∩ {x : ‖x − center‖_∞ ≤ eps}, element by element."""
    if eps is None:
        return torch.zeros_like(center), torch.ones_like(center)
    checks.radius(eps, center, "linf", (0.0, 1.0))  # tells of one wider than the box
    return (center - eps).clamp_min(0.0), (center + eps).clamp_max(1.0)
