"""Ridge regression and LASSO, solved to rounding, from the data's second moments and many at a time.

    L(θ) = 1/N Σ_i (w·x_i + b − y_i)² + λ Ω(w),   Ω(w) = ½‖w‖₂² (ridge) or ‖w‖₁ (lasso),   θ = (w, b)

The bias b is not penalized, so b = ȳ − w·x̄ and only w is left, for which the centered moments S = cov(x) and
c = cov(x, y) say all. Attacks that refit after each change of one point update the moments instead of the data.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from robustlab import checks

Penalty = Literal["ridge", "lasso"]
PENALTIES = get_args(Penalty)
MAX_STEPS = 1000


class LinearModel(NamedTuple):
    """x ↦ w·x + b, or a stack of such models.

    Attributes:
        weight: (..., d).
        bias: (...).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The predictions (..., N) for rows x (N, d)."""
        return self.weight @ x.mT + self.bias[..., None]


class Moments(NamedTuple):
    """What a linear fit must know of the data: the means of z and of zzᵀ for z = (x, y).

    Attributes:
        mean: (..., d + 1).
        second: (..., d + 1, d + 1).
    """

    mean: Tensor
    second: Tensor


def moments(x: Tensor, y: Tensor) -> Moments:
    """The moments of rows x (N, d) with responses y (N,)."""
    z = torch.cat([x, y[:, None]], dim=1)
    return Moments(z.mean(dim=0), z.mT @ z / len(z))


def mean_squared_error(model: LinearModel, data: Moments) -> Tensor:
    """1/N Σ (w·x_i + b − y_i)² for each of a stack of models, from the data's moments."""
    v = torch.cat([model.weight, -torch.ones_like(model.bias)[..., None]], dim=-1)
    quadratic = (v * (v @ data.second)).sum(dim=-1)
    return quadratic + 2 * model.bias * (v @ data.mean) + model.bias**2


def regularizer(model: LinearModel, penalty: Penalty) -> Tensor:
    """Ω(w): ½‖w‖₂² for ``"ridge"``, ‖w‖₁ for ``"lasso"``."""
    return model.weight.abs().sum(dim=-1) if penalty == "lasso" else model.weight.square().sum(dim=-1) / 2


def fit_linear(x: Tensor, y: Tensor, *, penalty: Penalty = "ridge", lam: float = 1e-3) -> LinearModel:
    """Minimize the penalized mean squared error.

        (w, b) = argmin 1/N Σ_i (w·x_i + b − y_i)² + λ Ω(w)

    Args:
        x: features (N, d), floating.
        y: responses (N,).
        penalty: ``"ridge"`` (Ω = ½‖w‖₂²) or ``"lasso"`` (Ω = ‖w‖₁).
        lam: λ, above 0.

    Returns:
        The model. A ridge model is unique; of a LASSO whose columns depend on each other, some minimizer.

    Raises:
        ValueError, TypeError: for rows that do not fit together, values that are not finite, or λ ≤ 0.
    """
    table(x, y)
    checks.one_of("penalty", penalty, PENALTIES)
    checks.positive("lam", lam)
    return fit_moments(moments(x, y), penalty, lam)


def fit_moments(data: Moments, penalty: Penalty, lam: float, start: Tensor | None = None) -> LinearModel:
    """The models of a stack of moments; `start` (..., d) are weights near the solution, for the LASSO."""
    x_mean, y_mean = data.mean[..., :-1], data.mean[..., -1]
    cov = data.second - data.mean[..., :, None] * data.mean[..., None, :]
    s, c = cov[..., :-1, :-1], cov[..., :-1, -1]
    if penalty == "ridge":
        eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        weight = torch.linalg.solve(2 * s + lam * eye, 2 * c)
    else:
        weight = _lasso(s, c, lam, torch.zeros_like(c) if start is None else start.expand_as(c).clone())
    return LinearModel(weight, y_mean - (weight * x_mean).sum(dim=-1))


def _lasso(s: Tensor, c: Tensor, lam: float, w: Tensor) -> Tensor:
    """Feature-sign search (Lee et al., 2007): guess the signs θ of w, solve for w, repair the guess.

    For given signs the minimum solves S w = c − λ/2 θ on the support of θ. A weight that would change its sign on the
    way there stops at 0 and leaves the support. Once the support is solved, the weight off it whose KKT condition
    |c − Sw| ≤ λ/2 is violated most joins it. The objective falls at each step, so no support comes twice.
    """
    eps = torch.finfo(s.dtype).eps
    theta = torch.sign(w)
    # Columns may depend on each other (one-hot groups do): a whiff of ridge makes the system regular, and as it acts on
    # the change of w alone, it is gone at the solution.
    whiff = 1e2 * eps * s.diagonal(dim1=-2, dim2=-1).amax(dim=-1)[..., None, None] * torch.eye(s.shape[-1]).to(s)
    slack = 1e3 * eps * c.abs().amax(dim=-1, keepdim=True) + eps
    for _ in range(MAX_STEPS):
        on = theta != 0
        rest = c - (s @ w[..., None])[..., 0]
        off = torch.where(on, -torch.inf, rest.abs() - lam / 2)
        solved = torch.where(on, rest - lam / 2 * theta, 0).abs().le(slack).all(dim=-1, keepdim=True)
        worst, which = off.max(dim=-1, keepdim=True)
        joins = solved & (worst > slack)
        if bool((solved & ~joins).all()):
            break
        theta = theta.scatter(-1, which, torch.where(joins, rest.gather(-1, which).sign(), theta.gather(-1, which)))
        on = theta != 0
        inner = torch.where(on[..., :, None] & on[..., None, :], s, 0) + whiff
        inner = inner + torch.diag_embed((~on).to(s.dtype))
        step = torch.linalg.solve(inner, torch.where(on, rest - lam / 2 * theta, 0))
        flips = on & (torch.sign(w + step) == -theta)
        share = torch.where(flips, -w / step, 1.0)
        first, who = share.min(dim=-1, keepdim=True)
        w = w + first * step
        stops = flips.gather(-1, who)
        theta = theta.scatter(-1, who, torch.where(stops, 0.0, theta.gather(-1, who)))
        w = torch.where(theta == 0, 0.0, w)
    else:
        warnings.warn(
            f"the LASSO has not converged in {MAX_STEPS} steps: its weights are near a minimizer, and not at one. "
            "A larger lam, or columns of one scale, help.",
            stacklevel=4,
        )
    return w


def table(x: Tensor, y: Tensor) -> None:
    """Raises unless x is a floating (N, d) table and y (N,) are its responses, all finite."""
    for name, value, dims in (("x", x, 2), ("y", y, 1)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            shown = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: want a floating tensor, got {shown}")
        if value.dim() != dims or not value.numel():
            raise ValueError(f"{name}: want {dims} dimension(s), not empty, got shape {tuple(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: want finite values, got NaN or infinity")
    if len(x) != len(y) or x.dtype != y.dtype:
        raise ValueError(f"y: want {len(x)} values of {x.dtype} as x has rows, got {len(y)} of {y.dtype}")
