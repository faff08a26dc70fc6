"""How a search over words begins and takes a step: what the attacks that substitute words share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from robustlab.attacker.domain import Domain, Tokens
from robustlab.attacker.live import Live
from robustlab.attacker.session import Session
from robustlab.attacker.tokens import allowed_changes, checked_changes
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.discrete.substitutes import checked_neighbors


class Language(Protocol):
    """A language model, such as :class:`robustlab.models.ngram.Trigrams`."""

    def changes(self, x: Tensor, words: Tensor) -> Tensor:
        """How words (N, T, K) in the places of x (N, T) change its log-probability, (N, T, K)."""
        ...


def victim_of_tokens(victim: Model, neighbors: Tensor, changes: int | float) -> Victim:
    """A Victim as it is; a bare model takes the tokens that have a row in the neighbors. Both arguments are checked."""
    domain = victim.domain if isinstance(victim, Victim) else None
    checked_neighbors(neighbors, domain.vocabulary if isinstance(domain, Tokens) else None)
    checked_changes(changes)
    if isinstance(victim, Victim):
        return victim
    size = len(neighbors)
    return Victim(victim, domain=Tokens(size, fixed=tuple(range(min(2, size)))))


def begun(session: Session, changes: int | float, seed: int) -> Live:
    """The samples at work, with their points, their loss so far and how many words may still be changed."""
    domain = session.domain
    assert isinstance(domain, Tokens)
    live = session.live(noise=session.noise(seed))
    live.points = live.x.clone()
    live.left = allowed_changes(changes, domain.movable(live.x))
    live.value = torch.full((len(live),), torch.inf, dtype=torch.float64, device=live.x.device)
    return live


def take_best(live: Live, tried: Tensor, loss: Tensor, met: Tensor, before: Tensor) -> Tensor:
    """Move each sample to the tried point (n, m, T) of smallest loss, if it is smaller than before or meets the goal.

    Returns which of the m it is, (n,). ``live.met`` says whether the goal is met there, ``live.moved`` whether it
    moved, and ``live.value`` has the loss, −∞ where the goal is met.
    """
    if not tried.shape[1]:
        live.met = live.moved = torch.zeros(len(live), dtype=torch.bool, device=tried.device)
        live.value = before
        return torch.zeros(len(live), dtype=torch.int64, device=tried.device)
    value = loss.masked_fill(met, -torch.inf)
    least, chosen = value.min(dim=1)
    live.moved = least < before
    live.met = live.moved & met.gather(1, chosen[:, None])[:, 0]
    point = tried[torch.arange(len(tried), device=tried.device), chosen]
    live.points = torch.where(live.moved[:, None], point, live.points)
    live.value = torch.where(live.moved, least, before)
    return chosen


def padding(domain: Domain) -> int:
    """The padding: the first token that may not be changed."""
    return min(domain.fixed, default=0) if isinstance(domain, Tokens) else 0
