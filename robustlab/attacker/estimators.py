"""Gradients from values alone: the estimators that black-box methods share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustlab import checks


def sphere_directions(normal: Tensor) -> Tensor:
    """Standard normal rows (q, d) put onto the unit sphere, on which they are then uniform."""
    return normal / normal.norm(dim=1, keepdim=True)


def forward_difference(values: Callable[[Tensor], Tensor], x: Tensor, *, directions: Tensor, mu: float) -> Tensor:
    """The gradient of a scalar function by forward differences along random unit directions.

        ĝ = 1/q Σ_i  d/μ · (f(x + μ u_i) − f(x)) · u_i,   u_i uniform on the unit sphere of R^d

    On a quadratic its expectation is the gradient exactly, for any μ. In general it is the gradient of f averaged over
    the ball of radius μ about x. Where f is linear on that scale and q is small beside d, the cosine between ĝ and the
    gradient is near √(q/(q + d − 1)).

    Args:
        values: f, from points (k, d) to their values (k,), better in float64: their differences are small.
        x: the point, (d,).
        directions: the u_i, (q, d), rows of length 1; see :func:`sphere_directions`.
        mu: μ, the step of the differences, in units of x, above 0.

    Returns:
        ĝ, (d,), for q + 1 values of f.

    Raises:
        ValueError: for shapes that do not fit, or μ ≤ 0.

    Source:
        Liu et al., "Min-max optimization without gradients" (2020): its random gradient estimator.
    """
    checks.positive("mu", mu)
    if x.dim() != 1 or directions.dim() != 2 or directions.shape[1] != len(x) or not len(directions):
        raise ValueError(f"directions: want shape (q, {x.numel()}), got {tuple(directions.shape)}")
    found = values(torch.cat([x[None], x + mu * directions]))
    slopes = (found[1:] - found[0]) * (len(x) / mu)
    return slopes.to(directions.dtype) @ directions / len(directions)
