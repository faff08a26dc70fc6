"""Smoothing certified by the vote's probability and its gradient.

Mohapatra, Ko, Weng, Chen, Liu and Daniel, "Higher-order certification for randomized smoothing" (2020). The same draws
that estimate p = P(model(x + σε) = k) estimate its gradient, μ/σ with μ = E[ε·1(model(x + σε) = k)]. Two classifiers of
the same p may have different gradients, and the worst one for Cohen et al., a half-space, has the largest there is,
φ(Φ⁻¹(p)). So a smaller one excludes it.

Among all classifiers with the derivative −g along a unit vector u the one that loses its votes first when x moves
along u answers k in a slab, c₁ ≤ ⟨u, ε⟩ ≤ c₂, by the lemma of Neyman and Pearson with one more multiplier, and R
follows from

    Φ(c₂) − Φ(c₁) = p,   φ(c₂) − φ(c₁) = g,   Φ(c₂ − R) − Φ(c₁ − R) = ½

R falls in g and rises in p, as the multipliers of both have one sign for p ≥ ½: so a lower bound of p and an upper one
of g certify. No direction has a steeper fall than ‖μ‖₂, which gives the radius in ℓ2; restricted to a subspace, the
part of μ in it counts alone. A vector δ of ‖δ‖_q ≤ r has a length and a derivative that exchange: at a share s of the
length, the fall is s times as steep, and s·R(p, s·G) rises with s, since the worst classifier of one is, seen from an
inclined direction, one that the other allows. So the extreme directions decide: ℓ1 has R(p, ‖μ‖_∞), the axes, and ℓ∞
has R(p, ‖μ‖₁/√d)/√d, the diagonals.

The gradient is bounded from the draws. Any ε_j·1(...) is sub-Gaussian of proxy variance 1.2 around its mean (the worst
set of answers leaves out an interval next to 0; the supremum over it is 1.1945), as is any projection of ε. With the
draws in two halves, of means X and Y, this gives for ‖μ‖₂, at α/4 for each of two events,

    ⟨X, Y⟩ ≥ ‖μ‖² − b·‖μ‖ − a·‖Y‖,     a, b = √(2·1.2·log(4/α)/n_X), the same with n_Y

where the square of a single mean would carry d/n. Levine, Kumar, Goldstein and Feizi (2020) show by the same slab,
as a tight bound, that the gain is small.

Different here: the estimator above stands for the authors', and their second-order terms are lacking; α is shared in
halves between p and the gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.defenses.certified.smoothing.votes import (
    Listener,
    Smoothed,
    certificate,
    check,
    choose_and_count,
    clopper_pearson,
)
from robustlab.geometry.norms import ProperNorm

__all__ = ["higher_order_radius", "higher_order_smoothing"]

_PROXY = 1.2  # proxy of the variance of ε·1(answer is k)


def higher_order_smoothing(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    sigma: float,
    norm: ProperNorm = "l2",
    subspace: Tensor | None = None,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> Smoothed:
    """Certify the smoothed classifier from the votes and their gradient, by the same draws.

        radius = σ·R(p, ‖μ‖₂) in ℓ2,   σ·R(p, ‖μ‖_∞) in ℓ1,   σ·R(p, ‖μ‖₁/√d)/√d in ℓ∞

    with R of :func:`higher_order_radius` and μ = E[ε·1(answer)].

    Args:
        model, x, y, sigma, n0, n, alpha, batch_size, seed, ids, progress: as of
            :func:`~robustlab.defenses.randomized_smoothing`, whose draws these are.
        norm: of the radius.
        subspace: (d, k) orthonormal columns; then perturbations lie in their span, as in one channel of color, and
            the norm is ℓ2.

    Returns:
        Smoothed, a Certificate in ``norm`` with confidence 1 − α; of a ``subspace``, for perturbations in it alone.
        Never below what Cohen et al. certify at α/2. Cost: n0 + n forward rows per sample, and their mean.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Mohapatra et al. (2020); Levine et al., "Tight second-order certificates for randomized smoothing" (2020).
    """
    checks.one_of("norm", norm, ("l1", "l2", "linf"))
    y = check(model, x, y, sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size, ids=ids)
    basis = None if subspace is None else _orthonormal(subspace, x, norm)
    sums = x.new_zeros((2, len(x), x.shape[1:].numel() if basis is None else basis.shape[1]), dtype=torch.float64)

    def listener(chosen: Tensor) -> Listener:
        def add(owners: Tensor, draws: Tensor, points: Tensor, answers: Tensor) -> None:
            noise = ((points - x[owners]) / sigma).flatten(1)
            noise = noise if basis is None else noise @ basis
            votes = torch.where((answers == chosen[owners])[:, None], noise, 0).double()
            sums.flatten(0, 1).index_add_(0, draws % 2 * len(x) + owners, votes)

        return add

    chosen, counts = choose_and_count(
        model, x, y, sigma=sigma, n0=n0, n=n, seed=seed, ids=ids, batch_size=batch_size, progress=progress,
        listener=listener,
    )  # fmt: skip
    p, _ = clopper_pearson(counts.gather(1, chosen[:, None])[:, 0], n, alpha / 2)
    steepest, scale = gradient_bound(sums, n, alpha / 2, norm)
    radius = sigma * scale * higher_order_radius(p, steepest)
    return certificate(x, y, chosen, p, radius, counts, "higher_order_smoothing", alpha, norm)


def higher_order_radius(p: Tensor, steepest: Tensor) -> Tensor:
    """R in units of σ, from a lower bound of the probability and an upper one of its steepest fall; 0 where p ≤ ½.

        Φ(c₂) − Φ(c₁) = p,   φ(c₂) − φ(c₁) = g,   Φ(c₂ − R) − Φ(c₁ − R) = ½;     Φ⁻¹(p) where g ≥ φ(Φ⁻¹(p))

    Args:
        p: probabilities.
        steepest: g ≥ 0, in units of 1/σ, of the same shape.

    Returns:
        Float64, the shape of p, from below: at least Φ⁻¹(p), and rising as g falls.

    Raises:
        ValueError: for p outside [0, 1] or g below 0.

    Source:
        Mohapatra et al. (2020), first order; Levine et al. (2020), the same slab.
    """
    p, g = torch.broadcast_tensors(*(torch.as_tensor(value, dtype=torch.float64) for value in (p, steepest)))
    if not bool(((p >= 0) & (p <= 1) & (g >= 0)).all()):
        raise ValueError("p, steepest: want probabilities, and falls of at least 0")
    rest = 1 - p  # outside of the slab; its part Φ(c₁) left of it, from 0 to one half, makes g fall from φ(Φ⁻¹(p)) to 0
    below, above = torch.zeros_like(p), rest / 2
    for _ in range(100):
        middle = (below + above) / 2
        steeper = _density(rest - middle) - _density(middle) >= g
        below, above = torch.where(steeper, middle, below), torch.where(steeper, above, middle)
    left, right = torch.special.ndtri(below), -torch.special.ndtri(rest - below)
    low, high = torch.zeros_like(p), right.clamp(0, 40)
    for _ in range(60):
        middle = (low + high) / 2
        stands = torch.special.ndtr(right - middle) - torch.special.ndtr(left - middle) >= 0.5
        low, high = torch.where(stands, middle, low), torch.where(stands, high, middle)
    return torch.where(p > 0.5, torch.maximum(low, torch.special.ndtri(p)), 0.0)


def gradient_bound(sums: Tensor, n: int, alpha: float, norm: ProperNorm) -> tuple[Tensor, float]:
    """An upper bound of the steepest fall in the directions that decide in ``norm``, and the length they have.

    Args:
        sums: (2, N, d), of the noise that met the class, over draws of even and of odd number.
        n: draws in all, at least 2.
        alpha: the probability that the bound of a sample is wrong.
        norm: of the perturbation.

    Returns:
        (N,) float64 of E[⟨u, ε⟩·1(...)] over unit vectors u, and their length in units of the radius: 1, or 1/√d.
    """
    d = sums.shape[2]
    if norm == "l1":
        return _entries(sums, n, alpha).amax(dim=1), 1.0
    if norm == "l2":
        return _length(sums, n, alpha), 1.0
    diagonal = _entries(sums, n, alpha / 2).sum(dim=1) / math.sqrt(d)
    return torch.minimum(diagonal, _length(sums, n, alpha / 2)), 1 / math.sqrt(d)


def _length(sums: Tensor, n: int, alpha: float) -> Tensor:
    """‖μ‖₂ from ⟨X, Y⟩, the product of the means of two halves."""
    halves = ((n + 1) // 2, n // 2)
    even, odd = (part / size for part, size in zip(sums, halves, strict=True))
    a, b = (math.sqrt(2 * _PROXY * math.log(2 / alpha) / size) for size in halves)
    product = (even * odd).sum(dim=1) + a * odd.norm(dim=1)
    return b / 2 + (b * b / 4 + product.clamp_min(0)).sqrt()


def _entries(sums: Tensor, n: int, alpha: float) -> Tensor:
    """|μ_j|, all d at once: (N, d)."""
    return (sums.sum(dim=0) / n).abs() + math.sqrt(2 * _PROXY * math.log(2 * sums.shape[2] / alpha) / n)


def _density(p: Tensor) -> Tensor:
    """φ(Φ⁻¹(p)), the steepness of a half-space of probability p."""
    return torch.exp(-0.5 * torch.special.ndtri(p).square()) / math.sqrt(2 * math.pi)


def _orthonormal(subspace: Tensor, x: Tensor, norm: ProperNorm) -> Tensor:
    if norm != "l2":
        raise ValueError(f"norm: want 'l2' for perturbations in a subspace, got {norm!r}")
    checks.floats(subspace, "subspace")
    d = x.shape[1:].numel()
    if subspace.dim() != 2 or subspace.shape[0] != d or not 0 < subspace.shape[1] <= d:
        raise ValueError(f"subspace: want columns of {d} numbers, shape ({d}, k), got {tuple(subspace.shape)}")
    basis = subspace.to(x)
    if not torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).to(x), atol=1e-4):
        raise ValueError("subspace: want orthonormal columns, such as Q of torch.linalg.qr")
    return basis
