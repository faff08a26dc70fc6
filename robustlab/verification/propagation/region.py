"""Sets of inputs: boxes, and ℓp balls cut off by the box of valid inputs.

A method needs two things of a set: the smallest box around it, and the smallest value that a linear form takes on it,

    min {⟨a, x⟩ : l ≤ x ≤ u}                       = ⟨a, center⟩ − ⟨|a|, radius⟩
    min {⟨a, x + δ⟩ : ‖δ‖_p ≤ ε}                   = ⟨a, x⟩ − ε‖a‖_q,   1/p + 1/q = 1   (Hölder)
    min {⟨a, x + δ⟩ : ‖δ‖_p ≤ ε, low ≤ x + δ ≤ high}   exactly for p = 1, 2, ∞; else the better of the two above
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.parts import beside
from robustlab.geometry.norms import NORMS, ProperNorm
from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds

__all__ = ["Ball", "Box"]


class Region(ABC):
    """One set of inputs for each of N samples."""

    @property
    @abstractmethod
    def hull(self) -> Bounds:
        """The smallest box around it, (N, *shape)."""

    @property
    def is_box(self) -> bool:
        """Whether it is its own hull."""
        return False

    @abstractmethod
    def minimum(self, forms: Forms, *, exact: bool = True) -> Tensor:
        """The least value of each form on its sample's set, (R,); with ``exact=False`` perhaps a little less."""

    @abstractmethod
    def select(self, rows: Tensor) -> Region:
        """The sets of some samples; ``rows`` is an index or a mask."""

    def __len__(self) -> int:
        return self.hull.lower.shape[0]


@dataclass(frozen=True, eq=False)
class Box(Region):
    """lower ≤ x ≤ upper, element by element.

    Args:
        lower, upper: (N, *shape).

    Raises:
        ValueError: if the shapes differ, or lower ≤ upper does not hold everywhere.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"lower, upper: want one shape, got {self.lower.shape} and {self.upper.shape}")
        if (wrong := ~(self.lower <= self.upper)).any():  # NaN too
            at = tuple(wrong.nonzero()[0].tolist())
            low, high = float(self.lower[at]), float(self.upper[at])
            raise ValueError(
                f"lower, upper: want lower ≤ upper everywhere, or the box is empty; got {low:g} and {high:g} at {at}"
            )
        if not bool((self.lower.isfinite() & self.upper.isfinite()).all()):
            raise ValueError("lower, upper: want finite numbers")

    @property
    def is_box(self) -> bool:
        """It is."""
        return True

    @property
    def hull(self) -> Bounds:
        """The box itself."""
        return Bounds(self.lower, self.upper)

    def minimum(self, forms: Forms, *, exact: bool = True) -> Tensor:
        """⟨a, center⟩ − ⟨|a|, radius⟩."""
        return box_minimum(self.hull, forms)

    def select(self, rows: Tensor) -> Box:
        """The boxes of some samples."""
        return Box(self.lower[rows], self.upper[rows])


@dataclass(frozen=True, eq=False)
class Ball(Region):
    """‖x′ − x‖_p ≤ ε, cut off by the box of valid inputs.

    Args:
        x: (N, *shape), the centers, inside the box.
        eps: a number, or one per sample (N,); 0 is allowed.
        norm: ``"l1"``, ``"l2"``, ``"linf"``, or any p ≥ 1 as a number.
        box: (low, high) of valid inputs; None for no limits.

    Raises:
        ValueError: for another norm, an eps that is negative or not finite, a wrong shape, or x outside the box.
    """

    x: Tensor
    eps: float | Tensor
    norm: ProperNorm | float = "linf"
    box: tuple[float, float] | None = (0.0, 1.0)
    p: float = field(init=False)

    def __post_init__(self) -> None:
        named = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
        p = named.get(self.norm) if isinstance(self.norm, str) else float(self.norm)
        if p is None or not p >= 1:
            raise ValueError(f"norm: want 'l1', 'l2', 'linf' or a number p ≥ 1, got {self.norm!r}")
        checks.images(self.x, self.box if self.box is not None else (-math.inf, math.inf), strict=True, takes="box={}")
        eps = torch.as_tensor(self.eps, dtype=self.x.dtype, device=self.x.device)
        if eps.dim() and eps.shape != self.x.shape[:1]:
            raise ValueError(f"eps: want a number or shape ({len(self.x)},), got shape {tuple(eps.shape)}")
        if not bool((eps.isfinite() & (eps >= 0)).all()):
            raise ValueError(f"eps: want finite and at least 0, got {self.eps}")
        object.__setattr__(self, "eps", eps.expand(len(self.x)))
        object.__setattr__(self, "p", p)

    @property
    def hull(self) -> Bounds:
        """x ± ε, cut off by the box."""
        eps = beside(self._eps, self.x)
        lower, upper = self.x - eps, self.x + eps
        if self.box is None:
            return Bounds(lower, upper)
        return Bounds(lower.clamp_min(self.box[0]), upper.clamp_max(self.box[1]))

    @property
    def is_box(self) -> bool:
        """For p = ∞."""
        return self.p == math.inf

    @property
    def _eps(self) -> Tensor:
        assert isinstance(self.eps, Tensor)
        return self.eps

    def minimum(self, forms: Forms, *, exact: bool = True) -> Tensor:
        """As in the module's text; ``exact=False`` spares the search along the ball's edge for p = 1 and 2.

        In derivatives the worst point of a ball that is cut off is held fixed for p = 1 and 2.
        """
        p, hull = self.p, self.hull
        if p == math.inf:
            return box_minimum(hull, forms)
        center, eps = forms.against(self.x), self._eps[forms.sample]
        dual = math.inf if p == 1 else p / (p - 1)
        holder = center - eps * torch.linalg.vector_norm(forms.coef.flatten(1), dual, dim=1)
        if self.box is None:
            return holder
        if exact and p in (1.0, 2.0):
            with torch.no_grad():
                low, high = forms.pick(hull.lower - self.x), forms.pick(hull.upper - self.x)
                step = NORMS["l1" if p == 1 else "l2"].linear_max(-forms.coef, eps, low, high)
            return center + forms.dot(step)
        return torch.maximum(holder, box_minimum(hull, forms))

    def select(self, rows: Tensor) -> Ball:
        """The balls of some samples."""
        return Ball(self.x[rows], self._eps[rows], self.norm, self.box)


def box_minimum(box: Bounds, forms: Forms) -> Tensor:
    """min {⟨a, x⟩ : x in the box of the form's sample}, (R,)."""
    return forms.against(box.center) - forms.to(forms.coef.abs()).against(box.radius)
