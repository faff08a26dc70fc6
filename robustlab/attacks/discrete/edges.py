"""Flips of edges, as the attacks on graphs share them: pairs of nodes, their vector s, and its budget.

A pair of nodes i < j is flipped by s_ij = 1: an edge is removed, or one is added where there was none. With A the
adjacency and Ā = 1·1ᵀ − I − A its complement,

    A' = A + (Ā − A) ⊙ S,   S_ij = S_ji = s_ij,  S_ii = 0

so that a graph of flips is symmetric and without loops, whatever s is. For s in [0, 1] it has edges of weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.geometry.projections import keep_largest

Graph = tuple[Tensor, Tensor]
"""A batch of graphs: features (N, V, F) and adjacency (N, V, V)."""
BISECTIONS = 30  # bisections of an interval, before the piece that is left is solved for


class Pairs:
    """The pairs of nodes that an attack may flip.

    Args:
        pairs: (P, 2) int64, each pair once in either order; None for all of ``vertices``·(``vertices`` − 1)/2.
        vertices: number of nodes V.
        device: where the graphs are.
    """

    def __init__(self, pairs: Tensor | None, vertices: int, device: torch.device) -> None:
        if pairs is None:
            i, j = torch.triu_indices(vertices, vertices, offset=1, device=device)
        else:
            i, j = pairs.to(device).T
        self.vertices, self.i, self.j = vertices, i, j
        self._one, self._other = i * vertices + j, j * vertices + i

    def __len__(self) -> int:
        return len(self.i)

    def edges(self, adjacency: Tensor) -> Tensor:
        """(N, P) bool: which pairs have an edge."""
        return adjacency.flatten(1)[:, self._one] > 0

    def flipped(self, x: Graph, s: Tensor, edges: Tensor) -> Graph:
        """The graphs with s (N, P) flipped, of ``edges`` (N, P)."""
        features, adjacency = x
        after = torch.where(edges, 1 - s, s)
        out = adjacency.flatten(1).clone()
        out[:, self._one] = after
        out[:, self._other] = after
        return features, out.reshape(adjacency.shape)

    def slope(self, grad: Tensor, edges: Tensor) -> Tensor:
        """∂f/∂s (N, P) of ∂f/∂A' (N, V, V): both entries of a pair move with s, down where there is an edge."""
        both = (grad + grad.mT).flatten(1)[:, self._one]
        return torch.where(edges, -both, both)


def onto_budget(a: Tensor, budget: Tensor) -> Tensor:
    """The nearest point of {s : 0 ≤ s ≤ 1, Σ s ≤ b} to each row of (N, P), for budgets b (N,).

        s = clip(a − μ, 0, 1),  μ = 0 if that sums to at most b, else the μ > 0 at which it sums to b

    μ is found by bisection; on the piece that is left, where the sum is linear in μ, it is solved for.

    Source:
        Xu et al. (2019), section 3, the projection of the PGD topology attack.
    """
    budget = budget.to(a.dtype)[:, None]
    clipped = a.clamp(0, 1)
    inside = clipped.sum(dim=1, keepdim=True) <= budget
    if bool(inside.all()):
        return clipped
    low, high = torch.zeros_like(budget), a.amax(dim=1, keepdim=True).clamp_min(0)
    moved = torch.empty_like(a)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        over = torch.sub(a, middle, out=moved).clamp_(0, 1).sum(dim=1, keepdim=True) > budget
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.sub(a, (low + high) / 2, out=moved)
    rising, full = (moved > 0) & (moved < 1), moved >= 1
    count = rising.sum(dim=1, keepdim=True)
    total = torch.where(rising, a, 0.0).sum(dim=1, keepdim=True) + full.sum(dim=1, keepdim=True)
    solved = ((total - budget) / count.clamp_min(1)).clamp(low, high)
    mu = torch.where(count > 0, solved, high)
    return torch.where(inside, clipped, torch.sub(a, mu, out=moved).clamp_(0, 1))


def within(chosen: Tensor, score: Tensor, budget: Tensor) -> Tensor:
    """Flips (N, P) of a mask; where they are more than the budget (N,), those of highest score alone."""
    return keep_largest(chosen.to(score.dtype), score.masked_fill(~chosen, -torch.inf), budget.to(score.dtype)[:, None])
