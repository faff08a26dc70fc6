"""The attack that a search for proofs begins with: projected gradient descent on the margin, in boxes.

Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), for boxes of any shape: the step
is in units of each side, and what descends is the margin max_j (C·f(x) + d)_j itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.geometry.keyed import Noise
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import tick
from robustlab.verification.complete.query import Case, graph_device


def descend(graph: Graph, cases: list[Case], *, restarts: int = 20, steps: int = 50, seed: int = 0) -> Tensor:
    """The lowest points found: (len(cases) · restarts, n), lowest margin first.

    Args:
        graph: in float64.
        cases: boxes and margins.
        restarts: random starts in each case.
        steps: signed gradient steps, of 0.3 sides at first and 0.005 at last.
        seed: of the starts.
    """
    device = graph_device(graph)
    low, high, C, d = (part.to(device) for part in stacked(cases))
    rows = torch.arange(len(cases), device=device).repeat_interleave(restarts)
    low, high, C, d = low[rows], high[rows], C[rows], d[rows]
    x = low + Noise(seed, torch.arange(len(rows)), device).uniform(0, low.shape[1:], dtype=low.dtype) * (high - low)
    best, lowest = x, x.new_full((len(x),), torch.inf)
    for step in range(steps + 1):
        tick()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = graph(x.reshape(-1, *graph.input_shape))
            margins = (C @ y.flatten(1)[:, :, None])[:, :, 0] + d
            margin = margins.amax(dim=1)
            (slope,) = torch.autograd.grad(margin.sum(), x)
        better = margin.detach() < lowest
        best, lowest = torch.where(better[:, None], x.detach(), best), torch.where(better, margin.detach(), lowest)
        size = 0.3 * (0.005 / 0.3) ** (step / max(1, steps))
        x = (x.detach() - size * (high - low) * slope.sign()).clamp(low, high)
    return best[lowest.argsort()]


def stacked(cases: list[Case]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """low, high (c, n), C (c, k, m), d (c, k) of all cases; those with fewer rows repeat their last."""
    k = max(1, *(len(case.d) for case in cases))
    rows = [_rows(case, k) for case in cases]
    return (
        torch.stack([case.low for case in cases]),
        torch.stack([case.high for case in cases]),
        torch.stack([C for C, _ in rows]),
        torch.stack([d for _, d in rows]),
    )


def _rows(case: Case, k: int) -> tuple[Tensor, Tensor]:
    """k rows that say the same; where every output is unsafe, 0·y − 1 ≤ 0."""
    if not len(case.d):
        return case.C.new_zeros(k, case.C.shape[1]), case.d.new_full((k,), -1.0)
    which = torch.arange(k).clamp_max(len(case.d) - 1)
    return case.C[which], case.d[which]
