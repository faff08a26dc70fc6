"""A small model of texts: embeddings, one convolution over neighboring tokens, the maximum over places."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from robustlab import checks
from robustlab.models.registry import register


@register
def text_cnn(
    *, vocabulary: int, embedding: int = 16, channels: int = 32, width: int = 3, classes: int = 2, seed: int = 0
) -> nn.Module:
    """Embedding, convolution over ``width`` neighboring tokens, ReLU, maximum over the text, one linear layer.

    It takes int64 token ids (N, L) with L of at least 1, and gives logits (N, classes). Id 0 is padding: its embedding
    is 0.

    Args:
        vocabulary: number of token ids.
        embedding: numbers a token.
        channels: of the convolution.
        width: tokens that it sees at once, odd.
        classes: number of outputs, at least 2.
        seed: of the initial weights (default 0).

    Raises:
        ValueError, TypeError: if a size is not a positive integer, ``width`` is even, or there are fewer than 2
            classes.
    """
    for name, value in (("vocabulary", vocabulary), ("embedding", embedding), ("channels", channels), ("width", width)):
        checks.at_least(name, value, 1, integer=True)
    checks.at_least("classes", classes, 2, integer=True)
    if width % 2 == 0:
        raise ValueError(f"width: want an odd number, got {width}")
    layers = [
        ("embed", nn.Embedding(vocabulary, embedding, padding_idx=0)),
        ("channels_first", _ChannelsFirst()),
        ("conv", nn.Conv1d(embedding, channels, width, padding=width // 2)),
        ("relu", nn.ReLU()),
        ("pool", nn.AdaptiveMaxPool1d(1)),
        ("flatten", nn.Flatten()),
        ("out", nn.Linear(channels, classes)),
    ]
    return nn.Sequential(OrderedDict(layers))


class _ChannelsFirst(nn.Module):
    """(N, L, E) to (N, E, L)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
