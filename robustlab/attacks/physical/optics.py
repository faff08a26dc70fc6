"""What happens between a printed color and a pixel: perspective, light, blur and noise, all differentiable.

Places are in units of half the image: (−1, −1) is the outer corner at the top left, (1, 1) that at the bottom right,
and the first coordinate goes to the right. Every image of a batch has parameters of its own, so that one pass serves
all. This is a simulation of our own scope: it stands in for print and camera, and replaces neither.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab.attacker.domain import Bound


def places(height: int, width: int, like: Tensor) -> Tensor:
    """The centers of the pixels, (H, W, 2)."""
    down = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * (2 / height) - 1
    right = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(down, right, indexing="ij")[::-1], dim=-1)


def corners(like: Tensor) -> Tensor:
    """The corners of an image, (4, 2), clockwise from the top left."""
    return like.new_tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def homography(start: Tensor, end: Tensor) -> Tensor:
    """The plane projections (n, 3, 3) that take four places ``start`` (n, 4, 2) to ``end`` (n, 4, 2).

        (u, v) ↦ ( (a·u + b·v + c) / (g·u + h·v + 1), (d·u + e·v + f) / (g·u + h·v + 1) )

    The eight numbers solve eight linear equations, two for each place.
    """
    u, v = start.unbind(-1)
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    to_right, to_down = end.unbind(-1)
    rows = torch.cat(
        [
            torch.stack([u, v, one, zero, zero, zero, -u * to_right, -v * to_right], dim=-1),
            torch.stack([zero, zero, zero, u, v, one, -u * to_down, -v * to_down], dim=-1),
        ],
        dim=1,
    )
    numbers = torch.linalg.solve(rows, torch.cat([to_right, to_down], dim=1))
    return torch.cat([numbers, torch.ones_like(numbers[:, :1])], dim=1).reshape(-1, 3, 3)


def project(matrix: Tensor, where: Tensor) -> Tensor:
    """Places (H, W, 2) after the projections ``matrix`` (n, 3, 3): (n, H, W, 2)."""
    whole = torch.cat([where, torch.ones_like(where[..., :1])], dim=-1)
    moved = torch.einsum("nij,hwj->nhwi", matrix, whole)
    return moved[..., :2] / moved[..., 2:]


def looked_up(images: Tensor, where: Tensor, *, edge: bool = False) -> Tensor:
    """The images (n, C, H, W) at places (n, h, w, 2), bilinear: (n, C, h, w).

    What lies outside is 0, or with ``edge`` the nearest pixel of the image.
    """
    padding = "border" if edge else "zeros"
    return F.grid_sample(images, where, mode="bilinear", padding_mode=padding, align_corners=False)


def perspective(images: Tensor, moved: Tensor) -> Tensor:
    """The images as planes whose four corners appear at ``moved`` (n, 4, 2); the surroundings go on as at the edge."""
    back = homography(moved, corners(images).expand_as(moved))
    return looked_up(images, project(back, places(images.shape[2], images.shape[3], images)), edge=True)


def light(images: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """gain·x + offset, one of each (n,) per image: contrast and brightness. Not clipped."""
    return images * gain[:, None, None, None] + offset[:, None, None, None]


def blur(images: Tensor, sigma: Tensor, reach: int = 3) -> Tensor:
    """Gaussian blur with a width σ (n,) ≥ 0 in pixels of each image's own, over ``reach`` pixels to each side.

    The weights are those of the normal density at whole pixels, divided by their sum; σ = 0 changes nothing.
    """
    n, channels, height, width = images.shape
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = F.pad(images, (reach,) * 4, mode="replicate").reshape(1, n * channels, height + 2 * reach, -1)
    flat = F.conv2d(flat, weights[:, None, :, None], groups=n * channels)
    return F.conv2d(flat, weights[:, None, None, :], groups=n * channels).reshape(n, channels, height, width)


def in_box(images: Tensor, low: Bound = 0.0, high: Bound = 1.0) -> Tensor:
    """Clipped, as a sensor saturates: what is outside has no gradient."""
    return images.clamp(low, high)  # type: ignore[arg-type]
