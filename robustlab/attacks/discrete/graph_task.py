"""What an attack on graphs is told, checked, and what the attacks share of their questions: goal, loss and order."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Graphs
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.session import Access, Session
from robustlab.attacker.victim import Victim
from robustlab.attacks.discrete.edges import Graph, Pairs, within

PER_NODE = {"ce": 200 / 1140}  # the authors' 200 is for a mean over Cora's 140 training and 1,000 test nodes


class Lost:
    """The goal of an attack on nodes: at least a share of them have lost their label.

    Attributes:
        y: (N, V) labels; None until the first answer, which is the one at x, tells the model's own.
    """

    def __init__(self, y: Tensor | None, nodes: Tensor, share: float) -> None:
        self.y, self.nodes, self.share = y, nodes, share

    def __call__(self, answer: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool for the answer (n, V, K) of samples ``rows``."""
        if self.y is None:
            self.y = answer.argmax(dim=2)
        wanted = (self.share * self.nodes[rows].sum(dim=1)).clamp_min(1e-9)
        return self.count(answer, rows) >= wanted - 1e-6

    def count(self, answer: Tensor, rows: Tensor) -> Tensor:
        """(n,) how many of the attacked nodes have lost their label; a score of NaN loses none."""
        assert self.y is not None
        top, label = answer.max(dim=2)
        return ((label != self.y[rows]) & (top == top) & self.nodes[rows]).sum(dim=1)


@dataclass(frozen=True)
class Task:
    """What an attack on graphs was told, checked."""

    victim: Victim
    y: Tensor | None
    pairs: Pairs
    budget: Tensor
    nodes: Tensor
    goal: Lost
    loss: LossName | LossFunction
    kappa: float

    def opened(self, x: Graph, ids: Tensor | None, first_round: int = 0, access: Access = "white") -> Any:
        """A session for the attack."""
        return self.victim.session(
            x, self.y, ids=ids, access=access, domain=Graphs, goal=self.goal, first_round=first_round
        )

    def live(self, session: Session, **rows: Any) -> Live:
        """The samples at work, with their edges, budgets and the nodes attacked, and no flips ``s`` (n, P) yet."""
        live = session.live(budget=self.budget, nodes=self.nodes, **rows)
        live.edges = self.pairs.edges(live.x[1])
        live.s = torch.zeros_like(live.edges, dtype=live.x[1].dtype)
        return live

    def points(self, live: Live) -> Graph:
        """The graphs with ``live.s`` flipped."""
        return self.pairs.flipped(live.x, live.s, live.edges)

    def mean(self, nodes: Tensor) -> LossFunction:
        """The attacker's loss as a mean over the attacked nodes (n, V): scores (n, V, K), labels (n, V) → (n,)."""
        g = attacker_loss(self.loss)

        def f(answer: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
            each: Tensor = g(answer.flatten(0, 1), y.flatten(), None, self.kappa).reshape(y.shape)
            return torch.where(nodes, each, 0.0).sum(dim=1) / nodes.sum(dim=1)

        return f

    def rate(self, live: Live) -> Tensor:
        """The paper's step sizes per attacked node, (n, 1): 200/1140 for cross-entropy, 0.1 for the others."""
        return PER_NODE.get(str(self.loss), 0.1) * live.nodes.sum(dim=1, keepdim=True)

    def reserved(self, draws: int) -> int:
        """The queries that are kept for roundings: half of a budget at most."""
        if self.victim.budget is None:
            return 0
        return min(draws + 1, max(1, (self.victim.budget - 2) // 2))

    def of(self, victim: Victim) -> Task:
        """The same task on another victim."""
        return replace(self, victim=victim)

    def loss_of(self, clean: Tensor | None, live: Live) -> Tensor:
        """(n,) f at x, in float64, by the answer that is known."""
        if clean is None:
            return torch.zeros(len(live), dtype=torch.float64, device=live.rows.device)
        return self.mean(live.nodes)(clean[live.rows].double(), live.y)

    def consider(self, best: Best, live: Live, clean: Tensor | None) -> None:
        """Take x itself as the best so far, by the answer that is known."""
        if clean is not None and len(live):
            best.keep(live, live.x, self.order(clean[live.rows], live))

    def order(self, answer: Tensor, live: Live) -> Tensor:
        """(n,) to be minimized: more nodes lost come first, and of equally many the smaller loss."""
        return (
            0.5
            + self.mean(live.nodes)(answer, live.y).double().nan_to_num(0.0).atan() / math.pi
            - self.goal.count(answer, live.rows)
        )

    def try_flips(self, session: Session, best: Best, live: Live, chosen: Tensor, score: Tensor) -> Tensor:
        """Ask about the graphs with a mask of pairs (n, P) flipped, those of highest score as far as the budget goes.

        Keeps what is the best so far, goes on with the samples whose goal is not met, and returns what was flipped.
        """
        flips = within(chosen, score, live.budget).to(live.s.dtype)
        points = self.pairs.flipped(live.x, flips, live.edges)
        answer = session.ask(points, live)
        best.keep(live, points, self.order(answer.logits, live))
        live.leave(answer.met)
        return flips


def task(
    victim: Any, x: Any, y: Tensor | None, *, budget: int | Tensor, nodes: Tensor | None, pairs: Tensor | None,
    loss: LossName | LossFunction = "ce", kappa: float = 0.0, share: float = 1.0,
) -> Task:  # fmt: skip
    """Check what an attack on graphs was told; raises ValueError or TypeError that names the argument."""
    seen = Victim.of(victim)
    if not isinstance(seen.domain, Graphs) or seen.answer != "sequence":
        raise TypeError(
            'victim: want one of graphs, Victim(net, domain=Graphs(), answer="sequence"), whose net takes features '
            f"(N, V, F) and an adjacency (N, V, V) and gives scores (N, V, K), got {seen.domain} and {seen.answer!r}"
        )
    seen.domain.check(x)
    features, adjacency = x
    if not adjacency.is_floating_point():
        raise TypeError(f"x: want an adjacency of floats, in which a net has gradients, got {adjacency.dtype}")
    n, vertices = adjacency.shape[:2]
    mask = _nodes(nodes, n, vertices, features.device)
    which = Pairs(_pairs(pairs, vertices), vertices, features.device)
    count = _budget(budget, n, len(which), features.device)
    attacker_loss(loss)
    checks.not_negative("kappa", kappa)
    checks.positive("share", share)
    checks.at_most("share", share, 1)
    label = None if y is None else _labels(y, mask)
    return Task(seen, label, which, count, mask, Lost(label, mask, share), loss, kappa)


def _nodes(nodes: Tensor | None, n: int, vertices: int, device: torch.device) -> Tensor:
    """(N, V) bool of a mask (V,) or (N, V), or of indices (m,); None for all."""
    if nodes is None:
        return torch.ones(n, vertices, dtype=torch.bool, device=device)
    nodes = torch.as_tensor(nodes, device=device)
    if nodes.dtype == torch.bool and nodes.shape in ((vertices,), (n, vertices)):
        mask = nodes.expand(n, vertices)
    elif not nodes.is_floating_point() and nodes.dtype != torch.bool and nodes.dim() == 1:
        if len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < vertices:
            raise ValueError(f"nodes: want nodes in 0 … {vertices - 1}, got {int(nodes.min())} … {int(nodes.max())}")
        mask = torch.zeros(vertices, dtype=torch.bool, device=device).index_fill_(0, nodes.long(), True)
        mask = mask.expand(n, vertices)
    else:
        raise ValueError(
            f"nodes: want indices (m,), or bools of shape ({vertices},) or ({n}, {vertices}), got {nodes.dtype} of "
            f"shape {tuple(nodes.shape)}"
        )
    if not bool(mask.any(dim=1).all()):
        raise ValueError("nodes: want at least one node to attack in each graph, got none")
    return mask


def _pairs(pairs: Tensor | None, vertices: int) -> Tensor | None:
    if pairs is None:
        return None
    if not isinstance(pairs, Tensor) or pairs.dim() != 2 or pairs.shape[1] != 2 or pairs.is_floating_point():
        got = f"{pairs.dtype} of shape {tuple(pairs.shape)}" if isinstance(pairs, Tensor) else type(pairs).__name__
        raise TypeError(f"pairs: want integers (P, 2), got {got}")
    if bool((pairs[:, 0] == pairs[:, 1]).any()):
        raise ValueError("pairs: want two different nodes in each, got a loop")
    if len(pairs) and not 0 <= int(pairs.min()) <= int(pairs.max()) < vertices:
        raise ValueError(f"pairs: want nodes in 0 … {vertices - 1}, got {int(pairs.min())} … {int(pairs.max())}")
    ordered = pairs.sort(dim=1).values.long()
    if len(torch.unique(ordered, dim=0)) != len(ordered):
        raise ValueError("pairs: want each pair once, got some twice")
    return ordered


def _budget(budget: Any, n: int, most: int, device: torch.device) -> Tensor:
    """(N,) int64."""
    integer = isinstance(budget, numbers.Integral) and not isinstance(budget, bool)
    kind = budget.dtype if isinstance(budget, Tensor) else torch.int64 if integer else torch.bool
    if kind.is_floating_point or kind == torch.bool or (isinstance(budget, Tensor) and budget.shape not in ((), (n,))):
        got = f"{kind} of shape {tuple(budget.shape)}" if isinstance(budget, Tensor) else repr(budget)
        raise TypeError(
            f"budget: want a whole number of flipped pairs, or one per graph ({n},), such as round(0.05 * edges), got "
            f"{got}"
        )
    count = torch.as_tensor(budget, device=device).long()
    if bool(((count < 0) | (count > most)).any()):
        raise ValueError(
            f"budget: want between 0 and {most}, the number of pairs, got {int(count.min())} … {int(count.max())}"
        )
    return count.expand(n)


def _labels(y: Any, nodes: Tensor) -> Tensor:
    """(N, V) labels; what stands beside nodes that are not attacked is not looked at."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool or y.shape != nodes.shape:
        got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y: want a label per node, integers of shape {tuple(nodes.shape)}, got {got}")
    return torch.where(nodes, y.to(nodes.device).long(), 0)
