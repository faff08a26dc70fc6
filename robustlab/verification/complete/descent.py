"""The attacks of a search for proofs: projected gradient descent on the margin, and evolution where few inputs vary.

Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), for boxes of any shape: the step
is in units of each side, and what descends is the margin max_j (C·f(x) + d)_j itself. Where several rows must be met at
once their maximum has a valley with a bent floor, along which signed steps go to and fro. Of few inputs, random samples
know a good part of the box; the lowest of them have children by smaller and smaller normal steps (an evolution
strategy: Rechenberg 1973; Schwefel 1977), which need no slope.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.geometry.keyed import Noise
from robustlab.graph.node import Graph
from robustlab.graph.time_limit import tick
from robustlab.verification.complete.query import Case, graph_device

PARENTS, CHILDREN, GENERATIONS = 64, 8, 40
SAMPLES = 4096
EVALUATIONS = SAMPLES + PARENTS * CHILDREN * GENERATIONS
FIRST, LAST = 0.2, 0.002  # the normal steps of the first and the last generation, in sides
_TOGETHER = 2**21  # numbers of all nodes that are computed between two looks at the time


def descend(
    graph: Graph,
    cases: list[Case],
    *,
    restarts: int = 20,
    steps: int = 50,
    seed: int = 0,
    starts: Tensor | None = None,
) -> Tensor:
    """The lowest points found: (len(cases) · restarts, n), lowest margin first.

    Args:
        graph: in float64.
        cases: boxes and margins.
        restarts: starts in each case.
        steps: signed gradient steps, of 0.3 sides at first and 0.005 at last.
        seed: of the random starts.
        starts: (len(cases), s, n), where the first s ≤ restarts begin instead.
    """
    low, high, C, d = (part.to(graph_device(graph)) for part in stacked(cases))
    x = _random(low, high, restarts, seed)
    if starts is not None:
        x[:, : starts.shape[1]] = starts.to(x).clamp(low[:, None], high[:, None])
    x = x.flatten(0, 1)
    low, high, C, d = (part.repeat_interleave(restarts, dim=0) for part in (low, high, C, d))
    best, lowest = x, x.new_full((len(x),), torch.inf)
    for step in range(steps + 1):
        tick()
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            margin = _margin(graph, x, C, d)
            (slope,) = torch.autograd.grad(margin.sum(), x)
        better = margin.detach() < lowest
        best, lowest = torch.where(better[:, None], x.detach(), best), torch.where(better, margin.detach(), lowest)
        size = 0.3 * (0.005 / 0.3) ** (step / max(1, steps))
        x = (x.detach() - size * (high - low) * slope.sign()).clamp(low, high)
    return best[lowest.argsort()]


@torch.no_grad()
def evolve(graph: Graph, case: Case, *, seed: int = 0, starts: Tensor | None = None) -> Tensor:
    """The lowest points found with so many ``EVALUATIONS``: (PARENTS, n), lowest margin first.

    Args:
        graph: in float64.
        case: a box and margins.
        seed: of points and steps.
        starts: (s, n), points to begin with besides.
    """
    low, high, C, d = (part.to(graph_device(graph)) for part in stacked([case]))
    x = _random(low, high, SAMPLES, seed)[0]
    if starts is not None:
        x = torch.cat([starts.to(x), x])
    together = max(1, _TOGETHER // sum(torch.Size(node.shape).numel() for node in graph.nodes))

    def lowest(points: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for some in points.split(together):
            tick()
            found.append(_margin(graph, some, C, d))
        margin = torch.cat(found)
        order = margin.argsort()[:PARENTS]
        return points[order], margin[order]

    parents, margin = lowest(x)
    noise = Noise(seed, torch.arange(len(parents) * CHILDREN), x.device)
    for generation in range(GENERATIONS):
        size = FIRST * (LAST / FIRST) ** (generation / (GENERATIONS - 1))
        step = size * (high - low) * noise.normal((1, generation), x.shape[1:], dtype=x.dtype)
        children, own = lowest((parents.repeat(CHILDREN, 1) + step).clamp(low, high))
        order = torch.cat([margin, own]).argsort()[:PARENTS]
        parents, margin = torch.cat([parents, children])[order], torch.cat([margin, own])[order]
    return parents


def lowest_points(low: Tensor, high: Tensor, alive: Tensor, known: tuple[Tensor, Tensor, Tensor], count: int) -> Tensor:
    """Points to attack some cases from, (cases, count, n): the lowest known of each, and centers for want of others.

    Args:
        low, high: (cases, n).
        alive: (cases,), their numbers.
        known: margins in order, numbers of cases, and points.
        count: points of each case.
    """
    found = ((low + high) / 2)[:, None].repeat(1, count, 1)
    margin, case, points = known
    for i, number in enumerate(alive.tolist()):
        own = points[(case == number) & margin.isfinite()][:count]
        found[i, : len(own)] = own
    return found


def _random(low: Tensor, high: Tensor, each: int, seed: int) -> Tensor:
    """Points of boxes (c, n), drawn uniformly, so many of each: (c, each, n)."""
    ids = torch.arange(len(low) * each)
    unit = Noise(seed, ids, low.device).uniform(0, low.shape[1:], dtype=low.dtype)
    return low[:, None] + unit.reshape(len(low), each, -1) * (high - low)[:, None]


def _margin(graph: Graph, x: Tensor, C: Tensor, d: Tensor) -> Tensor:
    """max over rows of C·f(x) + d at each point, (N,)."""
    y = graph(x.reshape(-1, *graph.input_shape)).flatten(1)
    return ((C @ y[:, :, None])[:, :, 0] + d).amax(dim=1)


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
