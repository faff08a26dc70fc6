"""Exact smallest perturbations of affine models, by formula, by sorting and by convex solvers."""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from robustlab.geometry.norms import get_norm
from tests.suite.models import Affine

ORDER = {"l1": 1, "l2": 2, "linf": "inf"}


def affine_problem(
    classes: int, n: int, d: int, device: torch.device, spread: float, seed: int = 0
) -> tuple[Affine, Tensor, Tensor]:
    """A random affine model in float64 and points uniform in [−spread, spread]^d, with the model's labels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    x = (2 * torch.rand(n, d, generator=generator, dtype=torch.float64) - 1) * spread
    model = Affine(weight, bias).to(device)
    with torch.no_grad():
        return model, x.to(device), model(x.to(device)).argmax(dim=1)


def distances_to_hyperplanes(model: Affine, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """(N, K): margin_k / ‖w_y − w_k‖_q, the distance to where class k ties with y in free space; ∞ at k = y."""
    with torch.no_grad():
        logits = model(x)
        margins = logits.gather(1, y[:, None]) - logits
        slopes = model.weight[y][:, None] - model.weight
        lengths = get_norm(norm).dual.length(slopes.flatten(0, 1)).reshape(margins.shape)
        return torch.where(lengths > 0, margins / lengths, torch.inf)


def free_optimum(model: Affine, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """(N,): the smallest untargeted perturbation where the box is out of reach."""
    return distances_to_hyperplanes(model, x, y, norm).amin(dim=1)


def solver_optimum(
    model: Affine, x: Tensor, y: Tensor, norm: str, box: tuple[float, float], target: Tensor | None = None
) -> Tensor:
    """(N,): the smallest perturbation in the box by an LP or QP; ∞ where there is none.

    Untargeted: the nearest point where some class ties with y. Targeted: where the target ties with the best other.
    """
    weight, bias = (p.detach().cpu().numpy() for p in (model.weight, model.bias))
    best = []
    for i, (point, label) in enumerate(zip(x.cpu().numpy(), y.tolist(), strict=True)):
        if target is None:
            goals = [(weight[[k]] - weight[label], bias[[k]] - bias[label]) for k in range(len(bias)) if k != label]
        else:
            others = np.arange(len(bias)) != int(target[i])
            t = int(target[i])
            goals = [(weight[t] - weight[others], bias[t] - bias[others])]
        best.append(min(_nearest(point, a, b, norm, box) for a, b in goals))
    return torch.tensor(best, dtype=x.dtype, device=x.device)


def _nearest(point: np.ndarray, a: np.ndarray, b: np.ndarray, norm: str, box: tuple[float, float]) -> float:
    """min ‖δ‖ subject to A(x + δ) + b ≥ 0 and x + δ ∈ box."""
    delta = cp.Variable(len(point))
    constraints = [a @ (point + delta) + b >= 0, point + delta >= box[0], point + delta <= box[1]]
    problem = cp.Problem(cp.Minimize(cp.norm(delta, ORDER[norm])), constraints)
    problem.solve(solver=cp.CLARABEL)
    return float(problem.value) if problem.status.startswith("optimal") else math.inf


def l0_optimum(model: Affine, x: Tensor, y: Tensor, box: tuple[float, float]) -> Tensor:
    """(N,): the fewest elements whose change within the box lets some class tie with y, by sorting the gains."""
    with torch.no_grad():
        logits = model(x)
        fewest = x.new_full(y.shape, torch.inf)
        for k in range(logits.shape[1]):
            slope = model.weight[k] - model.weight[y]
            gain = torch.where(slope > 0, slope * (box[1] - x), slope * (box[0] - x)).sort(1, descending=True).values
            short = logits.gather(1, y[:, None]) - logits[:, [k]] - gain.cumsum(1)
            count = (short > 0).sum(1) + 1.0
            reachable = (short[:, -1] <= 0) & (y != k)
            fewest = torch.where(reachable, torch.minimum(fewest, count), fewest)
        return fewest
