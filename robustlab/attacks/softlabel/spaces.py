"""Search spaces of fewer dimensions, in which attacks on scores estimate gradients with fewer queries.

A space is a map A from z (n, m, *shape), m points for each of n samples, to perturbations (n, m, ...). A few random
directions in r dimensions find √(d/r) times as much of the gradient as in d, as far as it lies in the space:

    gradient of z ↦ f(x + A(z)) at 0:  Aᵀ∇f(x),  where A is linear

Source: Tu et al., "AutoZOOM" (2019), for bilinear maps and decoders; Ilyas et al., "Prior convictions" (2019), for
tiles; Nitin Bhagoji et al. (2018), for principal components and random groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.geometry.keyed import Draw, Noise


class Space(Protocol):
    """A map from z (n, m, *shape) to perturbations (n, m, ...)."""

    shape: tuple[int, ...]

    def __call__(self, z: Tensor) -> Tensor:
        """The perturbations."""
        ...


class Resized:
    """Small images made large: bilinear, or tiles of one value each.

    Args:
        height, width: of the small image.
        like: images (n, C, H, W) of the size to make.
        mode: ``"bilinear"`` (AutoZOOM without its decoder) or ``"tiled"`` (the data prior of bandits).
    """

    def __init__(self, height: int, width: int, like: Tensor, mode: Literal["bilinear", "tiled"] = "bilinear") -> None:
        checks.one_of("mode", mode, ("bilinear", "tiled"))
        checks.pictures(like)
        for name, small, large in (("height", height, like.shape[2]), ("width", width, like.shape[3])):
            checks.at_least(name, small, 1, integer=True)
            checks.at_most(name, small, large)
        self.shape: tuple[int, ...] = (like.shape[1], height, width)
        self.size = tuple(like.shape[2:])
        self._tile: Tensor | None = None  # each pixel's tile; told so, tiles are laid ten times as fast on a CPU
        if mode == "bilinear":  # two products with small matrices, a fifth of the time of interpolating the images
            self._down, self._right = (
                F.interpolate(torch.eye(small, dtype=torch.float64)[None], large, mode="linear")[0].T.to(like)
                for small, large in zip((height, width), self.size, strict=True)
            )
        else:
            numbers = torch.arange(height * width, dtype=torch.float64, device=like.device)
            self._tile = F.interpolate(numbers.reshape(1, 1, height, width), self.size, mode="nearest").long().flatten()

    @classmethod
    def of_height(cls, size: int, like: Tensor, name: str = "size") -> Resized:
        """Bilinear, ``size`` pixels high and as wide as the images' shape asks; errors call it by ``name``."""
        checks.pictures(like)
        checks.at_least(name, size, 1, integer=True)
        checks.at_most(name, size, like.shape[2])
        return cls(size, max(1, round(size * like.shape[3] / like.shape[2])), like)

    def __call__(self, z: Tensor) -> Tensor:
        if self._tile is None:
            wide = z.flatten(0, -2) @ self._right.to(z).mT
            large = self._down.to(z) @ wide.reshape(math.prod(z.shape[:3]), self.shape[1], self.size[1])
        else:
            large = z.reshape(-1, self.shape[1] * self.shape[2]).index_select(1, self._tile)
        return large.reshape(*z.shape[:2], self.shape[0], *self.size)


class Decoded:
    """What a decoder makes of codes: any map from (k, *shape) to perturbations (k, ...)."""

    def __init__(self, decoder: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        self.decoder, self.shape = decoder, tuple(shape)

    def __call__(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            made = self.decoder(z.flatten(0, 1))
        return made.reshape(*z.shape[:2], *made.shape[1:])


class Components:
    """The span of the first r principal components of data (N, ...): z holds their r coefficients.

    Raises:
        ValueError: unless 1 ≤ r ≤ min(N − 1, d).
    """

    def __init__(self, data: Tensor, r: int) -> None:
        rows = data.flatten(1)
        checks.at_least("r", r, 1, integer=True)
        checks.at_most("r", r, min(len(rows) - 1, rows.shape[1]))
        self.basis = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False).Vh[:r]  # (r, d), orthonormal
        self.shape: tuple[int, ...] = (r,)
        self._sample = data.shape[1:]

    def __call__(self, z: Tensor) -> Tensor:
        return (z @ self.basis.to(z)).reshape(*z.shape[:2], *self._sample)


class Groups:
    """The elements of each sample, shared out at random among groups of ``size``: all of a group move together.

    Args:
        noise, draw: randomness of the n samples, and its name.
        size: elements in a group, at least 1; the last group may have fewer.
        like: (n, ...).
    """

    def __init__(self, noise: Noise, draw: Draw, size: int, like: Tensor) -> None:
        checks.at_least("size", size, 1, integer=True)
        d = like.shape[1:].numel()
        order = noise.permutation(draw, d)
        places = (torch.arange(d, device=order.device) // size).expand_as(order)
        self.group = torch.empty_like(order).scatter_(1, order, places)  # (n, d), of each element
        self.shape: tuple[int, ...] = (-(-d // size),)
        self._sample = like.shape[1:]

    def __call__(self, z: Tensor) -> Tensor:
        index = self.group[:, None].expand(-1, z.shape[1], -1)
        return z.gather(2, index).reshape(*z.shape[:2], *self._sample)
