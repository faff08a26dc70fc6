"""The semidefinite program over all values of a ReLU network, for nets of at most 80 inputs and neurons.

Let w = (1, x, z₁, …) hold the inputs and the values of all ReLUs. All of the network is quadratic in w, so linear in
P = w·wᵀ. Keep of P that it is positive semidefinite with P₀₀ = 1, and ask for the least value of ⟨c, output⟩ under

    x:   P_ii ≤ (l + u)·P_0i − l·u                                  inside its interval
    z:   z ≥ 0,   z ≥ ẑ,   P_zz = ⟨ẑ's coefficients, P_z⟩           z² = z·ẑ: one of the two is tight
         P_zz ≤ (l⁺ + u⁺)·z − l⁺·u⁺                                  inside its interval
         z ≤ u⁺/(u⁺ − l)·(ẑ − l)                                     the triangle's line, if asked for

where ẑ is what enters a ReLU. The bounds l, u are CROWN's. With the triangles this is never looser than the linear
program over them; without, it may be.

A solver's answer is a hint. For its multipliers λ, those of inequalities cut off at 0, and S = C + Σ λ_k A_k,

    ⟨c, output⟩  ≥  min(0, λmin(S))·R  −  Σ λ_k b_k,    R ≥ |w|² for all inputs of the region,

which holds for whatever λ, since wᵀSw ≥ λmin(S)·|w|². That is what is certified.

Different from the paper: the triangle's lines, and a bound that does not rest on the solver.

Source: Raghunathan, Steinhardt and Liang, "Semidefinite relaxations for certifying robustness to adversarial examples"
(2018), sections 3 and 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlab.graph.hinge import Hinge
from robustlab.graph.interval import Bounds
from robustlab.graph.node import Graph
from robustlab.verification.propagation.bound_options import BoundOptions
from robustlab.verification.propagation.layers import layer_bounds
from robustlab.verification.propagation.region import Region

LARGEST = 80
"""Inputs and neurons that a program may have."""
Array = np.ndarray[Any, np.dtype[np.float64]]


class Program:
    """The constraints ⟨A_k, P⟩ ≤ b_k or = b_k for one sample, as rows over the entries of P."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: list[Array] = []
        self.right: list[float] = []
        self.equal: list[bool] = []

    def add(self, quadratic: dict[int, Array], linear: Array, right: float, *, equal: bool = False) -> None:
        """Σ_i ⟨quadratic_i, P_i⟩ + ⟨linear, P_0⟩ ≤ right, or equal to it."""
        A = np.zeros((self.size, self.size))
        A[0] += linear
        for i, row in quadratic.items():
            A[i] += row
        self.rows.append((A + A.T).ravel() / 2)
        self.right.append(right)
        self.equal.append(equal)


def affine_maps(graph: Graph) -> tuple[dict[int, Array], Array]:
    """What enters each ReLU node, and the output, as affine functions of w = (1, x, z₁, …): rows over w.

    Raises:
        ValueError: naming a node that is nonlinear and no ReLU, or a net that is too large.
    """
    for node in graph.nonlinear:
        if not (isinstance(node.op, Hinge) and (node.op.left, node.op.right) == (0.0, 1.0)):
            raise ValueError(f"model: the program over layers knows ReLUs alone, got {node.op} at node {node.name!r}")
    counts = [torch.Size(graph.input_shape).numel()] + [torch.Size(n.shape).numel() for n in graph.nonlinear]
    if sum(counts) > LARGEST:
        raise ValueError(f"model: want at most {LARGEST} inputs and neurons for the program, got {sum(counts)}")
    size = 1 + sum(counts)
    w = torch.eye(size, dtype=torch.float64)
    w[0] = 0  # the constant is what all functions are at 0
    parts = dict(zip([0, *(n.index for n in graph.nonlinear)], w[:, 1:].split(counts, dim=1), strict=True))
    values = [parts[0].reshape(-1, *graph.input_shape)]
    for node in graph.nodes[1:]:
        assert node.op is not None
        if node.index in parts:
            values.append(parts[node.index].reshape(-1, *node.shape))
        else:
            values.append(node.op.forward(*(values[i] for i in node.inputs)))

    def rows(index: int) -> Array:
        flat = values[index].flatten(1)
        return torch.cat([flat[:1], flat[1:] - flat[:1]]).T.numpy()

    return {n.index: rows(n.inputs[0]) for n in graph.nonlinear}, rows(len(graph.nodes) - 1)


def program(
    graph: Graph, before: dict[int, Array], box: Bounds, inside: dict[int, Bounds], *, triangle: bool
) -> tuple[Program, float]:
    """The constraints for one sample, and R."""
    l, u = box.lower.flatten().numpy(), box.upper.flatten().numpy()
    size = 1 + len(l) + sum(len(rows) for rows in before.values())
    made, unit, largest = Program(size), np.eye(size), 1 + float(np.maximum(l**2, u**2).sum())
    made.add({}, unit[0], 1.0, equal=True)
    for i, (low, high) in enumerate(zip(l, u, strict=True), start=1):
        made.add({i: unit[i]}, -(low + high) * unit[i], -low * high)
    place = 1 + len(l)
    for node in graph.nonlinear:
        low_of, high_of = inside[node.index].lower.flatten().numpy(), inside[node.index].upper.flatten().numpy()
        for z_hat, low, high in zip(before[node.index], low_of, high_of, strict=True):
            z, least, most = unit[place], max(low, 0.0), max(high, 0.0)
            made.add({}, -z, 0.0)
            made.add({}, z_hat - z, 0.0)
            made.add({place: z - z_hat}, np.zeros(size), 0.0, equal=True)
            made.add({place: z}, -(least + most) * z, -least * most)
            if triangle:
                slope = 1.0 if low >= 0 else most / (most - low)
                made.add({}, z - slope * z_hat + (slope * min(low, 0.0)) * unit[0], 0.0)
            largest += most**2
            place += 1
    return made, largest


def proved(made: Program, cost: Array, multipliers: Array, largest: float) -> float:
    """The right side of the inequality in the module's text, less its rounding."""
    equal = np.array(made.equal)
    lam = np.where(equal, multipliers, np.maximum(multipliers, 0.0))
    rows, right = np.array(made.rows), np.array(made.right)
    S = cost + (lam @ rows).reshape(cost.shape)
    rounding = np.finfo(np.float64).eps * made.size * (np.abs(cost).sum() + np.abs(lam) @ np.abs(rows).sum(axis=1))
    least = min(0.0, float(np.linalg.eigvalsh((S + S.T) / 2)[0]) - rounding)
    return float(least * largest - lam @ right - np.finfo(np.float64).eps * len(lam) * (np.abs(lam) @ np.abs(right)))


@torch.no_grad()
def sdp_relaxation_bound(graph: Graph, region: Region, C: Tensor, *, triangle: bool = True) -> Tensor:
    """Lower bounds (N, M) of C·output; −∞ where the solver has nothing to say.

    Args:
        graph: of affine operators and ReLUs, with at most 80 inputs and neurons.
        region: N sets of inputs; of a ball, its hull is used.
        C: (N, M, K), or (M, K) for all.
        triangle: whether the triangles' lines are among the constraints.

    Raises:
        ValueError: naming a node that is no ReLU, or a net that is too large.
        ImportError: without ``cvxpy``.
    """
    double = graph.to(torch.float64).to("cpu")
    before, output = affine_maps(double)
    layers = layer_bounds(graph, region, BoundOptions())
    wanted = C.expand(len(region), *C.shape[-2:]).double().cpu()
    found = wanted.new_full(wanted.shape[:2], -torch.inf)
    hull = region.hull
    for i in range(len(region)):
        box = Bounds(hull.lower[i].double().cpu(), hull.upper[i].double().cpu())
        inside = {n.index: _one(layers.bounds[n.inputs[0]], i) for n in graph.nonlinear}
        if not all(bool((b.lower.isfinite() & b.upper.isfinite()).all()) for b in inside.values()):
            continue
        made, largest = program(double, before, box, inside, triangle=triangle)
        for j, row in enumerate(wanted[i].numpy()):
            found[i, j] = _minimum(made, row @ output, largest)
    return found


def _one(bounds: Bounds, i: int) -> Bounds:
    return Bounds(bounds.lower[i].double().cpu(), bounds.upper[i].double().cpu())


def _minimum(made: Program, linear: Array, largest: float) -> float:
    """What is proved of the least ⟨linear, w⟩."""
    import cvxpy as cp

    n = made.size
    cost = np.zeros((n, n))
    cost[0] += linear
    cost = (cost + cost.T) / 2
    if not np.isfinite(cost).all():
        return -np.inf
    scale = max(float(np.abs(linear).max()), 1e-300)
    rows, right, equal = np.array(made.rows), np.array(made.right), np.array(made.equal)
    P = cp.Variable((n, n), PSD=True)
    flat = cp.vec(P, order="C")
    held = [rows[equal] @ flat == right[equal], rows[~equal] @ flat <= right[~equal]]
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(cost / scale, P))), held)
    try:
        problem.solve(solver=cp.CLARABEL)
    except cp.error.SolverError:
        return -np.inf
    if any(constraint.dual_value is None for constraint in held):
        return -np.inf
    multipliers = np.zeros(len(right))
    multipliers[equal], multipliers[~equal] = held[0].dual_value, held[1].dual_value
    value = proved(made, cost / scale, multipliers, largest) * scale
    return value if np.isfinite(value) else -np.inf
