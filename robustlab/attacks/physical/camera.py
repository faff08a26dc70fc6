"""A camera: perspective, light, blur and noise of the sensor, drawn anew for each picture within limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from robustlab.attacks.physical.optics import blur, corners, in_box, light, perspective
from robustlab.geometry.keyed import Noise

Rendered = Callable[[Tensor], Tensor]
Limits = tuple[float, float]


@dataclass(frozen=True)
class Camera:
    """What a camera adds: each limit is drawn uniformly for each picture.

    Attributes:
        tilt: each corner of the picture moves by at most so much in each direction, in units of half the picture.
        gain: contrast, a factor.
        offset: brightness, added.
        blur: width of a Gaussian, in pixels.
        noise: standard deviation of the sensor's noise, drawn for every pixel.

    Raises:
        ValueError: for limits out of their order or range, by name.
    """

    tilt: float = 0.05
    gain: Limits = (0.8, 1.2)
    offset: Limits = (-0.05, 0.05)
    blur: Limits = (0.0, 0.6)
    noise: float = 0.01

    def __post_init__(self) -> None:
        within("tilt", (0.0, self.tilt), 0.0, 0.5)
        within("gain", self.gain, 0.0, 4.0)
        within("offset", self.offset, -1.0, 1.0)
        within("blur", self.blur, 0.0, 3.0)
        within("noise", (0.0, self.noise), 0.0, 1.0)

    def picture(self, images: Tensor, noise: Noise, number: int) -> Rendered:
        """The function scene (n, C, H, W) → picture of one draw."""
        dtype = images.dtype
        ends = corners(images) + noise.uniform((number, 0), (4, 2), dtype, -self.tilt, self.tilt)
        gain = noise.uniform((number, 1), (), dtype, *self.gain)
        offset = noise.uniform((number, 2), (), dtype, *self.offset)
        width = noise.uniform((number, 3), (), dtype, *self.blur)
        grain = self.noise * noise.normal((number, 4), images.shape[1:], dtype) if self.noise else 0.0

        def take(scene: Tensor) -> Tensor:
            moved = perspective(scene, ends) if self.tilt else scene
            lit = light(moved, gain, offset)
            return in_box((blur(lit, width) if self.blur[1] else lit) + grain)

        return take


def within(name: str, limits: Limits, least: float, most: float) -> None:
    """Raises unless ``least`` ≤ low ≤ high ≤ ``most``."""
    low, high = limits
    if not least <= low <= high <= most:
        raise ValueError(f"{name}: want limits low ≤ high in [{least:g}, {most:g}], got {low:g} to {high:g}")


PLAIN = Camera(tilt=0.0, gain=(1.0, 1.0), offset=(0.0, 0.0), blur=(0.0, 0.0), noise=0.0)
"""A camera that changes nothing."""
