"""Sentences that people wrote, with their labels, and the vocabulary that makes rows of token ids of them.

What counts as a word is a run of letters, with an apostrophe inside or at its end, a number, or one of the marks . , !
? All is in lower case.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.dataset import Dataset
from robustlab.data.embedded import FOLDER, Source, read_texts

PADDING, UNKNOWN = 0, 1
"""The token ids that are no words: what fills a row up, and a word that the vocabulary does not hold."""

SENTENCE_POLARITY = Source(
    title="Sentence polarity, 10,662 sentences of film reviews",
    file="sentence_polarity.npz",
    sha256="5617e0892078d1ea84d2aff7ba9816f538181786e25e18df63be5e77bc17df88",
    classes=("negative", "positive"),
    provenance="rt-polaritydata as nltk_data carries it, exact duplicates dropped, 1,000 sentences for validation and "
    "1,000 for testing; sentence_polarity.json beside the file has the details.",
    license="CC BY 4.0, copyright 2005 Bo Pang and Lillian Lee: sentence_polarity_readme.txt beside the file.",
    citation="Pang and Lee, Seeing stars: exploiting class relationships for sentiment categorization with respect to "
    "rating scales, ACL, 2005.",
)
BANKING77 = Source(
    title="Banking77, 13,083 questions of customers to a bank",
    file="banking77.npz",
    sha256="9add2994de24b3d31c45794ff7e6471b876b072c20f4d89a82b9599e1be78983",
    classes=tuple(json.loads((FOLDER / "banking77.json").read_text(encoding="utf-8"))["classes"]),
    provenance="github.com/PolyAI-LDN/task-specific-datasets, banking_data, 10,003 questions for training and 3,080 "
    "for testing; banking77.json beside the file has the details.",
    license="CC BY 4.0: banking77_LICENSE.txt beside the file.",
    citation="Casanueva, Temčinas, Gerz, Henderson and Vulić, Efficient intent detection with dual sentence encoders, "
    "NLP for ConvAI Workshop, ACL, 2020.",
)
TEXT_SOURCES: dict[str, Source] = {"sentence_polarity": SENTENCE_POLARITY, "banking77": BANKING77}
_WORD = re.compile(r"[a-z]+(?:'[a-z]*)?|[0-9]+|[.,!?]")


@dataclass(frozen=True, eq=False, repr=False)
class Texts:
    """Texts with their labels, split into a training and a test part; what is held out for validation is apart."""

    name: str
    classes: tuple[str, ...]
    texts_train: tuple[str, ...]
    y_train: Tensor
    texts_test: tuple[str, ...]
    y_test: Tensor
    texts_validation: tuple[str, ...] = ()
    y_validation: Tensor | None = None

    def __repr__(self) -> str:
        sizes = f"{len(self.texts_train)} train, {len(self.texts_test)} test"
        return f"Texts({self.name}: {sizes}, {len(self.classes)} classes)"


def words_of(text: str) -> list[str]:
    """The words and marks of a text, in lower case, in order."""
    return _WORD.findall(text.lower().replace("’", "'"))


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary:
    """The words that have a token id: ``words[i]`` has the id i. The first two are no words: padding and unknown."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str], least: int = 2) -> Vocabulary:
        """The words that stand at least ``least`` times in the texts, the most frequent first.

        Raises:
            ValueError, TypeError: for ``least`` below 1.
        """
        checks.at_least("least", least, 1, integer=True)
        counts = Counter(word for text in texts for word in words_of(text))
        kept = sorted((word for word, n in counts.items() if n >= least), key=lambda word: (-counts[word], word))
        return cls(("<pad>", "<unknown>", *kept))

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} tokens)"

    def id(self, word: str) -> int:
        """The token id of a word, that of the unknown where it has none."""
        return self._ids().get(word, UNKNOWN)

    def encode(self, texts: Sequence[str], length: int | None = None, *, unknown: bool = True) -> Tensor:
        """Token ids (N, T) of texts, filled up with padding.

        Args:
            texts: of any words.
            length: T, behind which a text is cut off; None takes the longest, and at least 1.
            unknown: whether a word without an id becomes the token 1; else it is an error.

        Raises:
            ValueError, TypeError: for ``length`` below 1, one text in the place of several, or unknown words.
        """
        if isinstance(texts, str):
            raise TypeError("texts: want a list of texts, got one string; say [text]")
        rows = [words_of(text) for text in texts]
        ids = self._ids()
        strange = sorted({word for row in rows for word in row if word not in ids})
        if strange and not unknown:
            raise ValueError(f"texts: want words of the vocabulary, got {', '.join(strange[:10])}")
        longest = max([1, *map(len, rows)])
        size = longest if length is None else length
        checks.at_least("length", size, 1, integer=True)
        out = torch.full((len(rows), size), PADDING, dtype=torch.int64)
        for row, words in enumerate(rows):
            cut = words[:size]
            out[row, : len(cut)] = torch.tensor([ids.get(word, UNKNOWN) for word in cut], dtype=torch.int64)
        return out

    def decode(self, tokens: Tensor) -> str:
        """The words of one row of token ids, between spaces, without padding."""
        return " ".join(self.words[int(token)] for token in tokens if int(token) != PADDING)

    def _ids(self) -> dict[str, int]:
        return _ids_of(self.words)


@cache
def _ids_of(words: tuple[str, ...]) -> dict[str, int]:
    return {word: i for i, word in enumerate(words)}


@cache
def load_texts(name: str) -> Texts:
    """A set of texts that ships: ``"sentence_polarity"`` or ``"banking77"``.

    Sentence polarity: 8,662 sentences of film reviews for training, 1,000 for validation and 1,000 for testing, half of
    them praise. Banking77: 10,003 questions of customers for training and 3,080 for testing, of 77 intents.

    Raises:
        ValueError: for another name, or if the shipped file was changed.
    """
    checks.one_of("name", name, TEXT_SOURCES)
    parts = read_texts(TEXT_SOURCES[name])
    return Texts(name, TEXT_SOURCES[name].classes, *parts[1], *parts[3], *parts[2])


LENGTHS: dict[str, int] = {"sentence_polarity": 40, "banking77": 30}
"""Tokens at which a text is cut off: all but one in twenty are shorter."""


@cache
def vocabulary_of(name: str) -> Vocabulary:
    """The vocabulary of a set of texts: the words that stand at least three times in its training part."""
    return Vocabulary.of(load_texts(name).texts_train, least=3)


def load_tokens(name: str) -> Dataset:
    """A set of texts as rows of token ids by :func:`vocabulary_of`, for :func:`robustlab.training.fit.fit`."""
    texts, vocabulary, length = load_texts(name), vocabulary_of(name), LENGTHS[name]
    x_train, x_test = (vocabulary.encode(part, length) for part in (texts.texts_train, texts.texts_test))
    return Dataset(name, x_train, texts.y_train, x_test, texts.y_test, texts.classes)
