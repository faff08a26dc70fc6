"""Which words may stand in which places, and every choice of them: what the attacks that substitute words share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustlab.attacker.domain import Tokens
from robustlab.attacker.session import Session
from robustlab.geometry.keyed import Noise


def checked_neighbors(neighbors: object, vocabulary: int | None = None) -> Tensor:
    """A table of neighbors (V, K).

    Raises:
        TypeError, ValueError: naming the argument ``neighbors``.
    """
    if not isinstance(neighbors, Tensor) or neighbors.dtype != torch.int64 or neighbors.dim() != 2:
        got = (
            f"{neighbors.dtype} of {tuple(neighbors.shape)}"
            if isinstance(neighbors, Tensor)
            else type(neighbors).__name__
        )
        raise TypeError(f"neighbors: want int64 of shape (V, K), got {got}")
    size = len(neighbors) if vocabulary is None else vocabulary
    if len(neighbors) != size:
        raise ValueError(f"neighbors: want a row for each of {size} tokens, got {len(neighbors)} rows")
    if neighbors.numel() and not bool(((neighbors >= -1) & (neighbors < size)).all()):
        ends = int(neighbors.min()), int(neighbors.max())
        raise ValueError(f"neighbors: want tokens in 0 … {size - 1}, or −1 for none, got {ends[0]} … {ends[1]}")
    return neighbors


def substitutes(session: Session, x: Tensor, neighbors: Tensor, language: Any, max_change: float) -> Tensor:
    """What may stand in each place of texts (n, T): (n, T, K) tokens, −1 behind the last.

    Neighbors of a word that may be changed, other than itself, that may come in, and that change the log-probability of
    the text by at most ``max_change`` per word that they enter into.
    """
    domain = session.domain
    assert isinstance(domain, Tokens)
    words = neighbors.to(x.device)[x]
    allowed = (
        (words >= 0) & domain.movable(x)[:, :, None] & domain.movable(words.clamp_min(0)) & (words != x[:, :, None])
    )
    if language is not None:
        allowed &= language.changes(x, words).abs() <= max_change
    order = (~allowed).to(torch.int8).argsort(dim=2, stable=True)
    return words.masked_fill(~allowed, -1).gather(2, order)


class Choices(NamedTuple):
    """Combinations of each sample: (n, m, P), which word stands in each place, 0 for its own; whether there is one."""

    choice: Tensor
    exists: Tensor


def enumerated(sizes: Tensor, left: Tensor, most: int) -> Choices:
    """All combinations of substitutes in P places, those of one change first, then of two, …

    Args:
        sizes: (n, P) int64, how many substitutes each place has.
        left: (n,) how many places may be changed.
        most: of combinations of one sample, of which the first are returned.
    """
    places = sizes.shape[1]
    bits = torch.arange(1, 2**places, device=sizes.device)[:, None] >> torch.arange(places, device=sizes.device) & 1
    subsets = bits[bits.sum(dim=1).argsort(stable=True)].bool()  # sets of places that are changed
    counts = torch.where(subsets, sizes[:, None], 1).prod(dim=2) * (subsets.sum(dim=1) <= left[:, None])
    ends = counts.cumsum(dim=1)
    total = ends[:, -1]
    number = torch.arange(min(most, int(total.max())), device=sizes.device).repeat(len(sizes), 1)
    which = torch.searchsorted(ends, number, right=True).clamp_max(len(subsets) - 1)
    inside = subsets[which]
    radix = torch.where(inside, sizes[:, None], 1).clamp_min(1)
    digit = (number - (ends - counts).gather(1, which))[:, :, None] // (radix.cumprod(dim=2) // radix) % radix
    exists = number < total[:, None]
    return Choices(torch.where(inside & exists[:, :, None], 1 + digit, 0), exists)


def changed_at_random(
    x: Tensor, words: Tensor, free: Tensor, number: Tensor, noise: Noise, draw: tuple[int, ...]
) -> Tensor:
    """Texts x (n, T) with a random one of words (n, T, K) in ``number`` (n,) random places among the free (n, T)."""
    score = noise.uniform((*draw, 0), x.shape[1:]).masked_fill(~free, 2.0)
    rank = score.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    sizes = (words >= 0).sum(dim=2)
    which = (noise.uniform((*draw, 1), x.shape[1:], torch.float64) * sizes).long().clamp_max(words.shape[2] - 1)
    word = words.gather(2, which[:, :, None])[:, :, 0]
    return torch.where((rank < number[:, None]) & free, word, x)


def substituted(x: Tensor, words: Tensor, place: Tensor, choice: Tensor) -> Tensor:
    """(n, m, T): texts x (n, T) with the words of ``choice`` (n, m, P), among words (n, T, K), in the places (n, P)."""
    m = choice.shape[1]
    old = x.gather(1, place)
    options = torch.cat([old[:, :, None], words.gather(1, place[:, :, None].expand(-1, -1, words.shape[2]))], dim=2)
    new = options[:, None].expand(-1, m, -1, -1).gather(3, choice[:, :, :, None]).squeeze(3)
    return x[:, None].repeat(1, m, 1).scatter(2, place[:, None].expand(-1, m, -1), new)
