"""Topology adversarial training: a graph net is trained on the worst edges that a few flips can make.

Xu, Chen, Liu, Chen, Weng, Hong and Lin, "Topology attack and defense for graph neural networks: an optimization
perspective" (2019), section 4, robust training:

    minimize_θ  max_{s ∈ {0, 1}^P, Σ s ≤ b}  mean_i CE(model_θ(A'(s))_i, y_i),   A' = A + (Ā − A) ⊙ S

In each step the inner maximum is approached by projected gradient ascent on relaxed flips from s = 0 and one Bernoulli
draw, as in :func:`robustlab.attacks.topology`; then the weights take a step on that graph alone.

The authors' code trains on all nodes, with labels that a natural net predicted, and not on the few whose labels are
known; which of the two it is, the data say that are given to ``fit``. A control must be trained on the same data
without an attack (``share=0``): a user who did so found no gain (the issues of the authors' repository, number 6).

Different here: a draw that exceeds the budget keeps its flips of largest s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Graphs
from robustlab.attacks.discrete.edges import Graph, Pairs, onto_budget, within
from robustlab.attacks.discrete.graph_task import PER_NODE
from robustlab.geometry.keyed import Noise
from robustlab.models.graphs import OnGraph
from robustlab.models.modes import evaluating
from robustlab.training.resuming import with_arguments

__all__ = ["TopologyTraining", "topology_training"]


class TopologyTraining:
    """The objective that :func:`topology_training` returns."""

    takes_labels = True

    def __init__(self, share: float, steps: int, step_size: float | None, pairs: Tensor | None) -> None:
        self.share, self.steps, self.step_size, self.pairs = share, steps, step_size, pairs
        self._seen: tuple[Tensor, Graph, Pairs, Tensor] | None = None  # what belongs to the model's graph

    def check_model(self, model: nn.Module, x: Tensor) -> None:
        """Raises unless the model is a net on a graph."""
        if not isinstance(model, OnGraph):
            raise TypeError(f"model: want an OnGraph, a net on the graph that is attacked, got {type(model).__name__}")
        Graphs().check(self._read(model)[0], "model")

    def __call__(self, model: OnGraph, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        """The mean cross-entropy of the nodes ``x`` on the graph that is worst for them."""
        graph, pairs, edges = self._read(model)
        with evaluating(model):
            s = self.worst(model.net, graph, pairs, edges, x, y)
        budget = self._budget(edges)
        drawn = Noise(seed, torch.zeros(1, dtype=torch.int64, device=s.device)).uniform(0, s.shape[1:], s.dtype) < s
        flips = within(drawn, s, budget).to(s.dtype)
        return F.cross_entropy(model.net(*pairs.flipped(graph, flips, edges))[0, x], y)

    def worst(self, net: nn.Module, graph: Graph, pairs: Pairs, edges: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The relaxed flips s (1, P) after the steps of projected gradient ascent."""
        s, budget = torch.zeros_like(edges, dtype=graph[1].dtype), self._budget(edges)
        rate = PER_NODE["ce"] * len(x) if self.step_size is None else self.step_size
        for t in range(1, self.steps + 1):
            features, weighted = pairs.flipped(graph, s, edges)
            with torch.enable_grad():
                weighted.requires_grad_(True)
                (grad,) = torch.autograd.grad(F.cross_entropy(net(features, weighted)[0, x], y), weighted)
            s = onto_budget(s + rate / t**0.5 * pairs.slope(grad, edges), budget)
        return s

    def _budget(self, edges: Tensor) -> Tensor:
        return (self.share * edges.sum(dim=1)).round().long()

    def _read(self, model: OnGraph) -> tuple[Graph, Pairs, Tensor]:
        """The model's graph, dense."""
        if self._seen is None or self._seen[0] is not model.adjacency:
            parts = (model.features, model.adjacency)
            features, adjacency = ((part.to_dense() if part.is_sparse else part)[None] for part in parts)
            pairs = Pairs(self.pairs, adjacency.shape[1], adjacency.device)
            self._seen = model.adjacency, (features, adjacency), pairs, pairs.edges(adjacency)
        return self._seen[1], self._seen[2], self._seen[3]


@with_arguments
def topology_training(
    *, share: float = 0.05, steps: int = 20, step_size: float | None = None, pairs: Tensor | None = None
) -> TopologyTraining:
    """An objective for :func:`robustlab.training.fit.fit` of an :class:`~robustlab.models.OnGraph`.

        loss = mean_i CE(net(X, A'(s))_i, y_i),  s from K steps of PGD within b = round(share · edges) flips

    It computes on all pairs of nodes in every step: for graphs of thousands of nodes give ``pairs``, or train on a
    part.

    Args:
        share: of the edges, in [0, 1], that the inner attack may flip; default 0.05, as in the paper. 0 trains on the
            graph as it is, the control.
        steps: K of the inner attack, at least 1; default 20, as in the authors' code.
        step_size: of its slope; None means 200/1140 per node of the batch, as in the attack.
        pairs: (P, 2), each once and with i < j, the pairs that may be flipped; None for all.

    Returns:
        An objective ``(model, x, y, *, ids, seed)`` for nodes x (n,) and labels y (n,), by whose seed the rounding is
        drawn. ``ids`` are not used.

    Raises:
        ValueError, TypeError: for an argument out of its range.

    Source:
        Xu et al. (2019), section 4. Departure: see the module.
    """
    checks.not_negative("share", share)
    checks.at_most("share", share, 1)
    checks.at_least("steps", steps, 1, integer=True)
    if step_size is not None:
        checks.positive("step_size", step_size)
    return TopologyTraining(share, steps, step_size, pairs)
