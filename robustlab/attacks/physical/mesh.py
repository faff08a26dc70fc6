"""A textured mesh before a pinhole camera, differentiable in its texture.

The geometry is fixed. So a pose alone decides which place of the texture each pixel shows, and how much light falls
there: it gives a sampling grid, a cover and a shade, through which a texture's gradient passes as through any bilinear
look-up. There is no gradient in the pose or the shape, and none is needed. Of several triangles behind one pixel the
nearest is seen; textures are interpolated in perspective: not (u, v) but (u, v)/depth is affine on the screen.

The camera looks along −z from the origin; the object stands at (0, 0, −distance) and has about radius 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustlab.attacks.physical.optics import looked_up, places


@dataclass(frozen=True)
class Mesh:
    """Triangles in space, and where each of their corners lies on the texture.

    Attributes:
        corners: (F, 3, 3), three corners of each triangle, counterclockwise as seen from outside.
        uv: (F, 3, 2), their places on the texture, in units of half of it.
    """

    corners: Tensor
    uv: Tensor

    def __post_init__(self) -> None:
        count = len(self.corners)
        if self.corners.shape != (count, 3, 3) or not count:
            raise ValueError(f"corners: want (F, 3, 3) with at least one triangle, got {tuple(self.corners.shape)}")
        if self.uv.shape != (count, 3, 2):
            raise ValueError(f"uv: want ({count}, 3, 2), got {tuple(self.uv.shape)}")
        for name, value in (("corners", self.corners), ("uv", self.uv)):
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name}: want finite values, got NaN or infinity")


class Seen(NamedTuple):
    """What n poses show: places on the texture (n, H, W, 2), cover and shade (n, 1, H, W)."""

    where: Tensor
    cover: Tensor
    shade: Tensor


def sphere(rows: int = 6, columns: int = 12) -> Mesh:
    """A ball of radius 1, cut along meridians and parallels; the texture is its map by longitude and latitude."""
    down = torch.linspace(0, math.pi, rows + 1, dtype=torch.float64)
    round_ = torch.linspace(-math.pi, math.pi, columns + 1, dtype=torch.float64)
    polar, around = torch.meshgrid(down, round_, indexing="ij")
    points = torch.stack([polar.sin() * around.sin(), polar.cos(), polar.sin() * around.cos()], dim=-1)
    uv = torch.stack([around / math.pi, polar * (2 / math.pi) - 1], dim=-1)
    return _of_quads(points, uv)


def cylinder(columns: int = 16, *, height: float = 1.6, radius: float = 0.8) -> Mesh:
    """The side of an upright can, around which the texture is wrapped as a label."""
    around = torch.linspace(-math.pi, math.pi, columns + 1, dtype=torch.float64).expand(2, -1)
    up = torch.tensor([[height / 2], [-height / 2]], dtype=torch.float64).expand_as(around)
    points = torch.stack([radius * around.sin(), up, radius * around.cos()], dim=-1)
    return _of_quads(points, torch.stack([around / math.pi, -2 * up / height], dim=-1))


def box() -> Mesh:
    """A cube of edge √2, whose six sides lie in two rows of three on the texture."""
    half = 2**-0.5
    square = torch.tensor([[[-1.0, 1, 1], [1, 1, 1]], [[-1, -1, 1], [1, -1, 1]]], dtype=torch.float64) * half
    turns = [_turn(float(a), float(b), 0.0) for a, b in ((0, 0), (90, 0), (180, 0), (270, 0), (0, 90), (0, -90))]
    sides = []
    for k, turn in enumerate(turns):
        left, top = (k % 3) * (2 / 3) - 1, (k // 3) - 1.0
        edges = torch.tensor([[[left, top], [left + 2 / 3, top]], [[left, top + 1], [left + 2 / 3, top + 1]]])
        sides.append(_of_quads(square @ turn.T, edges.double()))
    return Mesh(torch.cat([side.corners for side in sides]), torch.cat([side.uv for side in sides]))


def sheet() -> Mesh:
    """A square of edge 2 that faces the camera: a poster."""
    points = torch.tensor([[[-1.0, 1, 0], [1, 1, 0]], [[-1, -1, 0], [1, -1, 0]]], dtype=torch.float64)
    return _of_quads(points, torch.tensor([[[-1.0, -1], [1, -1]], [[-1, 1], [1, 1]]], dtype=torch.float64))


def rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """Rotations (n, 3, 3) from degrees (n,): about the upright axis first, then to the camera, then in the image."""
    a, b, c = (angle * (math.pi / 180) for angle in (yaw, pitch, roll))
    one, zero = torch.ones_like(a), torch.zeros_like(a)

    def matrix(*numbers: Tensor) -> Tensor:
        return torch.stack(numbers, dim=-1).reshape(-1, 3, 3)

    about_y = matrix(a.cos(), zero, a.sin(), zero, one, zero, -a.sin(), zero, a.cos())
    about_x = matrix(one, zero, zero, zero, b.cos(), -b.sin(), zero, b.sin(), b.cos())
    about_z = matrix(c.cos(), -c.sin(), zero, c.sin(), c.cos(), zero, zero, zero, one)
    return about_z @ about_x @ about_y


def seen(
    mesh: Mesh, turn: Tensor, distance: Tensor, shift: Tensor, size: tuple[int, int], *, focal: float = 3.0,
    ambient: float = 0.5,
) -> Seen:  # fmt: skip
    """What the camera sees of the mesh in n poses.

    Args:
        mesh: the object.
        turn: (n, 3, 3), rotations.
        distance: (n,), of the object's center from the camera; no corner may be behind the camera.
        shift: (n, 2), of the center on the screen, to the right and down, in units of half the image.
        size: (H, W) of the image.
        focal: a length 1 at distance d takes focal/d halves of the image.
        ambient: share of the light that comes from everywhere; the rest comes from the camera.

    Returns:
        Seen. Work and memory are n·F·H·W.
    """
    like = turn
    corner = torch.einsum("nij,fcj->nfci", turn, mesh.corners.to(like))
    depth = distance[:, None, None] - corner[..., 2]  # (n, F, 3), in front of the camera
    screen = torch.stack([corner[..., 0], -corner[..., 1]], dim=-1) * (focal / depth[..., None])
    screen = screen + shift[:, None, None]
    a, b, c = screen.unbind(2)  # (n, F, 2), clockwise on a screen that goes down
    area = _cross(b - a, c - a)
    pixel = places(*size, like).reshape(1, 1, -1, 2)
    weights = torch.stack(
        [_edge(b, c, pixel), _edge(c, a, pixel), _edge(a, b, pixel)], dim=2
    ) / torch.where(area < 0, area, torch.inf)[:, :, None, None]  # fmt: skip
    # Both ends of an edge count as inside, up to rounding, so that no pixel falls between two triangles.
    slack = -1e-6 if like.dtype == torch.float32 else -1e-12
    inside = (weights.amin(dim=2) >= slack) & (area < 0)[:, :, None]
    nearness = (weights / depth[..., None]).sum(dim=2)  # 1/depth is affine on the screen, (n, F, H·W)
    front, which = nearness.masked_fill(~inside, 0.0).max(dim=1)  # (n, H·W)
    index = which[:, None, None].expand(-1, 1, 3, -1)
    share = weights.gather(1, index)[:, 0]  # (n, 3, H·W)
    over_depth = share / depth.gather(1, which[:, :, None].expand(-1, -1, 3)).mT
    uv = mesh.uv.to(like)[which]  # (n, H·W, 3, 2)
    where = torch.einsum("nkp,npkd->npd", over_depth, uv) / front.clamp_min(1e-9)[..., None]
    covered = inside.any(dim=1)
    normal = torch.linalg.cross(corner[:, :, 1] - corner[:, :, 0], corner[:, :, 2] - corner[:, :, 0])
    facing = (normal[..., 2] / torch.linalg.vector_norm(normal, dim=-1).clamp_min(1e-12)).clamp(0, 1)
    shade = ambient + (1 - ambient) * facing.gather(1, which)
    n, (height, width) = len(turn), size
    return Seen(
        torch.where(covered[..., None], where, 0.0).reshape(n, height, width, 2),
        covered.to(like).reshape(n, 1, height, width),
        shade.reshape(n, 1, height, width),
    )


def textured(texture: Tensor, view: Seen) -> Tensor:
    """The texture (C, h, w) on the object: (n, C, H, W), 0 beside it. Differentiable in the texture."""
    n = len(view.where)
    return looked_up(texture.expand(n, *texture.shape), view.where, edge=True) * view.shade * view.cover


def _turn(yaw: float, pitch: float, roll: float) -> Tensor:
    angles = (torch.tensor([angle], dtype=torch.float64) for angle in (yaw, pitch, roll))
    return rotation(*angles)[0]


def _of_quads(points: Tensor, uv: Tensor) -> Mesh:
    """Two triangles for each cell of a grid of points (r, c, 3), without those that have no area."""

    def cut(grid: Tensor) -> Tensor:
        a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
        first, second = torch.stack([a, d, c], dim=2), torch.stack([a, c, b], dim=2)
        return torch.cat([first.flatten(0, 1), second.flatten(0, 1)])

    corners, flat = cut(points), cut(uv)
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    real = torch.linalg.vector_norm(normal, dim=1) > 1e-9
    return Mesh(corners[real], flat[real])


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _edge(start: Tensor, end: Tensor, pixel: Tensor) -> Tensor:
    """Twice the signed area of (start, end, pixel): (n, F, H·W)."""
    return _cross((end - start)[:, :, None], pixel - start[:, :, None])
