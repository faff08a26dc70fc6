"""Small models of texts, rows of token ids: a convolution, a recurrent net, a bag of embeddings, and naive Bayes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.models.registry import register


@register
def text_cnn(
    *,
    vocabulary: int,
    embedding: int = 16,
    channels: int = 32,
    width: int = 3,
    classes: int = 2,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Embedding, convolution over ``width`` neighboring tokens, ReLU, maximum over the text, one linear layer.

    It takes int64 token ids (N, L) with L of at least 1, and gives logits (N, classes). Id 0 is padding: its embedding
    is 0.

    Args:
        vocabulary: number of token ids.
        embedding: numbers per token.
        channels: of the convolution.
        width: tokens that it sees at once, odd.
        classes: number of outputs, at least 2.
        dropout: the share of the embeddings and of the pooled channels that training leaves out, in [0, 1).
        seed: of the initial weights (default 0).

    Raises:
        ValueError, TypeError: if a size is not a positive integer, ``width`` is even, there are fewer than 2 classes,
            or ``dropout`` is out of its range.
    """
    _check_sizes(vocabulary=vocabulary, embedding=embedding, channels=channels, width=width)
    _check_rest(classes, dropout)
    if width % 2 == 0:
        raise ValueError(f"width: want an odd number, got {width}")
    layers: list[tuple[str, nn.Module]] = [
        ("embed", nn.Embedding(vocabulary, embedding, padding_idx=0)),
        ("channels_first", _ChannelsFirst()),
        ("conv", nn.Conv1d(embedding, channels, width, padding=width // 2)),
        ("relu", nn.ReLU()),
        ("pool", nn.AdaptiveMaxPool1d(1)),
        ("flatten", nn.Flatten()),
        ("out", nn.Linear(channels, classes)),
    ]
    if dropout:
        layers.insert(1, ("drop_embedded", nn.Dropout(dropout)))
        layers.insert(-1, ("drop_pooled", nn.Dropout(dropout)))
    return nn.Sequential(OrderedDict(layers))


class _ChannelsFirst(nn.Module):
    """(N, L, E) to (N, E, L)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


@register
def text_lstm(
    *, vocabulary: int, embedding: int = 16, hidden: int = 24, classes: int = 2, dropout: float = 0.0, seed: int = 0
) -> nn.Module:
    """Embedding, one LSTM that reads from left to right, the maximum of its states over the words, one linear layer.

    It takes int64 token ids (N, L) with L of at least 1, and gives logits (N, classes). Id 0 is padding, which is read
    but whose states do not enter the maximum.

    Args:
        vocabulary: number of token ids.
        embedding: numbers per token.
        hidden: size of the LSTM's state.
        classes: number of outputs, at least 2.
        dropout: the share of the embeddings and of the pooled states that training leaves out, in [0, 1).
        seed: of the initial weights (default 0).

    Raises:
        ValueError, TypeError: if a size is not a positive integer, there are fewer than 2 classes, or ``dropout`` is
            out of its range.
    """
    _check_sizes(vocabulary=vocabulary, embedding=embedding, hidden=hidden)
    _check_rest(classes, dropout)
    return _ReadInOrder(vocabulary, embedding, hidden, classes, dropout)


@register
def text_bag(
    *, vocabulary: int, embedding: int = 16, classes: int = 2, dropout: float = 0.0, seed: int = 0
) -> nn.Module:
    """A bag of embeddings, blind to the order of words: z = W Σ_i e(x_i)/√n + b over the n words of a text.

    It takes int64 token ids (N, L), and gives logits (N, classes). Id 0 is padding, which is no word.

    Args:
        vocabulary: number of token ids.
        embedding: numbers per token.
        classes: number of outputs, at least 2.
        dropout: the share of the summed embeddings that training leaves out, in [0, 1).
        seed: of the initial weights (default 0).

    Raises:
        ValueError, TypeError: if a size is not a positive integer, there are fewer than 2 classes, or ``dropout`` is
            out of its range.
    """
    _check_sizes(vocabulary=vocabulary, embedding=embedding)
    _check_rest(classes, dropout)
    return _Bag(vocabulary, embedding, classes, dropout)


class _ReadInOrder(nn.Module):
    def __init__(self, vocabulary: int, embedding: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(vocabulary, embedding, padding_idx=0), nn.Dropout(dropout)
        self.lstm, self.out = nn.LSTM(embedding, hidden, batch_first=True), nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.drop(self.embed(x)))
        least = -1.0  # the least state of an LSTM, and what an empty text has
        pooled = states.masked_fill((x == 0)[:, :, None], least).amax(dim=1)
        return self.out(self.drop(pooled))


class _Bag(nn.Module):
    def __init__(self, vocabulary: int, embedding: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(vocabulary, embedding, padding_idx=0), nn.Dropout(dropout)
        self.out = nn.Linear(embedding, classes)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embed(x)
        words = (x != 0).sum(dim=1, keepdim=True).clamp_min(1).to(embedded.dtype)
        return self.out(self.drop(embedded.sum(dim=1) / words.sqrt()))


class NaiveBayes(nn.Module):
    """Multinomial naive Bayes on the words of a text and on its pairs of neighbors, fitted by counting.

        z_c(x) = log π_c + Σ_{w in x} log p(w | c),   p(w | c) = (n_cw + 1) / Σ_v (n_cv + 1)

    The terms w are words and hashed pairs of neighboring words. It is trained by no gradient and shares nothing with a
    net, so that it can serve as a second opinion on what a text says.

    Args:
        x: int64 token ids (N, L), 0 is padding.
        y: (N,) int64 labels.
        vocabulary: number of token ids.
        classes: number of classes, at least 2.
        pairs: number of slots for pairs.

    Raises:
        ValueError, TypeError: if a size is not a positive integer, or there are fewer than 2 classes.
    """

    log_prior: Tensor
    log_likelihood: Tensor

    def __init__(self, x: Tensor, y: Tensor, *, vocabulary: int, classes: int = 2, pairs: int = 20011) -> None:
        super().__init__()
        _check_sizes(vocabulary=vocabulary, pairs=pairs)
        _check_rest(classes, 0.0)
        self.vocabulary, self.pairs = vocabulary, pairs
        counts = torch.ones(classes, 1 + vocabulary + pairs, dtype=torch.float64, device=x.device)
        terms = self._terms(x)
        counts.view(-1).index_add_(
            0, (y[:, None] * counts.shape[1] + terms).flatten(), torch.ones_like(terms.flatten(), dtype=torch.float64)
        )
        likelihood = (counts[:, 1:] / counts[:, 1:].sum(dim=1, keepdim=True)).log()
        self.register_buffer("log_prior", (torch.bincount(y, minlength=classes) / len(y)).double().log())
        self.register_buffer("log_likelihood", torch.cat([torch.zeros_like(likelihood[:, :1]), likelihood], dim=1).T)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) in float64."""
        return self.log_prior + self.log_likelihood[self._terms(x)].sum(dim=1)

    def _terms(self, x: Tensor) -> Tensor:
        """(N, 2L − 1): each word and each pair by its place; 0 is what is no term."""
        words = torch.where(x == 0, 0, 1 + x)
        pair = 1 + self.vocabulary + (x[:, :-1] * 7919 + x[:, 1:]) % self.pairs
        return torch.cat([words, torch.where(x[:, 1:] == 0, 0, pair)], dim=1)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        checks.at_least(name, value, 1, integer=True)


def _check_rest(classes: int, dropout: float) -> None:
    checks.at_least("classes", classes, 2, integer=True)
    checks.not_negative("dropout", dropout)
    checks.below("dropout", dropout, 1)
