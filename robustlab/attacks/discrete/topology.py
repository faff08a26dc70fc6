"""Topology attack: projected gradient descent on the edges of a graph.

Xu, Chen, Liu, Chen, Weng, Hong and Lin, "Topology attack and defense for graph neural networks: an optimization
perspective" (2019). A graph net labels nodes; the attacker flips at most b pairs of nodes,

    minimize_s  f(s) = mean_{i ∈ nodes} g(z_i(A'), y_i)   subject to s ∈ {0, 1}^P, Σ s ≤ b
    A' = A + (Ā − A) ⊙ S,  S_ij = S_ji = s_ij for pairs i < j

On the relaxed set s ∈ [0, 1]^P projected gradient descent runs from s = 0,

    s ← P( s − η_t · ∇f(s) ),  η_t = η/√t

with a projection by bisection (:func:`robustlab.attacks.discrete.edges.onto_budget`). Then flips u ~ Bernoulli(s) are
drawn several times, and the best are kept. With ``retrain`` it is the min-max attack: after each change of the graph
the weights take a step that lowers the training loss on it, so that the attack is one on a net that is yet to be
trained on what it leaves.

As in the authors' code the labels that are to be lost are the model's own by default, of this model on this graph:
they are asked at the start, and never read from a file that another model may have written.

Different here: of the draws that exceed the budget, which may be all of them, the flips of largest s are kept as far as
the budget goes, where the paper drops such draws; beside the draws the b largest s are tried; the inner training of
min-max takes steps of Adam, with which the net was trained, on nodes and labels that are stated. A slope of
a mean over few nodes is larger than one over many: the steps of the authors, 200 for a mean of cross-entropies over
Cora's 1,140 nodes and 0.1 for a sum of margins, are taken per node.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.live import Best
from robustlab.attacker.losses import LossFunction, LossName
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.discrete.edges import Graph, onto_budget
from robustlab.attacks.discrete.graph_task import task
from robustlab.progress import bar

__all__ = ["Retraining", "topology"]


def topology(
    victim: Model,
    x: Graph,
    y: Tensor | None = None,
    *,
    budget: int | Tensor,
    nodes: Tensor | None = None,
    pairs: Tensor | None = None,
    loss: LossName | LossFunction = "ce",
    kappa: float = 0.0,
    steps: int = 200,
    step_size: float | None = None,
    draws: int = 20,
    share: float = 1.0,
    retrain: Retraining | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Projected gradient descent on relaxed flips of edges, then random rounding.

        minimize_s  mean_{i ∈ nodes} g(z_i(A'(s)), y_i)  subject to Σ s ≤ b, s ∈ {0, 1}^P

    It computes on all pairs at once, in some 90·V² bytes beside the inputs. On one thread a step with a net of 16
    hidden units takes about 10 ms on 500 papers of Cora, and a third of a second and 0.6 GB on all 2,708, which are
    3.7 million pairs; :meth:`robustlab.data.Citations.connected_part` makes such parts.

    Args:
        victim: ``Victim(net, domain=Graphs(), answer="sequence")`` of a net from features (N, V, F) and an adjacency
            (N, V, V), differentiable in the weights of edges, to scores (N, V, K).
        x: features and adjacency of N graphs, the latter of 0 and 1, symmetric and without loops.
        y: (N, V) labels that are to be lost; None takes the model's own at x. A node whose label it does not have at x
            counts as lost.
        budget: b, the most pairs that may be flipped, a whole number or (N,); 0 returns x.
        nodes: whom to attack: indices (m,), or bools (V,) or (N, V); None for all.
        pairs: (P, 2), which pairs may be flipped; None for all V·(V − 1)/2.
        loss: attacker's loss g (:mod:`robustlab.attacker.losses`): ``"ce"`` is the paper's CE-PGD, ``"margin"`` its
            CW-PGD.
        kappa: confidence κ ≥ 0 of the margin.
        steps: gradient steps, at least 1; default 200.
        step_size: η > 0, of f's slope; None means the paper's by the number of attacked nodes, 200/1140 per node for
            ``"ce"`` and 0.1 per node else.
        draws: random roundings, at least 0; default 20, as in the paper.
        share: of the attacked nodes, in (0, 1], that are to lose their label: the goal, where the attack stops.
        retrain: for min-max, how the net will be trained on the attacked graph; one graph only. Its passes run on a
            copy of the model and are no queries.
        seed, ids: randomness, keyed by the seed and each graph's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep f of every step as ``result.trace["loss"]``, (steps, N).

    Returns:
        AttackResult with the distances ``edges`` and ``features``; a success has lost ``share`` of its nodes. Else the
        graph with most nodes lost, of equally many that of smallest f, x itself being one. Cost of a graph that is not
        a success: steps + draws + 2 queries, and steps gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Xu et al. (2019), section 3: the PGD and the min-max topology attack.
    """
    checks.at_least("steps", steps, 1, integer=True)
    checks.at_least("draws", draws, 0, integer=True)
    if step_size is not None:
        checks.positive("step_size", step_size)
    told = task(victim, x, y, budget=budget, nodes=nodes, pairs=pairs, loss=loss, kappa=kappa, share=share)
    weights = None if retrain is None else Weights(told.victim, retrain, x)
    told = told if weights is None else told.of(weights.victim)
    losses = list[Tensor]()
    with told.opened(x, ids) as session:
        best, live = Best(session), told.live(session, noise=session.noise(seed))
        rate = told.rate(live) if step_size is None else step_size
        told.consider(best, live, session.clean)
        with session.relax():
            for t in bar(range(1, steps + 1), show=progress, label="topology"):
                if not len(live) or not session.all_can_pay(live, 1 + told.reserved(draws)):
                    break
                points = told.points(live)
                if weights is not None:
                    weights.step(points)
                answer = session.gradient(points, live, told.mean(live.nodes))
                slope = told.pairs.slope(answer.grad[1], live.edges)
                live.s = onto_budget(live.s - rate / t**0.5 * slope, live.budget)
                if trace:
                    losses.append(answer.loss.new_full((len(x[1]),), torch.nan).index_put_((live.rows,), answer.loss))
        for k in range(draws + 1):
            if not len(live) or not session.all_can_pay(live):
                break
            chosen = live.noise.uniform(k, live.s.shape[1:], live.s.dtype) < live.s if k else live.s > 0
            told.try_flips(session, best, live, chosen, live.s)
        if weights is not None:
            weights.restore()
        traced = {"loss": torch.stack(losses)} if losses else None
        return session.result(best.points, asked=weights is None, trace=traced)


@dataclass(frozen=True)
class Retraining:
    """How a net will be trained on the graph that the attack leaves, for min-max.

    Attributes:
        nodes: (m,) int64, those whose labels it is trained on.
        labels: (m,) int64.
        steps: of Adam after each change of the graph, at least 1.
        lr: their rate, above 0.
        weight_decay: at least 0.
    """

    nodes: Tensor
    labels: Tensor
    steps: int = 1
    lr: float = 0.01
    weight_decay: float = 5e-4


class Weights:
    """A copy of a model whose weights move with the graph."""

    def __init__(self, victim: Victim, how: Retraining, x: Graph) -> None:
        if len(x[1]) != 1:
            raise ValueError(f"retrain: want one graph, since its weights are trained on one, got {len(x[1])}")
        if not isinstance(victim.model, nn.Module):
            raise TypeError(f"retrain: want a victim of an nn.Module, got {type(victim.model).__name__}")
        with torch.inference_mode(False):
            self.model = copy.deepcopy(victim.model)
        self.how, self.victim = how, victim.on(self.model)
        self.nodes, self.labels = how.nodes.to(x[1].device), how.labels.to(x[1].device)
        if self.nodes.dim() != 1 or self.nodes.shape != self.labels.shape or not len(self.nodes):
            shapes = tuple(self.nodes.shape), tuple(self.labels.shape)
            raise ValueError(f"retrain: want nodes (m,) and a label of each, got shapes {shapes[0]} and {shapes[1]}")
        checks.at_least("retrain.steps", how.steps, 1, integer=True)
        checks.positive("retrain.lr", how.lr)
        self.before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.moving = {name: p.clone().requires_grad_(True) for name, p in self.before.items()}
        self.stepper = torch.optim.Adam(list(self.moving.values()), lr=how.lr, weight_decay=how.weight_decay)

    def step(self, points: Graph) -> None:
        """Training steps on a graph; the victim's model has the weights after them."""
        with torch.enable_grad():
            for _ in range(self.how.steps):
                answer: Any = torch.func.functional_call(self.model, self.moving, points)
                value = F.cross_entropy(answer[0, self.nodes], self.labels)
                self.stepper.zero_grad()
                value.backward()
                self.stepper.step()
        self._wear(self.moving)

    def restore(self) -> None:
        """Give the model the weights that the caller's has, by which success is judged."""
        self._wear(self.before)

    def _wear(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(weights[name])
