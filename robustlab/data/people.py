"""Rendered persons before photographs: scenes for detectors, whose boxes and whose shirts' places are known exactly.

A figure is drawn, not photographed: head, arms and legs of one color each, and a shirt with a pattern. The shirt is a
sheet [−1, 1]² that bends and narrows toward the waist; what is printed on it is seen where this takes it. Beside the
figures stand things that are none, posts with boards and plain shapes, so that a detector must know a person by more
than its outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.data.pairs import Part
from robustlab.data.photographs import backgrounds
from robustlab.geometry.keyed import Noise
from robustlab.models.boxes import present

SIDE = 64
DOWN, RIGHT = 5, 4  # control points of a shirt
_SHIRT = (0.17, 0.56)  # its upper and lower end, in heights of the figure from above
_HEAD, _SHOULDER, _WAIST, _LIMB = 0.075, 0.17, 0.13, 0.04


@dataclass(frozen=True, eq=False, repr=False)
class People:
    """Scenes, and what is true of them.

    Attributes:
        images: (N, 3, S, S) in [0, 1].
        boxes: (N, P, 4), left, top, right and bottom of each figure in pixels; zeros where there are fewer than P.
        shirts: (N, P, 20, 2), where the control points :func:`sheet_points` of each shirt are seen, in units of half
            the image: (−1, −1) is the outer corner at the top left.
    """

    images: Tensor
    boxes: Tensor
    shirts: Tensor

    def __repr__(self) -> str:
        figures = int(present(self.boxes).sum())
        return f"People({len(self.images)} scenes {tuple(self.images.shape[1:])} of {figures} figures)"


def sheet_points() -> Tensor:
    """The control points of a shirt on its own sheet, (20, 2) in [−1, 1]², row by row from the top left."""
    down, right = torch.linspace(-1, 1, DOWN), torch.linspace(-1, 1, RIGHT)
    return torch.stack(torch.meshgrid(down, right, indexing="ij")[::-1], dim=-1).reshape(-1, 2)


def people(
    n: int, *, least: int = 0, most: int = 2, side: int = SIDE, part: Part = "train", seed: int = 0, first: int = 0
) -> People:
    """Scenes with figures before photographs, drawn anew from a seed.

    Args:
        n: how many, at least 1.
        least, most: figures in a scene, 0 ≤ least ≤ most ≤ 3 and most ≥ 1; each number is as likely.
        side: of the images, in pixels, at least 32.
        part: of the photographs behind them.
        seed: of the draws; a scene depends on the seed and its number alone.
        first: number of the first scene.

    Raises:
        ValueError, TypeError: for a number out of its range, or another part.
    """
    checks.at_least("n", n, 1, integer=True)
    checks.at_least("most", most, 1, integer=True)
    checks.at_most("most", most, 3)
    checks.at_least("least", least, 0, integer=True)
    checks.at_most("least", least, most)
    checks.at_least("side", side, 32, integer=True)
    drawn = [_scenes(ids, least, most, side, part, seed) for ids in torch.arange(first, first + n).split(500)]
    return People(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))


def _scenes(ids: Tensor, least: int, most: int, side: int, part: Part, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    noise = Noise(seed, ids)
    images = backgrounds(ids, side=side, part=part, seed=seed)
    images = images.lerp(images.mean(dim=(1, 2, 3), keepdim=True), noise.uniform(0, (1, 1, 1), high=0.3))
    for k in range(2):
        images = _clutter(images, noise, k)
    count = least + noise.integers(1, (), most - least + 1)
    slots = noise.permutation(2, most)
    boxes, shirts = [], []
    for k in range(most):
        here = k < count
        apart = (slots[:, k] + 0.5 + noise.uniform((3, k), (), low=-0.2, high=0.2)) / most
        center = torch.where(count == 1, noise.uniform((4, k), (), low=0.2, high=0.8), apart) * side
        images, box, shirt = _figure(images, center, here, noise, k)
        boxes.append(box * here[:, None])
        shirts.append(shirt)
    light = noise.uniform(5, (1, 1, 1), low=0.65, high=1.15)
    images = images * light + 0.02 * noise.normal(6, tuple(images.shape[1:]))
    return images.clamp(0, 1), torch.stack(boxes, dim=1), torch.stack(shirts, dim=1)


@dataclass(frozen=True, eq=False)
class _Figure:
    """n figures: lengths (n,) in pixels or in heights of the figure, colors (n, 3), and the pattern of the shirt."""

    center: Tensor
    top: Tensor
    tall: Tensor
    wide: Tensor
    bend: Tensor
    phase: Tensor
    skin: Tensor
    trousers: Tensor
    pattern: Tensor

    @classmethod
    def drawn(cls, center: Tensor, side: int, noise: Noise, k: int) -> _Figure:
        def number(draw: int, low: float, high: float) -> Tensor:
            return noise.uniform((draw, k), (), low=low, high=high)

        tall = number(10, 0.5, 0.9) * side
        top = number(11, 0.02, 1.0) * (0.96 * side - tall) + 0.02 * side
        wide, bend, phase = number(12, 0.85, 1.15), number(13, -0.03, 0.03), number(14, 0.0, 3.0)
        skin = torch.tensor([0.85, 0.65, 0.5]) * noise.uniform((15, k), (1,), low=0.4, high=1.1)
        trousers = noise.uniform((16, k), (3,), high=0.6)
        pattern = noise.uniform((17, k), (3, 1, 1)) + noise.uniform((18, k), (1, 1, 1), high=0.6) * (
            noise.uniform((19, k), (3, 6, 6)) - 0.5
        )
        return cls(center, top, tall, wide, bend, phase, skin, trousers, pattern)

    def at(self, x: Tensor | float, y: Tensor | float) -> Tensor:
        """A place (n, 2) in pixels, from one in heights of the figure, beside its middle and below its top."""
        return torch.stack([self.center + self.wide * x * self.tall, self.top + y * self.tall], dim=-1)

    @property
    def limb(self) -> Tensor:
        """Half the thickness of arms and legs."""
        return _LIMB * self.tall * self.wide

    def limbs(self, noise: Noise, k: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Legs, arms and sleeves: two ends and a color each."""
        parts = []
        for sign in (-1.0, 1.0):
            foot_out, hand_out, hand_down = (
                noise.uniform((draw + int(sign), k), (), low=low, high=high)
                for draw, low, high in ((21, 0.06, 0.14), (31, 0.19, 0.27), (41, 0.42, 0.55))
            )
            hip, foot = self.at(sign * 0.06, _SHIRT[1]), self.at(sign * foot_out, 1 - _LIMB)
            shoulder = self.at(sign * (_SHOULDER - 0.02), _SHIRT[0] + _LIMB)
            hand = self.at(sign * hand_out, hand_down)
            sleeve = shoulder.lerp(hand, 0.35)
            parts += [
                (hip, foot, self.trousers),
                (shoulder, hand, self.skin),
                (shoulder, sleeve, self.pattern.mean((2, 3))),
            ]
        return parts

    def shirt(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """How far pixels are from the shirt, negative on it, (n, S, S), and its color there."""
        upper, lower = self.ends
        v = 2 * (y - _wide(upper)) / _wide(lower - upper) - 1
        inner = v.clamp(-1, 1)
        across = _wide(self.wide * self.tall)
        u = ((x - _wide(self.center)) / across - self.sway(inner, (-1, 1, 1))) / _half(inner)
        edge = torch.maximum((u.abs() - 1) * _half(inner) * across, (v.abs() - 1) * _wide(lower - upper) / 2)
        where = torch.stack([u, v.expand_as(u)], dim=-1)
        return edge, F.grid_sample(self.pattern, where, padding_mode="border", align_corners=False)

    def seen(self) -> Tensor:
        """(n, 20, 2): where the control points of the shirt are, in pixels."""
        (upper, lower), (u, v) = self.ends, sheet_points().T
        right = self.center[:, None] + (self.wide * self.tall)[:, None] * (self.sway(v, (-1, 1)) + u * _half(v))
        return torch.stack([right, upper[:, None] + (lower - upper)[:, None] * (v + 1) / 2], dim=-1)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The shirt's upper and lower end, (n,) pixels."""
        return self.top + _SHIRT[0] * self.tall, self.top + _SHIRT[1] * self.tall

    def sway(self, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        """How far the middle of the shirt is aside at its height v."""
        return self.bend.view(shape) * torch.sin(2 * v + self.phase.view(shape))


def _half(v: Tensor) -> Tensor:
    """Half the width of a shirt at its height v in [−1, 1], in heights of the figure."""
    return _SHOULDER + (_WAIST - _SHOULDER) * (v + 1) / 2


def _figure(images: Tensor, center: Tensor, here: Tensor, noise: Noise, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a figure where there is one; returns the images, its box, and where its shirt's control points are."""
    side = images.shape[-1]
    body = _Figure.drawn(center, side, noise, k)
    limbs, head, (x, y) = body.limbs(noise, k), body.at(0.0, _HEAD + 0.01), _pixels(side)
    for start, end, color in limbs:
        images = _over(images, _capsule(x, y, start, end, body.limb), color[:, :, None, None], here)
    away = torch.hypot((x - _wide(head[:, 0])) / _wide(0.8 * body.wide), y - _wide(head[:, 1]))
    images = _over(images, away - _wide(_HEAD * body.tall), body.skin[:, :, None, None], here)
    images = _over(images, *body.shirt(x, y), here)
    seen, reach = body.seen(), body.limb[:, None]
    ends = torch.cat([torch.stack([start, end], dim=1) for start, end, _ in limbs], dim=1)
    left = torch.minimum(ends[..., 0] - reach, seen[..., 0].amin(dim=1, keepdim=True)).amin(dim=1)
    right = torch.maximum(ends[..., 0] + reach, seen[..., 0].amax(dim=1, keepdim=True)).amax(dim=1)
    bottom = (ends[..., 1] + reach).amax(dim=1)
    box = torch.stack([left, head[:, 1] - _HEAD * body.tall, right, bottom], dim=-1).clamp(0, side)
    return images, box, seen * (2 / side) - 1


def _clutter(images: Tensor, noise: Noise, k: int) -> Tensor:
    """A post with a board, a plain shape, or nothing."""
    side = images.shape[-1]
    kind = noise.integers((50, k), (), 4)
    x, y = _pixels(side)
    center = noise.uniform((51, k), (2,), high=side)
    size = noise.uniform((52, k), (2,), low=0.06, high=0.2) * side
    color = noise.uniform((53, k), (3, 1, 1))
    across, down = (x - _wide(center[:, 0])).abs(), y - _wide(center[:, 1])
    board = torch.maximum(across - _wide(size[:, 0]), down.abs() - _wide(size[:, 1]))
    post = torch.maximum(across - _wide(0.2 * size[:, 0]), -down)
    disk = torch.hypot(across, down) - _wide(size[:, 0])
    images = _over(images, post, 0.5 * color, kind == 1)
    images = _over(images, board, color, (kind == 1) | (kind == 2))
    return _over(images, disk, color, kind == 3)


def _pixels(side: int) -> tuple[Tensor, Tensor]:
    """The centers of the pixels in pixels, (1, 1, S) to the right and (1, S, 1) down."""
    where = torch.arange(side) + 0.5
    return where[None, None], where[None, :, None]


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None]


def _capsule(x: Tensor, y: Tensor, start: Tensor, end: Tensor, radius: Tensor) -> Tensor:
    """How far pixels are from a rod with round ends, (n, S, S); negative inside."""
    along = end - start
    dx, dy = x - _wide(start[:, 0]), y - _wide(start[:, 1])
    square = _wide(along.square().sum(dim=1).clamp_min(1e-6))
    share = ((dx * _wide(along[:, 0]) + dy * _wide(along[:, 1])) / square).clamp(0, 1)
    return torch.hypot(dx - share * _wide(along[:, 0]), dy - share * _wide(along[:, 1])) - _wide(radius)


def _over(images: Tensor, distance: Tensor, color: Tensor, here: Tensor) -> Tensor:
    """A color where the distance is negative; a pixel on the edge is covered in part."""
    cover = (0.5 - distance).clamp(0, 1) * here[:, None, None]
    return images.lerp(color.expand_as(images), cover[:, None].expand_as(images))
