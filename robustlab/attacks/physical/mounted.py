"""A flat object before the images, such as a road sign, part of which the texture covers: seen from near and far.

:class:`robustlab.attacks.physical.scenes.Worn` knows an object only as it stands in the images. Here the object is
apart from them: the images are what is behind it, and size, place, angle and side view are drawn for each picture, as
for a sign that a car drives by. A pinhole camera sees the board, whose half side is 1, turned by a yaw ψ about its
upright axis: its place (u, v) appears at

    scale·(u·cos ψ, v) / (1 + u·sin ψ / 3)      then turned in the image and moved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacks.physical.camera import Camera, Limits, Rendered, within
from robustlab.attacks.physical.optics import corners, homography, looked_up, places, project
from robustlab.attacks.physical.scenes import Scenes
from robustlab.geometry.keyed import Noise

_AWAY = 3.0  # distance of the camera, in half sides of the board


@dataclass(frozen=True, eq=False)
class Mounted(Scenes):
    """A board before the images; the texture covers it where the mask is.

    Attributes:
        face: (C, h, w), the board's colors in [0, 1]; texture and mask have its size.
        outline: (1, h, w), how much of the background each place of the board covers, in [0, 1].
        scale: the board's side as a share of the picture's shorter side.
        shift: the center is at most so far from that of the picture, as a share of what leaves the board inside.
        yaw: seen from the side by at most so many degrees.
        turn: turned in the image by at most so many degrees.
        camera: what it adds.

    Raises:
        ValueError, TypeError: for limits out of their order or range, or another face or outline, by name.
    """

    face: Tensor
    outline: Tensor
    scale: Limits = (0.4, 0.9)
    shift: float = 1.0
    yaw: float = 35.0
    turn: float = 8.0
    camera: Camera = field(default_factory=lambda: Camera(tilt=0.0, gain=(0.6, 1.2), offset=(-0.1, 0.1), noise=0.02))

    def __post_init__(self) -> None:
        for name in ("face", "outline"):
            board = getattr(self, name)
            checks.floats(board, name)
            if board.dim() != 3 or not bool(((board >= 0) & (board <= 1)).all()):
                raise ValueError(f"{name}: want colors (C, h, w) in [0, 1], got shape {tuple(board.shape)}, or others")
        if self.outline.shape != (1, *self.face.shape[1:]):
            raise ValueError(f"outline: want (1, h, w) of the face's size, got {tuple(self.outline.shape)}")
        within("scale", self.scale, 1e-3, 1.0)
        within("shift", (0.0, self.shift), 0.0, 1.0)
        within("yaw", (0.0, self.yaw), 0.0, 75.0)
        within("turn", (0.0, self.turn), 0.0, 180.0)

    def texture_size(self, images: Tensor) -> tuple[int, int]:
        """That of the face."""
        return (self.face.shape[1], self.face.shape[2])

    def before(self, images: Tensor, mask: Tensor, noise: Noise, number: int) -> Rendered:
        """Where the board's corners appear gives one projection per picture, through which the board is looked up."""
        dtype, (height, width) = images.dtype, images.shape[2:]
        picture = self.camera.picture(images, noise, number)
        scale = noise.uniform((number, 5), (), dtype, *self.scale)
        yaw = noise.uniform((number, 6), (), dtype, -self.yaw, self.yaw) * (math.pi / 180)
        angle = noise.uniform((number, 7), (), dtype, -self.turn, self.turn) * (math.pi / 180)
        center = noise.uniform((number, 8), (2,), dtype, -self.shift, self.shift) * (1 - scale)[:, None]
        side = images.new_tensor([min(height, width) / width, min(height, width) / height])
        ends = center[:, None] + side * scale[:, None, None] * _appears(corners(images), yaw, angle)
        where = project(homography(ends, corners(images).expand_as(ends)), places(height, width, images))
        face, outline = self.face.to(images), self.outline.to(images)
        free = 1 - looked_up(outline.expand(len(images), -1, -1, -1), where)

        def render(texture: Tensor) -> Tensor:
            board = outline * torch.where(mask, texture, face)
            return picture(free * images + looked_up(board.expand(len(images), -1, -1, -1), where))

        return render


def _appears(board: Tensor, yaw: Tensor, angle: Tensor) -> Tensor:
    """Places (k, 2) of the board on the screen of a pinhole camera, (n, k, 2), before scale and shift."""
    u, v = board[None, :, 0], board[None, :, 1]
    depth = 1 + u * yaw.sin()[:, None] / _AWAY
    right, down = u * yaw.cos()[:, None] / depth, v / depth
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([cos * right - sin * down, sin * right + cos * down], dim=-1)
