"""What a defense claims: the numbers that an evaluation is to confirm or refute.

Carlini et al., "On evaluating adversarial robustness" (2019a), section 2: a claim of robustness is a number under a
precise threat model, and without one there is nothing to refute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.geometry.norms import ProperNorm, get_norm

AuthorsAttack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""``attack(model, x, y, eps) -> x_adv``: how the authors of a defense attacked it."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of robustness.

    Attributes:
        eps: radius of the ball, in units of the inputs, above 0.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        robust_accuracy: claimed share of samples, in [0, 1], on which the model is right everywhere in the ball (or its
            detector fires); None where nothing is claimed.
        clean_accuracy: claimed share at ε = 0; None where it was not reported.
        bounds: the box of valid inputs.
        attack: the attack behind ``robust_accuracy``, if it is to be looked at.
        detector: score (N,) of a batch, above 0 where the defense refuses the input; None where there is none.

    Raises:
        ValueError, TypeError: for a field out of its range.
    """

    eps: float
    norm: ProperNorm = "linf"
    robust_accuracy: float | None = None
    clean_accuracy: float | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    attack: AuthorsAttack | None = None
    detector: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        checks.positive("eps", self.eps)
        checks.one_of("norm", self.norm, ("l1", "l2", "linf"))
        for name in ("robust_accuracy", "clean_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: want a share in [0, 1] or None, got {value}")
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds: want (low, high) with low < high, got {self.bounds}")
        for name in ("attack", "detector"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"{name}: want a callable or None, got {getattr(self, name)!r}")

    def span(self, x: Tensor) -> float:
        """The distance between opposite corners of the box, for inputs like ``x`` (N, ...)."""
        low, high = self.bounds
        return float(get_norm(self.norm).length(torch.full_like(x[:1], high - low)))
