"""The largest eigenvalues of many symmetric matrices: all of them where that is cheap, by Lanczos's iteration else.

A Ritz value never lies above the largest eigenvalue, so what Lanczos finds guides a search and proves nothing.

Source: Lanczos, "An iteration method for the solution of the eigenvalue problem of linear differential and integral
operators" (1950), with every new vector made orthogonal to all before it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SMALL = 128
"""Up to this size all eigenvalues are computed."""


def first_guess(like: Tensor, rows: int, size: int) -> Tensor:
    """Unit vectors (R, D) without a pattern that a matrix might share; no random numbers."""
    place = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
    guess = 1 + (place.square() * 0.7).cos()
    return (guess / torch.linalg.vector_norm(guess)).expand(rows, size)


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The largest Ritz value (R,) and its vector (R, D) after some products with R symmetric matrices.

    Args:
        product: (R, D) → (R, D), row by row the matrix times the vector.
        start: (R, D), not 0.
        steps: products, at least 1; after D of them the value is exact but for rounding.
    """
    tiny = torch.finfo(start.dtype).tiny
    vector, basis, diagonal, beside = start, [], [], []
    vector = vector / torch.linalg.vector_norm(vector, dim=1, keepdim=True).clamp_min(tiny)
    size = None
    for _ in range(min(steps, start.shape[1])):
        basis.append(vector)
        image = product(vector)
        size = torch.linalg.vector_norm(image, dim=1) if size is None else size
        diagonal.append(torch.linalg.vecdot(vector, image))
        all_of = torch.stack(basis, dim=2)
        for _ in range(2):  # twice is enough
            image = image - (all_of @ (all_of.mT @ image[:, :, None]))[..., 0]
        length = torch.linalg.vector_norm(image, dim=1)
        over = length <= torch.finfo(start.dtype).eps ** 0.5 * size.clamp_min(tiny)  # what is left is rounding
        length = torch.where(over, 0.0, length)
        vector = torch.where(over[:, None], 0.0, image / length.clamp_min(tiny)[:, None])
        beside.append(length)
    alpha = torch.stack(diagonal, dim=1)
    dead = torch.stack(basis, dim=2).square().sum(dim=1) < 0.5  # the space was exhausted: such a value must not win
    alpha = torch.where(dead, alpha.amin(dim=1, keepdim=True) - alpha.abs().amax(dim=1, keepdim=True) - 1, alpha)
    off = torch.stack(beside, dim=1)[:, :-1]
    small = torch.diag_embed(alpha) + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
    values, inside = torch.linalg.eigh(small)
    found = (torch.stack(basis, dim=2) @ inside[:, :, -1:])[..., 0]
    return values[:, -1], found / torch.linalg.vector_norm(found, dim=1, keepdim=True).clamp_min(tiny)


def top_eigenvectors(matrix: Tensor, *, start: Tensor | None = None, steps: int = 20) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (R,) of each of R matrices, and its unit vector (R, D); of large ones, by Lanczos."""
    rows, size = matrix.shape[:2]
    if size <= SMALL:
        values, vectors = torch.linalg.eigh(matrix)
        return values[:, -1], vectors[:, :, -1]
    begin = first_guess(matrix, rows, size)
    begin = begin if start is None else start + 0.01 * begin
    return lanczos(lambda u: (matrix @ u[..., None])[..., 0], begin, steps)
