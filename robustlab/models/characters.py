"""A language model of characters, small enough to train in seconds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab.models.registry import register


class CharacterGRU(nn.Module):
    """Logits of the next character: an embedding, one GRU layer, one linear layer.

    Args:
        symbols: number of characters K.
        embedding: size of a character's vector.
        hidden: size of the GRU's state.
    """

    def __init__(self, symbols: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, embedding)
        self.gru = nn.GRU(embedding, hidden, batch_first=True)
        self.out = nn.Linear(hidden, symbols)

    def forward(self, tokens: Tensor) -> Tensor:
        """From token ids (N, L) to logits (N, L, K); those at place i are of the token at place i + 1."""
        states, _ = self.gru(self.embedding(tokens))
        return self.out(states)


@register
def character_gru(*, symbols: int = 38, embedding: int = 16, hidden: int = 64, seed: int = 0) -> CharacterGRU:
    """A :class:`CharacterGRU`; by default for the characters of :func:`robustlab.data.notes`.

    Args:
        symbols: number of characters, at least 2.
        embedding, hidden: sizes of its layers, at least 1.
        seed: of the initial weights (default 0).

    Raises:
        ValueError: for a size below that.
    """
    for name, value, least in (("symbols", symbols, 2), ("embedding", embedding, 1), ("hidden", hidden, 1)):
        if value < least:
            raise ValueError(f"{name}: want at least {least}, got {value}")
    return CharacterGRU(symbols, embedding, hidden)


def next_character(model: nn.Module, x: Tensor, y: Tensor, *, ids: Tensor, seed: int) -> Tensor:
    """The objective of a language model, for :func:`robustlab.training.fit.fit`: mean cross-entropy of the next token.

    Args:
        model: token ids (N, L) to logits (N, L, K).
        x: token ids (N, L), padded at the end with id 0, which also ends a text; one end a text counts.
        y, ids, seed: not used.
    """
    after = x[:, 1:]
    counts = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1) != 0
    return F.cross_entropy(model(x[:, :-1])[counts], after[counts])
