"""Scenes: how a printed texture gets into a picture. A family of scenes draws anew for each picture it shows.

A *view* is one fixed scene, ``view(images, texture, mask) -> images``, differentiable in the texture. A *family* knows
the limits within which the world varies, and what it draws is keyed by a seed and a picture's number: it renders all
pictures of a batch in one pass, each with numbers of its own. What papers print and photograph is simulated here by

* :class:`Worn`: the texture lies on the object itself, as a sticker or a pair of glasses does;
* :class:`Placed`: it lies anywhere in the picture, turned and scaled;
* :class:`Turned`: it is the surface of a solid before a background, in any pose;
* :class:`robustlab.attacks.physical.shirts.Shirts`: it is printed on cloth that folds, on a person in each image;

and then a camera: perspective, light, blur and noise of the sensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacks.physical import mesh as solid
from robustlab.attacks.physical.camera import Camera, Limits, Rendered, within
from robustlab.attacks.physical.optics import looked_up, places
from robustlab.geometry.keyed import Noise, derive_seed

View = Callable[[Tensor, Tensor, Tensor], Tensor]
_JUDGES = 0x6A75646765


class Scenes(ABC):
    """A family of scenes.

    Where a texture is seen between two of its pixels, or at its rim, both colors and cover are interpolated.
    """

    @abstractmethod
    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """The function texture → pictures (n, C, H, W) of one draw: image i with the i-th numbers of ``noise``.

        All that is drawn is drawn here, so that the function may be asked about several textures.
        """

    def texture_size(self, images: Tensor) -> tuple[int, int] | None:
        """The height and width that a texture must have before these images; None where it may be any."""
        return (images.shape[2], images.shape[3])

    def of(self, rows: Tensor) -> Scenes:
        """The scenes of some of the images, (n,) places among all: where each image has scenes of its own."""
        return self

    def views(self, count: int, *, seed: int = 0) -> list[View]:
        """``count`` fixed scenes, for judging: each shows the same when it is asked again."""
        checks.at_least("count", count, 1, integer=True)
        own = derive_seed(seed, _JUDGES)  # an attack of the same seed draws others
        return [_Fixed(self, own, number) for number in range(count)]


@dataclass(frozen=True)
class _Fixed:
    family: Scenes
    seed: int
    number: int

    def __call__(self, images: Tensor, texture: Tensor, mask: Tensor) -> Tensor:
        noise = Noise(self.seed, torch.arange(len(images), device=images.device))
        return self.family.before(images, mask, noise, self.number)(texture)


class Listed(Scenes):
    """Given views, of which each picture of a batch takes one, all as often as can be."""

    def __init__(self, views: Sequence[View]) -> None:
        self.given = list(views)

    def texture_size(self, images: Tensor) -> tuple[int, int] | None:
        """What the families want that the views come from; views of the caller's own take one like the images."""
        whole = (images.shape[2], images.shape[3])
        sizes = [view.family.texture_size(images) if isinstance(view, _Fixed) else whole for view in self.given]
        return next((size for size in sizes if size is not None), None)

    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """As for every family; what a view itself draws is its own."""
        count = len(self.given)
        pick = (torch.arange(len(images), device=images.device) + noise.integers((number, 0), (1,), count)[0]) % count
        order = pick.argsort(stable=True)
        parts = [images[pick == k] for k in range(count)]
        back = order.argsort(stable=True)

        def render(texture: Tensor) -> Tensor:
            shown = [view(part, texture, mask) for view, part in zip(self.given, parts, strict=True) if len(part)]
            return torch.cat(shown)[back]

        return render


@dataclass(frozen=True)
class Worn(Scenes):
    """The texture lies on the object where the mask is, and both are seen together.

    Attributes:
        slip: the texture lies beside its place by at most so many pixels in each direction, as glasses slip.
        turn: and turned by at most so many degrees.
        camera: what it adds.

    Raises:
        ValueError: for limits out of their order or range, by name.
    """

    slip: float = 0.0
    turn: float = 0.0
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        within("slip", (0.0, self.slip), 0.0, 16.0)
        within("turn", (0.0, self.turn), 0.0, 180.0)

    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """Texture and mask are moved alike, then laid over the images and photographed."""
        n, _, height, width = images.shape
        picture = self.camera.picture(images, noise, number)
        if not self.slip and not self.turn:
            return lambda texture: picture(torch.where(mask, texture, images))
        shift = noise.uniform((number, 5), (2,), images.dtype, -self.slip, self.slip)
        shift = shift * shift.new_tensor([2 / width, 2 / height])
        angle = noise.uniform((number, 6), (), images.dtype, -self.turn, self.turn)
        where = _looked_at(images, shift, angle, images.new_ones(n))
        return _laid(images, mask, where, picture)


@dataclass(frozen=True)
class Placed(Scenes):
    """The texture lies somewhere in the picture, turned and scaled, and wholly inside of it.

    Attributes:
        scale: its side as a share of the picture's shorter side, before it is turned.
        turn: turned by at most so many degrees.
        camera: what it adds.

    Raises:
        ValueError: for limits out of their order or range, by name; a patch larger than the picture has a ``scale``
            above 1.
    """

    scale: Limits = (0.3, 0.6)
    turn: float = 45.0
    camera: Camera = field(default_factory=lambda: Camera(tilt=0.0))

    def __post_init__(self) -> None:
        within("scale", self.scale, 1e-3, 1.0)
        within("turn", (0.0, self.turn), 0.0, 180.0)

    def texture_size(self, images: Tensor) -> None:
        """A patch has any size."""

    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """The places are such that the disk around which the patch is cut stays in the picture."""
        height, width = images.shape[2:]
        picture = self.camera.picture(images, noise, number)
        scale = noise.uniform((number, 5), (), images.dtype, *self.scale)
        angle = noise.uniform((number, 6), (), images.dtype, -self.turn, self.turn)
        side = min(height, width)
        half = torch.stack([scale * side / width, scale * side / height], dim=-1)
        center = noise.uniform((number, 7), (2,), images.dtype, -1.0, 1.0) * (1 - half)
        where = _looked_at(images, center, angle, scale, patch=True)
        return _laid(images, mask, where, picture)


@dataclass(frozen=True)
class Turned(Scenes):
    """The texture is the surface of a solid that stands before the images, in a pose drawn for each picture.

    Attributes:
        mesh: the solid (:mod:`robustlab.attacks.physical.mesh`).
        yaw, pitch, roll: limits in degrees.
        distance: of the solid's center from the camera; nothing may be behind the camera.
        shift: of the center, in each direction, in units of half the picture.
        camera: what it adds.
        base: color of the surface where the mask leaves it free.

    Raises:
        ValueError: for limits out of their order or range, by name.
    """

    mesh: solid.Mesh = field(default_factory=solid.sphere)
    yaw: Limits = (-60.0, 60.0)
    pitch: Limits = (-20.0, 20.0)
    roll: Limits = (-10.0, 10.0)
    distance: Limits = (3.4, 4.5)
    shift: float = 0.1
    camera: Camera = field(default_factory=lambda: Camera(tilt=0.0))
    base: float = 0.5

    def __post_init__(self) -> None:
        reach = float(torch.linalg.vector_norm(self.mesh.corners, dim=-1).max())
        for name in ("yaw", "pitch", "roll"):
            within(name, getattr(self, name), -360.0, 360.0)
        within("distance", self.distance, reach + 0.1, 1e3)
        within("shift", (0.0, self.shift), 0.0, 1.0)
        within("base", (0.0, self.base), 0.0, 1.0)

    def texture_size(self, images: Tensor) -> None:
        """A surface has any resolution."""

    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """The pose gives a sampling grid, a cover and a shade; see :func:`robustlab.attacks.physical.mesh.seen`."""
        dtype = images.dtype
        picture = self.camera.picture(images, noise, number)
        angles = [
            noise.uniform((number, 5 + k), (), dtype, *getattr(self, name))
            for k, name in enumerate(("yaw", "pitch", "roll"))
        ]
        distance = noise.uniform((number, 8), (), dtype, *self.distance)
        shift = noise.uniform((number, 9), (2,), dtype, -self.shift, self.shift)
        view = solid.seen(self.mesh, solid.rotation(*angles), distance, shift, (images.shape[2], images.shape[3]))
        painted = mask.to(images)

        def render(texture: Tensor) -> Tensor:
            surface = self.base + painted * (texture - self.base)
            return picture(images * (1 - view.cover) + solid.textured(surface, view))

        return render


def _laid(images: Tensor, mask: Tensor, where: Tensor, picture: Callable[[Tensor], Tensor]) -> Rendered:
    """Texture and mask are looked up at the same places, laid over the images and photographed."""
    n, cover = len(images), mask.to(images)
    free = 1 - looked_up(cover.expand(n, *mask.shape), where)

    def render(texture: Tensor) -> Tensor:
        sheet = looked_up((texture * cover).expand(n, *texture.shape), where)
        return picture(free * images + sheet)

    return render


def _looked_at(images: Tensor, center: Tensor, degrees: Tensor, scale: Tensor, *, patch: bool = False) -> Tensor:
    """Where each pixel of n pictures lies on a texture that is scaled, turned about its middle, and moved to a center.

    Lengths on the texture are those of its own side for a ``patch``, which is square, else those of the picture.
    """
    height, width = images.shape[2:]
    side = images.new_tensor([min(height, width)] * 2) if patch else images.new_tensor([width, height])
    away = (places(height, width, images) - center[:, None, None]) * images.new_tensor(
        [width, height]
    )  # in half pixels
    cos, sin = (f(degrees * (math.pi / 180))[:, None, None] for f in (torch.cos, torch.sin))
    turned = torch.stack([cos * away[..., 0] - sin * away[..., 1], sin * away[..., 0] + cos * away[..., 1]], dim=-1)
    return turned / (scale[:, None, None, None] * side)
