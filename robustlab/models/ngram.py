"""A language model of counts: the probability of a word after the two before it."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks


class Trigrams:
    """A trigram model with interpolated counts, fitted on rows of token ids.

        p(c | a, b) = λ·n(abc)/n(ab·) + (1 − λ)·p(c | b)      p(c | b) where n(ab·) = 0
        p(c | b)    = λ·n(bc)/n(b·)   + (1 − λ)·p(c)          p(c)     where n(b·) = 0
        p(c)        = (n(c) + 1) / (n + V)

    Padding, id 0, stands before the first word and once behind the last, where it ends the text; what follows is not
    read. All three are distributions over the V tokens.

    Args:
        x: (N, T) int64, with padding at the end of rows.
        vocabulary: V, number of token ids.
        weight: λ in [0, 1), default 0.7.

    Raises:
        ValueError, TypeError: for no texts, other than integers, or an argument out of its range.
    """

    def __init__(self, x: Tensor, *, vocabulary: int, weight: float = 0.7) -> None:
        checks.at_least("vocabulary", vocabulary, 1, integer=True)
        checks.not_negative("weight", weight)
        checks.below("weight", weight, 1)
        if x.dtype != torch.int64 or x.dim() != 2 or not len(x):
            raise TypeError(f"x: want rows of token ids, int64 (N, T), got {x.dtype} of shape {tuple(x.shape)}")
        self.vocabulary, self.weight = vocabulary, weight
        a, b, c, read = _trigrams(x)
        a, b, c = a[read], b[read], c[read]
        self._unigrams = torch.bincount(c, minlength=vocabulary)
        size = vocabulary
        self._tables = [
            torch.unique(keys, return_counts=True)
            for keys in ((a * size + b) * size + c, a * size + b, b * size + c, b)
        ]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of each word of x (N, T) and of its end, (N, T + 1), in float64; 0 behind the end."""
        a, b, c, read = _trigrams(x)
        return torch.where(read, self.log_conditional(a, b, c), 0.0)

    def log_conditional(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """log p(c | a, b) for token ids of equal shape, in float64."""
        size, weight = self.vocabulary, self.weight
        abc, ab, bc, alone = (
            self._count(i, keys) for i, keys in enumerate(((a * size + b) * size + c, a * size + b, b * size + c, b))
        )
        unigrams = self._unigrams.to(c.device)
        p = (unigrams[c].double() + 1) / (unigrams.sum() + size)
        for pair, context in ((bc, alone), (abc, ab)):
            p = torch.where(context > 0, weight * pair / context.clamp_min(1) + (1 - weight) * p, p)
        return p.log()

    def changes(self, x: Tensor, words: Tensor) -> Tensor:
        """By how much other words change the log-probability of a text, per word that it enters into.

            (log p(x with w in place i) − log p(x)) / 3

        Args:
            x: (N, T) token ids.
            words: (N, T, K), what may stand in each place; −1 is read as 0.

        Returns:
            (N, T, K) in float64.
        """
        padded = torch.nn.functional.pad(x, (2, 2))
        window = padded.unfold(1, 5, 1)[:, :, None].expand(*words.shape, 5)  # two before, the word, two behind
        other = torch.cat([window[..., :2], words.clamp_min(0)[..., None], window[..., 3:]], dim=-1)
        return (self._around(other) - self._around(window)) / 3

    def _around(self, window: Tensor) -> Tensor:
        """The sum of the log-probabilities of the last three of five tokens, (...,); behind the end none is read."""
        terms = torch.stack([self.log_conditional(*window[..., i : i + 3].unbind(dim=-1)) for i in range(3)])
        ended = torch.stack(
            [torch.zeros_like(window[..., 0], dtype=torch.bool), *((window[..., i] == 0) for i in (2, 3))]
        )
        return terms.masked_fill(ended, 0.0).sum(dim=0)

    def _count(self, table: int, keys: Tensor) -> Tensor:
        known, counts = (part.to(keys.device) for part in self._tables[table])
        place = torch.searchsorted(known, keys.contiguous()).clamp_max(len(known) - 1)
        return torch.where(known[place] == keys, counts[place], 0)

    def __repr__(self) -> str:
        return f"Trigrams({len(self._tables[0][0])} different ones of {self.vocabulary} tokens)"


def _trigrams(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, c, each (N, T + 1), and whether c is read: a word, or the first padding behind one or in an empty text."""
    padded = torch.nn.functional.pad(x, (2, 1))
    a, b, c = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    first = torch.arange(c.shape[1], device=x.device) == 0
    return a, b, c, (c != 0) | (b != 0) | first
