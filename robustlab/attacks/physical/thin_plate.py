"""Thin-plate splines: the smoothest deformation of a sheet that takes control points where they were seen.

Bookstein, "Principal warps: thin-plate splines and the decomposition of deformations" (1989). Of all functions f of the
plane with f(p_i) = v_i at m control points, the one of least bending ∫ f_uu² + 2 f_uv² + f_vv² is

    f(p) = a + ⟨b, p⟩ + Σ_i w_i·φ(‖p − p_i‖),   φ(r) = r²·log r,   Σ_i w_i = 0,  Σ_i w_i·p_i = 0

whose m + 3 numbers solve one linear system. Two such functions, one for each coordinate, deform an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacks.physical.optics import looked_up, places


def spline(points: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """The thin-plate spline through control points, at other places.

    Args:
        points: (n, m, 2), at least three and not on one line.
        values: (n, m, k), what f is at each of them.
        at: (n, q, 2).

    Returns:
        (n, q, k), differentiable in all three; at a control point its value, up to rounding.

    Raises:
        ValueError: for other shapes, or fewer than three points.
    """
    n, m = points.shape[:2]
    if points.dim() != 3 or points.shape[2] != 2 or m < 3:
        raise ValueError(f"points: want (n, m, 2) with at least three control points, got {tuple(points.shape)}")
    if values.dim() != 3 or values.shape[:2] != (n, m):
        raise ValueError(f"values: want ({n}, {m}, k), got {tuple(values.shape)}")
    flat = torch.cat([torch.ones_like(points[..., :1]), points], dim=-1)  # (n, m, 3)
    system = torch.cat(
        [
            torch.cat([_bending(points, points), flat], dim=2),
            torch.cat([flat.mT, flat.new_zeros(n, 3, 3)], dim=2),
        ],
        dim=1,
    )
    numbers = torch.linalg.solve(system, torch.cat([values, values.new_zeros(n, 3, values.shape[2])], dim=1))
    basis = torch.cat([_bending(at, points), torch.ones_like(at[..., :1]), at], dim=2)
    return basis @ numbers


def deformed(images: Tensor, seen: Tensor, meant: Tensor) -> Tensor:
    """The images (n, C, H, W) on a sheet whose control points ``meant`` (n, m, 2) are seen at ``seen`` (n, m, 2).

    A pixel of the result is looked up where the spline from ``seen`` to ``meant`` sends it; outside is 0.
    """
    n, _, height, width = images.shape
    where = places(height, width, images).reshape(1, -1, 2).expand(n, -1, -1)
    return looked_up(images, spline(seen, meant, where).reshape(n, height, width, 2))


def _bending(a: Tensor, b: Tensor) -> Tensor:
    """φ(‖a_i − b_j‖) = r²·log r, (n, q, m); 0 where r = 0."""
    square = (a[:, :, None] - b[:, None]).square().sum(dim=-1)
    return 0.5 * torch.xlogy(square, torch.where(square > 0, square, 1.0))
