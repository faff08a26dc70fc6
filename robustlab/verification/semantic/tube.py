"""The set of images that a change makes of one image, between two parallel planes over the change's parameters.

    ⟨s_j, θ⟩ + o_j  ≤  x_j(θ)  ≤  ⟨s_j, θ⟩ + o′_j      for every pixel j and all θ in a box

The least value of a linear form on this set is that of a linear function on the box of parameters: all pixels move with
one θ, which a box of pixels cannot say.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustlab.graph.forms import Forms
from robustlab.graph.interval import Bounds
from robustlab.verification.propagation.region import Region, box_minimum


@dataclass(frozen=True, eq=False)
class Tube(Region):
    """Images x(θ) for θ in a box, one tube per sample.

    Args:
        low, high: (N, d) the box of parameters.
        slope: (N, d, *shape).
        below, above: (N, *shape) offsets o ≤ o′.
        lower, upper: (N, *shape) bounds of the pixels.
    """

    low: Tensor
    high: Tensor
    slope: Tensor
    below: Tensor
    above: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def hull(self) -> Bounds:
        """The bounds of the pixels."""
        return Bounds(self.lower, self.upper)

    def minimum(self, forms: Forms, *, exact: bool = True) -> Tensor:
        """The better of what the planes and what the bounds of the pixels say."""
        up, down = forms.to(forms.coef.clamp_min(0)), forms.to(forms.coef.clamp_max(0))
        value = up.dot(forms.pick(self.below)) + down.dot(forms.pick(self.above))
        for k, slope in enumerate(self.slope.unbind(1)):
            along = forms.dot(forms.pick(slope))
            center, radius = (self.high[:, k] + self.low[:, k]) / 2, (self.high[:, k] - self.low[:, k]) / 2
            value = value + along * center[forms.sample] - along.abs() * radius[forms.sample]
        return value.maximum(box_minimum(self.hull, forms))

    def select(self, rows: Tensor) -> Tube:
        """The tubes of some samples."""
        fields = (self.low, self.high, self.slope, self.below, self.above, self.lower, self.upper)
        return Tube(*(one[rows] for one in fields))
