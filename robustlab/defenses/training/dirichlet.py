"""Dirichlet distributed rows that are a differentiable function of their concentrations.

With independent gamma variables g_k of shapes α_k, g / Σ g is Dirichlet(α). Each is made of two uniform numbers,

    log g_k = log Q(α_k + 1, u_k) + log(v_k)/α_k

where Q(a, ·) is the quantile function of the gamma distribution of shape a, and v^(1/α) takes the shape down by one. In
logarithms nothing underflows, however small α_k > 0 is, and for given u and v all is smooth in α: a gradient through it
is one of the expectation (reparameterization).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustlab.geometry.keyed import Noise

NEWTON_STEPS = 6


def dirichlet(concentration: Tensor, noise: Noise, draw: int) -> Tensor:
    """One row of Dirichlet(α_i) for each sample.

    Args:
        concentration: α, (N, K), above 0.
        noise: of the N samples.
        draw: which draw.

    Returns:
        (N, K), each row of sum 1, in the dtype of the concentration.
    """
    alpha, shape = concentration.double(), concentration.shape[1:]
    u, v = (noise.uniform((draw, part), shape, torch.float64) for part in (0, 1))
    log_gamma = _LogQuantile.apply(alpha + 1, u) + v.log() / alpha
    return log_gamma.softmax(dim=1).to(concentration)


class _LogQuantile(torch.autograd.Function):
    """log Q(a, u) for a ≥ 1, with its derivative in a by the implicit function theorem: P(a, Q(a, u)) = u."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, u: Tensor) -> Tensor:
        """Newton's method on the logarithm of the smaller tail, which is concave in t = log x: no step goes astray."""
        low = (u.log() + torch.lgamma(a + 1)) / a  # P(a, x) ≤ x^a / Γ(a + 1)
        wilson_hilferty = 1 - 1 / (9 * a) + torch.special.ndtri(u) / (3 * a.sqrt())
        t, upper = torch.maximum(low, a.log() + 3 * wilson_hilferty.clamp_min(1e-3).log()), u > 0.5
        goal = torch.where(upper, 1 - u, u).log()
        for _ in range(NEWTON_STEPS):
            x = t.exp()
            tail = torch.where(upper, torch.special.gammaincc(a, x), torch.special.gammainc(a, x)).clamp_min(1e-300)
            slope = torch.where(upper, -1.0, 1.0) * (_density(a, t) / tail).clamp_min(1e-300)
            t = torch.maximum(low, t - (tail.log() - goal) / slope)
        ctx.save_for_backward(a, t, upper)
        return t

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, t, upper = ctx.saved_tensors
        step, x = 1e-5 * a, t.exp()
        lower_rise = torch.special.gammainc(a + step, x) - torch.special.gammainc(a - step, x)
        upper_fall = torch.special.gammaincc(a - step, x) - torch.special.gammaincc(a + step, x)
        rise = torch.where(upper, upper_fall, lower_rise) / (2 * step)
        return -grad * rise / _density(a, t).clamp_min(1e-300), None


def _density(a: Tensor, t: Tensor) -> Tensor:
    """∂P(a, eᵗ)/∂t."""
    return (a * t - t.exp() - torch.lgamma(a)).exp()
