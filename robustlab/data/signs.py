"""Road signs, rendered: eight kinds of shape, color and symbol before real photographs.

These are no photographs of signs. A sign's face is drawn from a few numbers, and then put before a square of a
photograph (:mod:`robustlab.data.photographs`); size, place, angle and light are drawn for each of the pictures.
Every third sign has a plain gray sticker, as real ones have dirt and stickers, so that a network learns to read past
one. Photographs behind test pictures are others than those behind training pictures.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.data.dataset import Dataset
from robustlab.data.pairs import Part
from robustlab.data.photographs import backgrounds
from robustlab.data.rendered import photographed, rendered
from robustlab.geometry.keyed import Noise, derive_seed

ROAD_SIGNS = ("stop", "speed limit", "no entry", "yield", "warning", "priority", "ahead", "parking")
"""The kinds, in the order of their labels."""
RED, WHITE, BLUE, YELLOW, BLACK = (
    (0.78, 0.10, 0.13), (0.95, 0.95, 0.95), (0.10, 0.30, 0.68), (0.97, 0.78, 0.12), (0.08, 0.08, 0.08),
)  # fmt: skip
_FINE = 4  # drawn so many times finer than the face
_GLYPHS = {
    "S": "111100111001111", "T": "111010010010010", "O": "111101101101111", "P": "111101111100100",
    "6": "111100111101111", "0": "111101101101111",
}  # fmt: skip


def sign_faces(size: int = 32) -> tuple[Tensor, Tensor]:
    """The faces of the signs, flat and in even light, and where each is no background.

    Args:
        size: in pixels, at least 8.

    Returns:
        Colors (8, 3, size, size) in [0, 1], and outlines (8, 1, size, size) in [0, 1], fractions at the rim.

    Raises:
        ValueError, TypeError: for a size below 8.
    """
    checks.at_least("size", size, 8, integer=True)
    axis = (torch.arange(_FINE * size) + 0.5) * (2 / (_FINE * size)) - 1
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    drawn = [_layers(kind, right, down) for kind in range(len(ROAD_SIGNS))]
    colors, outlines = (F.avg_pool2d(torch.stack(part), _FINE) for part in zip(*drawn, strict=True))
    return colors / outlines.clamp_min(1e-6) * (outlines > 0), outlines


def road_signs(n_train: int = 4000, n_test: int = 480, *, side: int = 48, seed: int = 0) -> Dataset:
    """Rendered pictures of road signs before photographs.

    Args:
        n_train, n_test: numbers of pictures; kinds take turns, so that any eight in a row have each once.
        side: of a picture in pixels, at least 16.
        seed: of all draws; picture i depends on the seed and i alone.

    Returns:
        Dataset of images (N, 3, side, side) in [0, 1] with the classes ``ROAD_SIGNS``.

    Raises:
        ValueError, TypeError: for a number out of its range.
    """
    return rendered("road_signs", _pictures, ROAD_SIGNS, n_train, n_test, side, seed)


def _pictures(ids: Tensor, side: int, part: Part, seed: int) -> Tensor:
    own, n, f32 = derive_seed(seed, 0 if part == "train" else 1), len(ids), torch.float32
    noise, y = Noise(own, ids), ids % len(ROAD_SIGNS)
    faces, outlines = sign_faces(32)
    sheet = torch.cat([faces * outlines, outlines], dim=1)[y]
    sheet = torch.where(
        _stickers(noise, 32), torch.cat([0.5 * sheet[:, 3:].expand(-1, 3, -1, -1), sheet[:, 3:]], 1), sheet
    )
    half = noise.uniform((0,), (), f32, 0.4, 0.9)
    angle = noise.uniform((1,), (), f32, -10.0, 10.0) * (math.pi / 180)
    narrow = noise.uniform((2,), (), f32, 0.75, 1.0)  # seen from the side
    center = noise.uniform((3,), (2,), f32, -1.0, 1.0) * (1 - half)[:, None]
    cos, sin = angle.cos() / half, angle.sin() / half
    turn = torch.stack([torch.stack([cos / narrow, sin / narrow], 1), torch.stack([-sin, cos], 1)], 1)
    where = torch.cat([turn, -turn @ center[:, :, None]], dim=2)
    grid = F.affine_grid(where, [n, 4, side, side], align_corners=False)
    shown = F.grid_sample(sheet, grid, align_corners=False)
    scene = shown[:, :3] + (1 - shown[:, 3:]) * backgrounds(ids, side=side, part=part, seed=own)
    return photographed(scene, noise)


def _stickers(noise: Noise, size: int) -> Tensor:
    """One rectangle on every third face, (n, 1, size, size) bool."""
    some = noise.uniform((20,), (1, 1, 1)) < 1 / 3
    corner = noise.integers((21,), (2, 1, 1, 1), size)
    extent = noise.integers((22,), (2, 1, 1, 1), size // 3) + size // 8
    place = torch.arange(size)
    down, right = place[:, None], place[None, :]
    inside = [(at >= corner[:, k]) & (at < corner[:, k] + extent[:, k]) for k, at in enumerate((down, right))]
    return inside[0] & inside[1] & some


def _layers(kind: int, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One face on a fine grid: colors (3, h, w) that are 0 outside, and the outline (1, h, w)."""
    round_ = (u.square() + v.square()).sqrt()
    octagon, diamond, square = _polygon(u, v, 8, 22.5), _polygon(u, v, 4, 45), torch.maximum(u.abs(), v.abs())
    downward, upward = _polygon(u, v + 0.22, 3, -90), _polygon(u, v - 0.22, 3, 90)
    mark = _bar(u, v - 0.05, 0.07, 0.22) | _bar(u, v - 0.42, 0.07, 0.07)
    painted: list[list[tuple[Tensor, tuple[float, float, float]]]] = [
        [(octagon < 0.92, WHITE), (octagon < 0.84, RED), (_text("STOP", u, v, 0.26, 1.5), WHITE)],
        [(round_ < 0.95, RED), (round_ < 0.72, WHITE), (_text("60", u, v, 0.36, 1.1), BLACK)],
        [(round_ < 0.95, RED), (_bar(u, v, 0.62, 0.15), WHITE)],
        [(downward < 0.55, RED), (downward < 0.36, WHITE)],
        [(upward < 0.55, RED), (upward < 0.36, WHITE), (mark, BLACK)],
        [(diamond < 0.67, WHITE), (diamond < 0.52, YELLOW)],
        [(round_ < 0.95, BLUE), (_bar(u, v - 0.2, 0.1, 0.45), WHITE), (_polygon(u, v + 0.3, 3, 90) < 0.2, WHITE)],
        [(square < 0.85, WHITE), (square < 0.77, BLUE), (_text("P", u, v, 0.55, 0.75), WHITE)],
    ]  # fmt: skip
    face, outline = torch.zeros(3, *u.shape), painted[kind][0][0]
    for where, color in painted[kind]:
        face = torch.where(where, torch.tensor(color)[:, None, None], face)
    return face, outline[None].float()


def _polygon(u: Tensor, v: Tensor, sides: int, first: float) -> Tensor:
    """Less than a where a place is in the regular polygon of apothem a; its first side faces away from ``first``."""
    angles = (torch.arange(sides) * (360 / sides) + first) * (math.pi / 180)
    return torch.stack([a.cos() * u + a.sin() * v for a in angles]).amax(dim=0)


def _bar(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return (u.abs() < half_width) & (v.abs() < half_height)


def _text(text: str, u: Tensor, v: Tensor, half_height: float, width: float) -> Tensor:
    """Letters of three by five squares, with a gap of one between them."""
    cells = 4 * len(text) - 1
    column = ((u / width + 0.5) * cells).floor().long()
    row = ((v / half_height + 1) * 2.5).floor().long()
    inside = (column >= 0) & (column < cells) & (row >= 0) & (row < 5) & (column % 4 < 3)
    bits = torch.tensor([[[int(bit) for bit in _GLYPHS[letter]]] for letter in text]).reshape(len(text), 5, 3)
    letter, place = (column // 4).clamp(0, len(text) - 1), (column % 4).clamp(0, 2)
    return inside & (bits[letter, row.clamp(0, 4), place] == 1)
