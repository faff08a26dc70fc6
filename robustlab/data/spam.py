"""Short messages, spam or not, and two maps of a message to some 50 numbers that are fixed beforehand.

The maps are computed from the training part by the code below and depend on nothing else. What a map sees of a message
are its words: runs of letters, in lower case; numbers are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.dataset import Dataset
from robustlab.data.embedded import Source, read_texts

SMS_SPAM = Source(
    title="SMS Spam Collection, 5,160 messages",
    file="sms_spam.npz",
    sha256="a428a8f08d7d097ecff042ad2dd821890d676b43c90b36cdace922a8e41c276a",
    classes=("message", "spam"),
    provenance="The SMS Spam Collection v.1, exact duplicates dropped, long numbers and addresses masked, 1,000 "
    "messages for testing; sms_spam.json beside the file has the details.",
    license="Free, with no limitations but those of its owners' readme: sms_spam_readme.txt beside the file.",
    citation="Almeida, Gómez Hidalgo and Yamakami, Contributions to the study of SMS spam filtering: new collection "
    "and results, ACM Symposium on Document Engineering, 2011.",
)
Map = Literal["words", "components"]
_LEAST = 5  # a word counts if so many training messages have it


@dataclass(frozen=True, eq=False, repr=False)
class Messages:
    """Texts with their labels, 1 for spam, split into a training and a test part."""

    texts_train: tuple[str, ...]
    y_train: Tensor
    texts_test: tuple[str, ...]
    y_test: Tensor

    def __repr__(self) -> str:
        spam = int(self.y_train.sum()) + int(self.y_test.sum())
        return f"Messages({len(self.texts_train)} train, {len(self.texts_test)} test, {spam} of all are spam)"


@dataclass(frozen=True, eq=False, repr=False)
class TextMap:
    """A fixed map of texts to numbers.

    Attributes:
        kind: ``"words"`` (coordinates are at least 0) or ``"components"`` (of any sign).
        words: the vocabulary.
        weight: (V,) inverse document frequencies.
        basis: (V, d); None where each word is its own coordinate.
    """

    kind: Map
    words: tuple[str, ...]
    weight: Tensor
    basis: Tensor | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, d) in float64."""
        counts = _counts(texts, self.words)
        if self.basis is None:
            return torch.log1p(counts)
        weighted = torch.log1p(counts) * self.weight
        return weighted / weighted.norm(dim=1, keepdim=True).clamp_min(1e-12) @ self.basis

    def __repr__(self) -> str:
        size = len(self.words) if self.basis is None else self.basis.shape[1]
        return f"TextMap({self.kind!r}, {len(self.words)} words to {size} numbers)"


def sms_spam() -> Messages:
    """The messages of the SMS Spam Collection: 4,160 for training and 1,000 for testing, 12 % of them spam.

    They are private people's messages and advertisements, some of them crude: show chosen ones only. Three spam
    messages of the test part equal one of the training part but for the numbers that are masked.

    Raises:
        ValueError: if the shipped file was changed.
    """
    parts = read_texts(SMS_SPAM)
    return Messages(*parts[1], *parts[3])


def text_map(messages: Messages, kind: Map = "components", *, d: int = 50) -> TextMap:
    """A map of texts to d numbers, computed from the training part.

        words:       x_j = log(1 + c_j) ≥ 0, c_j the count of word j, for the d words that most tell the classes apart
        components:  x = Pᵀt/‖t‖₂, t_j = log(1 + c_j)·log(n/n_j), P the d leading right singular vectors of the t/‖t‖₂

    n_j of n training messages hold word j. Words of fewer than five are left out. Words tell the classes apart by the
    difference of the shares of messages that hold them, over its standard error. Of each singular vector the sign is
    such that its largest entry is positive.

    Args:
        messages: of :func:`sms_spam`.
        kind: ``"words"`` or ``"components"``.
        d: how many coordinates, default 50, at most the number of words.

    Raises:
        ValueError, TypeError: for another kind, or d out of its range.
    """
    checks.one_of("kind", kind, get_args(Map))
    checks.at_least("d", d, 1, integer=True)
    held = Counter(word for text in messages.texts_train for word in set(_words(text)))
    words = tuple(sorted(word for word, n in held.items() if n >= _LEAST))
    checks.at_most("d", d, len(words))
    counts = _counts(messages.texts_train, words)
    share = (counts > 0).double().mean(dim=0)
    weight = -torch.log(share)
    if kind == "components":
        rows = torch.log1p(counts) * weight
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        basis = torch.linalg.eigh(rows.mT @ rows).eigenvectors[:, -d:].flip(1)
        largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
        return TextMap(kind, words, weight, basis * largest.sign())
    spam = messages.y_train == 1
    by_class = [(counts[part] > 0).double().mean(dim=0) for part in (spam, ~spam)]
    error = (share * (1 - share) * (1 / spam.sum() + 1 / (~spam).sum())).sqrt()
    chosen = ((by_class[0] - by_class[1]).abs() / error).argsort(descending=True, stable=True)[:d].sort().values
    return TextMap(kind, tuple(words[i] for i in chosen.tolist()), weight[chosen])


def mapped(messages: Messages, by: TextMap, *, dtype: torch.dtype = torch.float64) -> Dataset:
    """Both parts through a map, as a :class:`~robustlab.data.dataset.Dataset` of the classes "message" and "spam"."""
    x_train, x_test = by(messages.texts_train).to(dtype), by(messages.texts_test).to(dtype)
    return Dataset(f"sms_spam {by.kind}", x_train, messages.y_train, x_test, messages.y_test, SMS_SPAM.classes)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _counts(texts: Sequence[str], words: Sequence[str]) -> Tensor:
    """(N, V): how often each word stands in each text."""
    column = {word: j for j, word in enumerate(words)}
    found = Counter((i, column[word]) for i, text in enumerate(texts) for word in _words(text) if word in column)
    counts = torch.zeros(len(texts), len(words), dtype=torch.float64)
    if found:
        rows, columns = torch.tensor(list(found)).T
        counts[rows, columns] = torch.tensor(list(found.values()), dtype=torch.float64)
    return counts
