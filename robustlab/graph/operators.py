"""What the engine asks of an operator: four rules, one for each way of passing through it.

    interval    bounds of the output from bounds of the inputs             (interval bound propagation)
    relax       linear functions below and above a nonlinear operator      (its relaxation, once per sample)
    backward    forms on the output → forms on the inputs and a constant   (CROWN's step, once per form)
    priced      the same for a nonlinear operator, at any multipliers      (the Lagrangian dual's step)

For an affine operator z = W·x + b the backward rule is exact, ⟨a, z⟩ = ⟨Wᵀa, x⟩ + ⟨a, b⟩. For a nonlinear one it is a
lower bound: a coefficient that is not negative multiplies the line below, a negative one the line above.

Source: Xu et al., "Automatic perturbation analysis for scalable certified robustness and beyond" (2020), section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds

Shape = tuple[int, ...]
ReluLine = Literal["adaptive", "parallel", "zero", "one"]
PoolLine = Literal["largest", "parallel"]
Backward = tuple[tuple[Forms, ...], Tensor | float]
"""Forms on each input, and what they leave as a constant, (R,)."""


def broadcast_shape(*shapes: Shape) -> torch.Size:
    """As ``torch.broadcast_shapes``, for which torch would import an algebra system; takes no memory."""
    return torch.broadcast_tensors(*(torch.empty(()).expand(shape) for shape in shapes))[0].shape


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How nonlinear operators are relaxed.

    Attributes:
        relu: the slope α of the line below a ReLU that is not stable, 0 ≤ α ≤ 1. ``"adaptive"`` is 1 where u ≥ −l, else
            0 (CROWN); ``"parallel"`` is u / (u − l), the slope of the line above (Fast-Lin); ``"zero"``, ``"one"``.
        pool: the line below a maximum: ``"largest"`` is the input with the largest lower bound; ``"parallel"`` has the
            slopes of the plane above (CNN-Cert).
    """

    relu: ReluLine = "adaptive"
    pool: PoolLine = "largest"


class Priced(NamedTuple):
    """What ``Operator.priced`` gives: forms on each input, the minimum (R,), and the absolute sum of its terms (R,)."""

    forms: tuple[Forms, ...]
    least: Tensor
    terms: Tensor


class Operator(ABC):
    """One node's rule. Operators hold tensors and no state; the batch is dimension 0 of every value."""

    affine: ClassVar[bool] = True
    elementwise: ClassVar[bool] = False
    """Nonlinear and monotone in one input of the same shape: its interval is as good as its input's."""

    @abstractmethod
    def forward(self, *values: Tensor) -> Tensor:
        """The operator itself, on values (N, ...)."""

    @abstractmethod
    def interval(self, *inputs: Bounds) -> Bounds:
        """Bounds of the output."""

    def relax(self, rule: Rule, *inputs: Bounds) -> Any:
        """The lines below and above, which ``backward`` is then given; None for an affine operator."""
        return None

    def terms(self, *largest: Tensor) -> Tensor | None:
        """How large the terms are that each output is summed from: the sum of their absolute values, from above.

        Rounding errors of a sum are relative to this, not to the sum itself, which may cancel. Sums of two terms round
        once or twice and count an eighth.

        Args:
            largest: (N, *shape) upper bounds of the absolute values of each input.

        Returns:
            (N, *shape of the output); None for an operator that sums nothing.
        """
        return None

    def absolute(self) -> Operator:
        """Of an affine operator W·x + b, the operator |W|·x, perhaps with a constant: what bounds of slopes pass."""
        raise ValueError(f"model: want an affine operator, got {self}")

    @abstractmethod
    def backward(self, forms: Forms, shapes: Sequence[Shape], lines: Any) -> Backward:
        """Forms on the inputs, of ``shapes``, that are never above the given forms on the output."""

    def secants(self, forms: Forms, lines: Any) -> tuple[Tensor, ...]:
        """For each input of a nonlinear operator, the slopes that ``backward`` would multiply the coefficients with."""
        raise ValueError(f"model: no multipliers are known for {self}")

    def priced(
        self, forms: Forms, shapes: Sequence[Shape], secants: Sequence[Tensor], extra: Sequence[Tensor],
        inputs: Sequence[Bounds],
    ) -> Priced:  # fmt: skip
        """Forms μ on the inputs of a nonlinear operator f, for any μ, and what they leave:

            ⟨a, f(z)⟩  ≥  ⟨μ, z⟩ + min {⟨a, f(z)⟩ − ⟨μ, z⟩ : z in its box},   μ = secant·a + extra

        The minimum has a closed form. At the secants of ``backward``, it is never below what ``backward`` leaves.

        Args:
            forms: a, on the output.
            shapes: of the inputs.
            secants: as ``secants`` gave them, perhaps for other coefficients.
            extra: of their shape, one for each form.
            inputs: bounds of the inputs.
        """
        raise ValueError(f"model: no multipliers are known for {self}")

    def unstable(self, *inputs: Bounds) -> tuple[Tensor, ...]:
        """Which elements of each input need tight bounds, as masks: those where the relaxation is not exact."""
        return tuple(b.lower < b.upper for b in inputs)


class Affine(Operator):
    """An operator z = W·x + b of one input: its interval follows from its center and |W|·radius."""

    @abstractmethod
    def magnitude(self, radius: Tensor) -> Tensor:
        """|W|·radius."""

    @abstractmethod
    def absolute(self) -> Operator:
        """The operator with |W|."""

    def terms(self, *largest: Tensor) -> Tensor:
        """|W|·largest + |b|."""
        zero = torch.zeros_like(largest[0][:1])
        return self.magnitude(largest[0]) + self.forward(zero).abs()

    def interval(self, *inputs: Bounds) -> Bounds:
        """W·center + b ∓ |W|·radius."""
        (x,) = inputs
        center, radius = self.forward(x.center), self.magnitude(x.radius)
        return Bounds(center - radius, center + radius)
