"""What a printer can do: a palette, the non-printability score, total variation, and the print itself.

Sharif, Bhagavatula, Bauer and Reiter, "Accessorize to a crime" (2016), section 5. A printer has a finite palette P, and
a color p̂ that is far from all of P cannot be printed:

    NPS(p̂) = Π_{p ∈ P} ‖p̂ − p‖₂        TV(r) = Σ_{i,j} ( (r_{i,j} − r_{i+1,j})² + (r_{i,j} − r_{i,j+1})² )^½

The score of a texture is the sum over its pixels. It is 0 where every pixel has a color of the palette.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks


def printable_colors(levels: int = 3, *, low: float = 0.1, high: float = 0.9, channels: int = 3) -> Tensor:
    """A palette (levelsᶜ, C) of evenly spaced inks between ``low`` and ``high``: printers reach neither end.

    Raises:
        ValueError: for fewer than two levels, or ends that are no colors in this order.
    """
    checks.at_least("levels", levels, 2, integer=True)
    if not 0 <= low < high <= 1:
        raise ValueError(f"low, high: want 0 ≤ low < high ≤ 1, got {low} and {high}")
    steps = torch.linspace(low, high, levels)
    return torch.cartesian_prod(*[steps] * channels).reshape(-1, channels)


def non_printability(texture: Tensor, mask: Tensor, colors: Tensor) -> Tensor:
    """NPS, a number: the product of distances to the colors (P, C), summed over the pixels of the mask (1, H, W)."""
    pixels = texture.flatten(1).T[mask.flatten()]
    distances = torch.linalg.vector_norm(pixels[:, None] - colors[None], dim=-1)  # its slope at 0 is 0, not NaN
    return distances.prod(dim=1).sum()


def total_variation(texture: Tensor, mask: Tensor) -> Tensor:
    """TV, a number; a difference counts where both of its pixels are in the mask, and colors are one vector."""
    inside = mask.to(texture)
    down, right = torch.zeros_like(texture), torch.zeros_like(texture)
    down[:, :-1] = (texture[:, :-1] - texture[:, 1:]) * (inside[:, :-1] * inside[:, 1:])
    right[:, :, :-1] = (texture[:, :, :-1] - texture[:, :, 1:]) * (inside[:, :, :-1] * inside[:, :, 1:])
    return torch.linalg.vector_norm(torch.cat([down, right]), dim=0).sum()


def printed(texture: Tensor, mask: Tensor, colors: Tensor | None) -> Tensor:
    """Each pixel of the mask in the nearest color of the palette, 0 outside; None prints every color of [0, 1]."""
    if colors is None:
        return texture.clamp(0, 1) * mask
    pixels = texture.flatten(1).T
    return colors[torch.cdist(pixels, colors).argmin(dim=1)].T.reshape(texture.shape) * mask
