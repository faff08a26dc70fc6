"""Distributions of transformations, of which attacks draw anew as often as they like.

Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust adversarial examples" (2018), whose distribution for images
rotates, scales and moves them, changes their brightness and adds noise. What is drawn depends on the seed, the sample's
id and the number of the draw alone, so that a batch draws what each of its samples would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from robustlab.attacker.parts import beside
from robustlab.attacks.semantic.spatial import transform
from robustlab.geometry.keyed import Noise

__all__ = ["RandomViews", "Views"]

View = Callable[[Tensor], Tensor]


@runtime_checkable
class Views(Protocol):
    """A distribution of transformations."""

    def view(self, x: Tensor, noise: Noise, draw: tuple[int, ...]) -> View:
        """One transformation for each of the samples x (n, ...), a differentiable function of a batch like x."""
        ...


@dataclass(frozen=True)
class RandomViews:
    """Turned, scaled, moved, lit and noisy views of images (C, H, W), each drawn uniformly and independently.

    Attributes:
        rotation: largest angle in degrees, in both directions.
        scale: smallest and largest factor.
        translation: largest shift as a fraction of height and width, in both directions.
        brightness: largest addition, in both directions, in units of x.
        sigma: standard deviation of Gaussian noise, in units of x.
    """

    rotation: float = 20.0
    scale: tuple[float, float] = (0.9, 1.1)
    translation: float = 0.1
    brightness: float = 0.1
    sigma: float = 0.0

    def view(self, x: Tensor, noise: Noise, draw: tuple[int, ...]) -> View:
        """One view for each image."""
        turn, down, right, light, size = noise.uniform((*draw, 0), (5,), x.dtype, -1.0, 1.0).unbind(dim=1)
        low, high = self.scale
        scale = (low + high) / 2 + (high - low) / 2 * size
        grain = self.sigma * noise.normal((*draw, 1), x.shape[1:], x.dtype) if self.sigma else 0.0

        def see(points: Tensor) -> Tensor:
            shift = self.translation
            moved = transform(points, self.rotation * turn, shift * down, shift * right, scale=scale)
            return moved + beside(self.brightness * light, points) + grain

        return see
