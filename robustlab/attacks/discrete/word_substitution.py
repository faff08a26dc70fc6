"""Attacks that substitute words by asking for scores alone, the baselines that users of text attacks expect.

* ``"importance"``: Jin, Jin, Zhou and Szolovits, "Is BERT really robust? A strong baseline for natural language attack
  on text classification and entailment" (2020), algorithm 1 (TextFooler). Words are ranked once, by how much the loss
  falls without them; then each in turn becomes the neighbor that fools the model (the nearest, if several do), or else
  the one of smallest loss.
* ``"greedy"``: of all neighbors in all places the one of smallest loss, one after the other. This is the greedy that
  the theorem of Lei et al. (2019) speaks of, with the exact gain of every change.
* ``"random"``: random sentences inside the budget; the best is kept.
* ``"genetic"``: Alzantot, Sharma, Elgohary, Ho, Srivastava and Chang, "Generating natural language adversarial
  examples" (2018): a population, parents drawn by fitness, children that take each word from one of two parents, and
  mutation of one word to its best neighbor.

Different here: all of them share one budget of changed words, one table of neighbors and one filter by a language
model, so that they can be compared; TextFooler's filters by part of speech and sentence encoder are left to the table;
in the genetic search a child with too many changes is mended by taking back the last ones, and a mutation is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Tokens
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.tokens import ask_some
from robustlab.attacker.victim import Model
from robustlab.attacks.discrete.substitutes import changed_at_random, substitutes
from robustlab.attacks.discrete.word_search import Language, begun, padding, take_best, victim_of_tokens
from robustlab.progress import bar

Search = Literal["importance", "greedy", "random", "genetic"]
POPULATION = 20


def word_substitution(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    neighbors: Tensor,
    search: Search = "importance",
    changes: int | float = 0.2,
    language: Language | None = None,
    max_change: float = 2.0,
    queries: int = 400,
    loss: LossName | LossFunction = "margin",
    kappa: float = 0.0,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Substitute words by their neighbors until the classifier errs, by its scores alone.

        minimize_x' g(x')  subject to  x'_i ∈ {x_i} ∪ W_i,  #{i : x'_i ≠ x_i} ≤ m

    Args:
        victim, x, y, neighbors, changes, language, max_change, loss, kappa, target: as of
            :func:`robustlab.attacks.paraphrase`, under soft access.
        search: ``"importance"`` (default), ``"greedy"``, ``"random"`` or ``"genetic"``.
        queries: how many sentences the random and the genetic search ask about, at least 1; default 400.
        seed, ids: of these two, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult, of distance ``"tokens"``. A sample stops at its first success; where the attack fails it has the
        text of smallest loss that was asked about.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Jin et al. (2020), algorithm 1; Alzantot et al. (2018), algorithm 1; Lei et al. (2019), section 3, for greedy.
        Departures: see the module.
    """
    g, victim = attacker_loss(loss), victim_of_tokens(victim, neighbors, changes)
    checks.one_of("search", search, get_args(Search))
    checks.at_least("queries", queries, 1, integer=True)
    checks.at_least("max_change", max_change, 0.0)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa, access="soft", loss=g, domain=Tokens) as session:
        live, best = begun(session, changes, seed), Best(session)
        live.words = substitutes(session, live.points, neighbors, language, max_change)
        live.open = (live.words >= 0).any(dim=2)
        live.keep(live.open.any(dim=1) & (live.left > 0))
        if len(live):
            assert session.clean is not None
            live.value = g(session.clean[live.rows], live.y, live.target, kappa).double()
            _SEARCHES[search](session, live, best, g, queries, progress)
        return session.result(best.points, asked=True)


def _importance(session: Session, live: Live, best: Best, g: LossFunction, queries: int, show: bool) -> None:
    """TextFooler: rank the words by what the loss is without each, then change them in this order."""
    length = live.x.shape[1]
    place = torch.arange(length, device=live.x.device)
    behind = torch.cat([live.x, torch.full_like(live.x[:, :1], padding(session.domain))], dim=1)
    without = behind[:, place[None] + (place[None] >= place[:, None])]  # (n, T, T): row i lacks word i
    told = ask_some(session, live, without, live.open, g, probe=True)
    live.rank = told.loss.argsort(dim=1, stable=True)  # without an important word the loss is small
    for k in bar(range(length), show=show, label="word_substitution"):
        live.keep(live.open.gather(1, live.rank[:, k : k + 1])[:, 0] & (live.left > 0))
        live.keep(session.can_pay(live))
        if not len(live):
            break
        at = live.rank[:, k]
        words = live.words[torch.arange(len(live), device=at.device), at]  # (n, K)
        tried = live.points[:, None].repeat(1, words.shape[1], 1)
        tried.scatter_(2, at[:, None, None].expand(-1, words.shape[1], 1), words.clamp_min(0)[:, :, None])
        _step(session, live, best, g, tried, words >= 0)


def _greedy(session: Session, live: Live, best: Best, g: LossFunction, queries: int, show: bool) -> None:
    """The best of all single substitutions, again and again; a place is changed once."""
    length, width = live.words.shape[1:]
    place = torch.arange(length, device=live.x.device).repeat_interleave(width)
    for _ in bar(range(length), show=show, label="word_substitution"):
        live.keep(live.open.any(dim=1) & (live.left > 0))
        live.keep(session.can_pay(live))
        if not len(live):
            break
        words = live.words.flatten(1)
        tried = live.points[:, None].repeat(1, len(place), 1)
        tried.scatter_(2, place[None, :, None].expand(len(live), -1, 1), words.clamp_min(0)[:, :, None])
        _step(session, live, best, g, tried, (words >= 0) & live.open[:, place])
        live.open = live.open.scatter(1, place[live.chosen][:, None], False)
        live.keep(live.moved)


def _random(session: Session, live: Live, best: Best, g: LossFunction, queries: int, show: bool) -> None:
    """Sentences with as many changes as allowed, in random places, to random neighbors."""
    live.most = live.left
    for k in bar(range(queries), show=show, label="word_substitution"):
        live.keep(session.can_pay(live))
        if not len(live):
            break
        tried = changed_at_random(live.x, live.words, live.open, live.most, live.noise, (k,))
        _step(session, live, best, g, tried[:, None], torch.ones(len(live), 1, dtype=torch.bool, device=tried.device))


def _genetic(session: Session, live: Live, best: Best, g: LossFunction, queries: int, show: bool) -> None:
    """Generations of ``POPULATION`` sentences: the fittest stays, children take words of two parents and mutate."""
    start = [
        changed_at_random(live.x, live.words, live.open, torch.ones_like(live.left), live.noise, (-1 - i,))
        for i in range(POPULATION)
    ]
    live.people = torch.stack(start, dim=1)
    for generation in bar(range(-(-queries // POPULATION)), show=show, label="word_substitution"):
        live.keep(session.can_pay(live))
        if not len(live):
            break
        told = ask_some(session, live, live.people, torch.ones_like(live.people[:, :, 0], dtype=torch.bool), g)
        take_best(live, live.people, told.loss, told.met, live.value)
        best.keep(live, live.points, live.value)
        live.people = _children(live, told.loss, generation)
        live.leave(live.met)


def _children(live: Live, loss: Tensor, generation: int) -> Tensor:
    """The next generation (n, P, T): the fittest, and children of parents drawn by softmax of the negative loss."""
    n, size, length = live.people.shape
    fitness = torch.softmax(-loss.nan_to_num(1e9, 1e9), dim=1).cumsum(dim=1)
    drawn = live.noise.uniform((1, generation), (2 * size,), torch.float64)
    parents = torch.searchsorted(fitness, drawn * fitness[:, -1:]).clamp_max(size - 1)
    both = live.people.gather(1, parents[:, :, None].expand(-1, -1, length)).unflatten(1, (2, size))
    child = torch.where(live.noise.uniform((2, generation), (size, length)) < 0.5, both[:, 0], both[:, 1])
    mutated = [
        changed_at_random(
            child[:, i], live.words, live.open, torch.ones_like(live.left), live.noise, (3, generation, i)
        )
        for i in range(size)
    ]
    child = torch.stack(mutated, dim=1)
    changed = child != live.x[:, None]
    child = torch.where(changed & (changed.cumsum(dim=2) > live.left[:, None, None]), live.x[:, None], child)
    fittest = loss.argmin(dim=1)
    return torch.cat([live.people[torch.arange(n, device=child.device), fittest][:, None], child[:, 1:]], dim=1)


_SEARCHES: dict[Search, Callable[[Session, Live, Best, LossFunction, int, bool], None]] = {
    "importance": _importance,
    "greedy": _greedy,
    "random": _random,
    "genetic": _genetic,
}


def _step(session: Session, live: Live, best: Best, g: LossFunction, tried: Tensor, asked: Tensor) -> None:
    """Ask about points (n, m, T), go to the best, ``live.chosen``, if it is better, and stop where it is enough."""
    told = ask_some(session, live, tried, asked, g)
    first = told.met.int().argmax(dim=1, keepdim=True)  # the nearest word of those that fool the model
    nearest = torch.zeros_like(told.met).scatter(1, first, told.met.gather(1, first))
    live.chosen = take_best(live, tried, told.loss, nearest, live.value)
    best.keep(live, live.points, live.value)
    live.left = live.left - live.moved.long()
    live.leave(live.met)
