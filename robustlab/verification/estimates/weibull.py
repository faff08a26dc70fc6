"""Fitting the reverse Weibull distribution, the law of maxima of bounded random numbers.

By the theorem of Fisher, Tippett and Gnedenko, the maximum of many independent draws of a number that is bounded above
follows, if it has a limit law at all, suitably scaled,

    G(v) = exp(−((a − v)/b)^c)  for v < a,   1 from there on

with location a, scale b > 0 and shape c > 0. The location is the number's upper end, so an estimate of a from a few
maxima looks beyond the largest value that was ever seen.

The likelihood is maximized here one parameter at a time. For given a, the numbers t = a − v follow the Weibull law of
two parameters, whose likelihood has one maximum: the root of an increasing function of c gives the shape, and
b^c = mean(t^c) the scale. What is left is a curve in a alone: a grid in log(a − max v), then golden sections.

Three parameters have two traps. For c < 1 the likelihood grows without limit as a falls to the largest value; shapes
are therefore held at c ≥ 1 (where maxima crowd at the end like that, the largest of them is a good estimate already).
And for large c the law is close to Gumbel's, which has no end: the likelihood is nearly flat in a, and its maximum may
lie anywhere, or at infinity. A small penalty on c² keeps it finite; the authors of CLEVER have one in their code.

Source: Fisher and Tippett, "Limiting forms of the frequency distribution of the largest or smallest member of a sample"
(1928); Smith, "Maximum likelihood estimation in a class of nonregular cases" (1985), for the traps; Stephens, "EDF
statistics for goodness of fit and some comparisons" (1974), for the correction in the test.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustlab import checks

_LOW, _HIGH, _GRID = -12.0, math.log(50.0), 40  # the grid of log((a − max v) / (max v − min v))
_GOLDEN = (math.sqrt(5.0) - 1) / 2


class ReverseWeibull(NamedTuple):
    """A fit to each row: five tensors of one shape, float64 and bool.

    Attributes:
        location: a, the estimated upper end.
        scale: b.
        shape: c.
        p_value: of the Kolmogorov–Smirnov test of the fit; a small one speaks against it.
        exists: False where the values are all equal, up to rounding, or the likelihood grows for ever with a. There
            the location is the largest value, the p-value 0, scale and shape NaN.
    """

    location: Tensor
    scale: Tensor
    shape: Tensor
    p_value: Tensor
    exists: Tensor


def fit_reverse_weibull(values: Tensor, *, penalty: float = 0.01) -> ReverseWeibull:
    """Maximum-likelihood fit of the reverse Weibull distribution to each row.

        maximize Σ_i [log c − c·log b + (c − 1)·log(a − v_i) − ((a − v_i)/b)^c] − penalty·c²
        over a > max v, b > 0, c ≥ 1

    The p-value takes the fitted law for a given one, as in the paper of CLEVER, so it is on the generous side.

    Args:
        values: (..., n), n ≥ 2, finite.
        penalty: ≥ 0; 0 gives the plain likelihood.

    Returns:
        ReverseWeibull of shape (...), in float64.

    Raises:
        ValueError, TypeError: for fewer than 2 values in a row, values that are not finite, or a penalty below 0.
    """
    checks.at_least("penalty", penalty, 0.0)
    if values.dim() < 1 or values.shape[-1] < 2:
        raise ValueError(f"values: want at least 2 in each row, got shape {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise ValueError("values: want finite numbers, got NaN or infinity")
    rounding = 100 * torch.finfo(values.dtype).eps
    rows = values.detach().double().reshape(-1, values.shape[-1]).sort(dim=1).values
    top = rows[:, -1:]
    width = top - rows[:, :1]
    spread = (width > rounding * top.abs()).squeeze(1)
    width = torch.where(spread[:, None], width, 1.0)
    depth = (top - rows) / width  # in [0, 1], 0 at the largest
    gap, shape, endless = _best_gap(depth, 2 * penalty / values.shape[-1])
    exists = spread & ~endless
    scale = _mean_power(depth + gap, shape)
    p = _p_value(torch.exp(-(((depth + gap) / scale) ** shape)))
    found = [top + width * gap, width * scale, shape]
    location, scale, shape = (part.squeeze(1) for part in found)
    location = torch.where(exists, location, top.squeeze(1))
    scale, shape = (torch.where(exists, part, torch.nan) for part in (scale, shape))
    out = (location, scale, shape, torch.where(exists, p, 0.0), exists)
    return ReverseWeibull(*(part.reshape(values.shape[:-1]) for part in out))


def _best_gap(depth: Tensor, pull: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gap e^τ between the largest value and a that is likeliest, its shape, and whether τ ran to the end."""
    grid = torch.linspace(_LOW, _HIGH, _GRID, dtype=depth.dtype, device=depth.device)
    best = _values(depth, grid[:, None].expand(-1, len(depth)), pull).argmax(dim=0)
    low, high = grid[(best - 1).clamp_min(0)], grid[(best + 1).clamp_max(_GRID - 1)]
    for _ in range(30):
        between = torch.stack([high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)])
        left, right = _values(depth, between, pull)
        low, high = torch.where(left < right, between[0], low), torch.where(left < right, high, between[1])
    tau = (low + high) / 2
    return tau.exp()[:, None], _profile(depth, tau, pull)[1], tau > _HIGH - 1e-3


def _values(depth: Tensor, tau: Tensor, pull: float) -> Tensor:
    """The profile at several τ for each row, (T, M); rows are taken in parts to bound the memory."""
    rows = depth.split(max(1, 2**22 // (len(tau) * depth.shape[1])))
    columns = tau.split([len(part) for part in rows], dim=1)
    found = [
        _profile(part.repeat(len(tau), 1), column.flatten(), pull)[0].reshape(len(tau), -1)
        for part, column in zip(rows, columns, strict=True)
    ]
    return torch.cat(found, dim=1)


def _profile(depth: Tensor, tau: Tensor, pull: float) -> tuple[Tensor, Tensor]:
    """Log-likelihood a value less pull/2·c², (M,), at the best scale and shape, and that shape, (M, 1)."""
    log_t = (depth + tau.exp().reshape(-1, 1)).log()
    mean = log_t.mean(dim=1, keepdim=True)
    top = log_t.amax(dim=1, keepdim=True)
    shape = math.pi / math.sqrt(6.0) / log_t.std(dim=1, keepdim=True).clamp_min(1e-12)  # moments' estimate, to start
    for _ in range(8):  # Newton on  Σ t^c log t / Σ t^c − mean log t − 1/c + pull·c, which increases in c
        weight = (shape * (log_t - top)).exp_()
        total = weight.sum(dim=1, keepdim=True)
        first = (weight * log_t).sum(dim=1, keepdim=True) / total
        second = (weight * (log_t - first).square()).sum(dim=1, keepdim=True) / total
        step = (first - mean - 1 / shape + pull * shape) / (second + shape.square().reciprocal() + pull)
        shape = torch.minimum(torch.maximum(shape - step, shape / 3), shape * 3)
    shape = shape.clamp_min(1.0)
    log_power = torch.logsumexp(shape * log_t, dim=1, keepdim=True) - math.log(depth.shape[1])
    value = shape.log() - log_power + (shape - 1) * mean - 1 - pull / 2 * shape.square()
    return value.squeeze(1), shape


def _mean_power(t: Tensor, shape: Tensor) -> Tensor:
    """mean(t^c)^(1/c), (M, 1)."""
    top = t.amax(dim=1, keepdim=True)
    return top * ((t / top) ** shape).mean(dim=1, keepdim=True) ** (1 / shape)


def _p_value(cdf: Tensor) -> Tensor:
    """Kolmogorov's limit law, with Stephens' correction for small n; ``cdf`` is the fit's at the sorted values."""
    n = cdf.shape[1]
    steps = torch.arange(n + 1, dtype=cdf.dtype, device=cdf.device) / n
    distance = torch.maximum((steps[1:] - cdf).amax(dim=1), (cdf - steps[:-1]).amax(dim=1))
    z = distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    k = torch.arange(1, 41, dtype=cdf.dtype, device=cdf.device)
    tail = 2 * ((-1) ** (k - 1) * torch.exp(-2 * (k * z[:, None]) ** 2)).sum(dim=1)
    return torch.where(z < 0.2, 1.0, tail).clamp(0.0, 1.0)  # the series needs many terms at small z
