"""Exposure: has a language model learned a secret by heart?

Carlini, Liu, Erlingsson, Kos and Song, "The secret sharer: Evaluating and testing unintended memorization in neural
networks" (2019), section 4. A *canary* is a text of a fixed form whose free characters are filled with a random
secret r from a space R, and which is put into the training data some number of times. If the model has learned only the
form, all fillings are alike to it. If it has learned the canary, the true filling is less perplexing than the others:

    exposure(r) = log2 |R| − log2 rank(r),   the rank of r among all fillings, from the least to the most perplexing

0 bits say that r is the most perplexing of all, log2 |R| that guessing r takes one guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacks.poisoning.skew_normal import fit_skew_normal
from robustlab.data.notes import encode
from robustlab.geometry.keyed import Noise
from robustlab.models.modes import evaluating

__all__ = ["Canary", "Exposure", "exposure", "log_perplexity"]

Method = Literal["exact", "sampled", "skew_normal"]
METHODS = get_args(Method)
LARGEST_SPACE = 2**24  # fillings that "exact" goes through


@dataclass(frozen=True)
class Canary:
    """A text with a secret in it.

    Args:
        form: the text, with ``?`` in place of each free character, such as ``"the code of ann is ????"``.
        secret: what stands there, such as ``"4821"``.
        symbols: the characters that may stand there, default the digits.

    Raises:
        ValueError: if the secret does not fit the form or the symbols.
    """

    form: str
    secret: str
    symbols: str = "0123456789"

    def __post_init__(self) -> None:
        if not self.secret or self.form.count("?") != len(self.secret):
            raise ValueError(f"secret: want as many characters as {self.form!r} has '?', got {self.secret!r}")
        if set(self.secret) - set(self.symbols):
            raise ValueError(f"secret: want characters of {self.symbols!r}, got {self.secret!r}")
        if len(set(self.symbols)) != len(self.symbols) or "?" in self.symbols:
            raise ValueError(f"symbols: want different characters, none of them '?', got {self.symbols!r}")

    @property
    def size(self) -> int:
        """|R|, the number of fillings."""
        return len(self.symbols) ** len(self.secret)

    @property
    def index(self) -> int:
        """The number of the secret among the fillings."""
        number = 0
        for character in self.secret:
            number = number * len(self.symbols) + self.symbols.index(character)
        return number

    def filling(self, index: int) -> str:
        """The text with the filling of this number, 0 … |R| − 1, in it."""
        pieces = self.form.split("?")
        for place in range(len(self.secret) - 1, -1, -1):
            index, digit = divmod(index, len(self.symbols))
            pieces[place] += self.symbols[digit]
        return "".join(pieces)

    @property
    def text(self) -> str:
        """What is put into the training data."""
        return self.filling(self.index)


@dataclass(frozen=True)
class Exposure:
    """What :func:`exposure` measured.

    Attributes:
        value: the exposure, in bits.
        log_perplexity: of the canary, in bits.
        rank: of the secret, from 1; NaN where it was not counted. For ``"sampled"``, an estimate.
        size: |R|.
    """

    value: float
    log_perplexity: float
    rank: float
    size: int


def exposure(
    language_model: nn.Module,
    canary: Canary,
    *,
    encode: Callable[[list[str]], Tensor] = encode,
    method: Method = "exact",
    samples: int = 1000,
    batch_size: int = 2000,
    seed: int = 0,
) -> Exposure:
    """The exposure of a canary's secret, in bits.

        exact:        log2 |R| − log2 rank(r)
        sampled:      −log2 P[ Px(s) ≤ Px(r) ],  s drawn evenly from the fillings, P counted over a sample
        skew_normal:  −log2 ∫_{−∞}^{Px(r)} ρ,    ρ the skew-normal density fitted to the Px of the sample

    where Px is the log-perplexity of the whole text. A tie counts against the secret: a model to which all fillings are
    alike exposes nothing.

    Args:
        language_model: token ids (N, L) to logits (N, L, K) of the tokens that follow.
        canary: the form, the secret and the symbols.
        encode: from texts to token ids (N, L), as the model was trained on; default :func:`robustlab.data.encode`.
        method: ``"exact"`` asks for every filling, ``"sampled"`` and ``"skew_normal"`` for a sample of them. Only the
            last can report more than log2(samples) bits from it.
        samples: size of that sample, at least 10. It never holds the secret itself.
        batch_size: texts that the model is asked about at once.
        seed: of the sample.

    Returns:
        :class:`Exposure`.

    Raises:
        ValueError, TypeError: for an argument out of its range; ValueError where ``"exact"`` would have to go through
            more than 2²⁴ fillings.

    Source:
        Carlini et al. (2019), section 4: log-perplexity, rank, exposure, and its approximation by sampling and by
        modeling the distribution.
    """
    if not isinstance(language_model, nn.Module):
        raise TypeError(f"language_model: want a torch.nn.Module, got {type(language_model).__name__}")
    checks.one_of("method", method, METHODS)
    checks.at_least("samples", samples, 10, integer=True)
    checks.at_least("batch_size", batch_size, 1, integer=True)
    if method == "exact" and canary.size > LARGEST_SPACE:
        raise ValueError(f"method: want 'sampled' or 'skew_normal' for {canary.size} fillings, got 'exact'")

    def bits(indices: list[int]) -> Tensor:
        chunks = range(0, len(indices), batch_size)
        return torch.cat(
            [
                log_perplexity(language_model, encode([canary.filling(i) for i in indices[k : k + batch_size]]))
                for k in chunks
            ]
        )

    if method == "exact":
        found = bits(list(range(canary.size)))
        own = found[canary.index]  # the same batch: in another one it may round differently, and lose to itself
        rank = float((found <= own).sum())
        return Exposure(math.log2(canary.size) - math.log2(rank), float(own), rank, canary.size)
    own = bits([canary.index])[0]
    drawn = Noise(seed, torch.arange(samples)).integers(0, (), canary.size - 1)
    drawn = drawn + (drawn >= canary.index)  # any filling but the secret
    found = bits(drawn.tolist())
    if method == "sampled":
        share = (1 + float((found <= own).sum())) / (1 + samples)  # the secret itself counts
        return Exposure(-math.log2(share), float(own), share * canary.size, canary.size)
    value = -float(fit_skew_normal(found).log_cdf(own.double())) / math.log(2)
    return Exposure(value, float(own), math.nan, canary.size)


def log_perplexity(language_model: nn.Module, tokens: Tensor) -> Tensor:
    """How surprised the model is by whole texts: Px = −Σ_t log2 P(token_t | tokens before), in bits.

    Args:
        language_model: token ids (N, L) to logits (N, L, K) of the tokens that follow.
        tokens: (N, L) int64; the first of each row is given and not scored.

    Returns:
        (N,), in bits. The model is in evaluation mode meanwhile, and as it was afterwards.
    """
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.shape[1] < 2:
        raise ValueError(f"tokens: want integers of shape (N, L), L ≥ 2, got {tuple(tokens.shape)} of {tokens.dtype}")
    place = next((p.device for p in language_model.parameters()), tokens.device)
    tokens = tokens.to(place)
    with torch.no_grad(), evaluating(language_model, device=place):
        log_p = language_model(tokens[:, :-1]).log_softmax(dim=-1)
    return -log_p.gather(2, tokens[:, 1:, None])[..., 0].sum(dim=1) / math.log(2)
