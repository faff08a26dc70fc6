"""Attacks on the edges of a graph to compare with: at random, by labels, and greedily.

* ``random_edges`` flips pairs at random.
* ``dice``: delete internally, connect externally; removes edges between nodes of one label and adds edges between nodes
  of different ones, at random. Waniek, Michalak, Wooldridge and Rahwan, "Hiding individuals and communities in a social
  network" (2018), section "DICE", as Zügner and Günnemann (2019) use it against labels.
* ``greedy_edges`` flips one pair after the other: that of steepest slope, or, with ``by="loss"``, the one after which
  the loss is in truth smallest. The first is the meta-gradient attack of Zügner and Günnemann, "Adversarial attacks on
  graph neural networks via meta learning" (2019), without its retraining: the weights stay fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName
from robustlab.attacker.parts import every
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model
from robustlab.attacks.discrete.edges import Graph, within
from robustlab.attacks.discrete.graph_task import Task, task
from robustlab.progress import bar

__all__ = ["dice", "greedy_edges", "random_edges"]

AT_ONCE = 2**22  # numbers of the graphs that are asked about together


def random_edges(
    victim: Model, x: Graph, y: Tensor | None = None, *, budget: int | Tensor, nodes: Tensor | None = None,
    pairs: Tensor | None = None, draws: int = 20, share: float = 1.0, seed: int = 0, ids: Tensor | None = None,
) -> AttackResult:  # fmt: skip
    """Flip b pairs that are drawn, several times, and keep the best.

    On a sparse graph nearly all pairs have no edge, so that nearly all flips add one.

    Args:
        victim, x, y, budget, nodes, pairs, share: as of :func:`robustlab.attacks.topology`.
        draws: at least 1; default 20.
        seed, ids: randomness, keyed by the seed and each graph's id (default 0 … N − 1).

    Returns:
        AttackResult; cost without success: draws + 2 queries.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        The random baseline of Xu et al. (2019), section 5.
    """

    def any_pairs(session: Session, live: Live, score: Tensor) -> Tensor:
        return torch.ones_like(score, dtype=torch.bool)

    told = task(victim, x, y, budget=budget, nodes=nodes, pairs=pairs, share=share)
    return _best_of(told, x, any_pairs, draws, seed, ids)


def dice(
    victim: Model, x: Graph, y: Tensor | None = None, *, budget: int | Tensor, nodes: Tensor | None = None,
    pairs: Tensor | None = None, draws: int = 20, removed: float = 0.5, share: float = 1.0, seed: int = 0,
    ids: Tensor | None = None,
) -> AttackResult:  # fmt: skip
    """Remove edges inside of labels and add edges across, at random, several times, and keep the best.

    The labels are those of ``y``, for all nodes: where they are -1, or None, the model's own.

    Args:
        victim, x, y, budget, nodes, pairs, share: as of :func:`robustlab.attacks.topology`.
        draws: at least 1; default 20.
        removed: the share of the budget, in [0, 1], that removes edges, rounded down; where too few can be removed,
            more are added. Default ½.
        seed, ids: randomness, keyed by the seed and each graph's id (default 0 … N − 1).

    Returns:
        AttackResult; cost without success: draws + 2 queries.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Waniek et al. (2018); Zügner and Günnemann (2019), section 5.
    """
    checks.not_negative("removed", removed)
    checks.at_most("removed", removed, 1)

    def inside_or_across(session: Session, live: Live, score: Tensor) -> Tensor:
        label = torch.where(told.nodes, session.y, _own(session.clean, session.y))[live.rows]
        alike = label[:, told.pairs.i] == label[:, told.pairs.j]
        inside, across = live.edges & alike, ~live.edges & ~alike
        count = torch.minimum((removed * live.budget).floor().long(), inside.sum(dim=1))
        return _first(inside, score, count) | _first(across, score, live.budget - count)

    told = task(victim, x, y, budget=budget, nodes=nodes, pairs=pairs, share=share)
    return _best_of(told, x, inside_or_across, draws, seed, ids)


def greedy_edges(
    victim: Model, x: Graph, y: Tensor | None = None, *, budget: int | Tensor, nodes: Tensor | None = None,
    pairs: Tensor | None = None, loss: LossName | LossFunction = "ce", kappa: float = 0.0,
    by: Literal["slope", "loss"] = "slope", share: float = 1.0, seed: int = 0, ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:  # fmt: skip
    """Flip one pair after the other, the most promising one each time.

        e_k = argmin_e ∂f/∂s_e(S_k)  or  argmin_e f(S_k ∪ {e}),   S_{k+1} = S_k ∪ {e_k}

    Where −f is monotone and submodular in the set of flips, the second lowers f by at least 1 − 1/e of the most that b
    flips can. It stops early where no slope is negative, or no flip lowers the loss.

    Args:
        victim, x, y, budget, nodes, pairs, loss, kappa, share: as of :func:`robustlab.attacks.topology`.
        by: ``"slope"``, one gradient per flip; or ``"loss"``, P queries per flip, for small graphs.
        seed: not used; nothing is drawn.
        ids: not used but to be checked.
        progress: show a bar in a terminal.

    Returns:
        AttackResult; cost without success, by slope: 2·b + 2 queries and b gradients; by loss: (P + 1)·b + 2 queries
        at most, P being the number of pairs.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Zügner and Günnemann (2019), section 4, with fixed weights; Nemhauser, Wolsey and Fisher (1978), theorem 4.2.
    """
    checks.one_of("by", by, ("slope", "loss"))
    told = task(victim, x, y, budget=budget, nodes=nodes, pairs=pairs, loss=loss, kappa=kappa, share=share)
    access, cost = ("white", 1) if by == "slope" else ("soft", len(told.pairs))
    with told.opened(x, ids, access=access) as session:  # type: ignore[arg-type]
        best, live = Best(session), told.live(session)
        told.consider(best, live, session.clean)
        live.loss = told.loss_of(session.clean, live)
        for k in bar(range(int(told.budget.max()) if len(told.budget) else 0), show=progress, label="greedy"):
            live.keep(live.budget > k)
            if not len(live) or not session.all_can_pay(live, cost + 1):
                break
            if by == "slope":
                answer = session.gradient(told.points(live), live, told.mean(live.nodes))
                rise, least = told.pairs.slope(answer.grad[1], live.edges), torch.zeros_like(answer.loss)
            else:
                rise, least = _losses(told, session, live), live.loss
            live.lowest, live.pair = rise.masked_fill(live.s > 0, torch.inf).min(dim=1)
            live.keep(live.lowest < least)
            if not len(live):
                break
            live.loss = live.lowest
            live.s = live.s.scatter(1, live.pair[:, None], 1.0)
            told.try_flips(session, best, live, live.s > 0, live.s)
        return session.result(best.points, asked=True)


def _best_of(
    told: Task, x: Graph, choose: Callable[[Session, Live, Tensor], Tensor], draws: int, seed: int, ids: Tensor | None
) -> AttackResult:
    """The best of several sets of flips: those that ``choose`` names (n, P) by random scores (n, P)."""
    checks.at_least("draws", draws, 1, integer=True)
    with told.opened(x, ids, access="soft") as session:
        best, live = Best(session), told.live(session, noise=session.noise(seed))
        told.consider(best, live, session.clean)
        for k in range(draws):
            if not len(live) or not session.all_can_pay(live):
                break
            score = live.noise.uniform(k, (len(told.pairs),))
            told.try_flips(session, best, live, choose(session, live, score), score)
        return session.result(best.points, asked=True)


def _losses(told: Task, session: Session, live: Live) -> Tensor:
    """(n, P): f with one more pair flipped, each in turn."""
    n, sizes = len(live), [part[0].numel() for part in live.x]
    single = torch.eye(len(told.pairs), dtype=live.s.dtype, device=live.s.device)
    parts = []
    for some in single.split(max(1, AT_ONCE // max(1, n * sum(sizes)))):
        m = len(some)
        x, nodes, edges = every(lambda part: part.repeat_interleave(m, 0), (live.x, live.nodes, live.edges))  # noqa: B023
        points = told.pairs.flipped(x, torch.maximum(live.s[:, None], some).flatten(0, 1), edges)
        apart = every(lambda part: part.unflatten(0, (n, m)), points)  # noqa: B023
        parts.append(session.values(live, told.mean(nodes))(apart))
    return torch.cat(parts, dim=1)


def _first(mask: Tensor, score: Tensor, count: Tensor) -> Tensor:
    """The ``count`` (n,) pairs of highest score of a mask (n, P)."""
    return within(mask, score, count) > 0


def _own(clean: Tensor | None, y: Tensor) -> Tensor:
    """The model's own labels."""
    return y if clean is None else clean.argmax(dim=2)
