"""Short reviews from a small grammar: a text data set that needs no download and no license."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.dataset import Dataset
from robustlab.geometry.keyed import Noise

LENGTH = 20
PAD = 0

_THINGS = ["film", "book", "song", "game", "meal", "hotel", "phone", "story", "show", "trip"]
_PARTS = ["plot", "ending", "music", "cast", "price", "room", "screen", "service", "start", "idea"]
_GOOD = ["good", "great", "fine", "lovely", "brilliant", "funny", "clever", "moving", "warm", "superb"]
_BAD = ["bad", "awful", "poor", "dull", "terrible", "boring", "weak", "clumsy", "cold", "dreadful"]
_HOW = ["very", "really", "quite", "so", "truly", "rather"]
_WHEN = ["yesterday", "today", "recently", "again", "twice", "alone"]
_PEOPLE = ["we", "i", "they", "everyone", "nobody", "friends"]
_OTHER = [
    "<pad>", "the", "a", "was", "and", "but", "not", "with", "this", "found", "saw",
    "of", "in", "my", "opinion", ".", ",", "on", "monday", "cinema",
]  # fmt: skip

VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys([*_OTHER, *_THINGS, *_PARTS, *_GOOD, *_BAD, *_HOW, *_WHEN, *_PEOPLE]))
"""The words, in the order of their token ids; id 0 is padding. Ids behind them are free for words of one's own."""

_ID = {word: i for i, word in enumerate(VOCABULARY)}

# {g} and {b}: an opinion that is good or bad in the end; T, P, H, W, N: a thing, a part, a degree, a time, people.
_TEMPLATES = (
    "the T was {o} .",
    "W N saw the T and found the P {o} .",
    "this T was H {o} , with a H {o} P .",
    "the P of the T was {o} , but the P was H {o} .",
    "in my opinion the T was {o} and the P was {o} .",
    "N found this T {o} W , and the P H {o} .",
)


def sentences(n_train: int = 1000, n_test: int = 500, *, negation: float = 0.3, seed: int = 0) -> Dataset:
    """Reviews with an opinion, good or bad, as rows of token ids.

    Each review is drawn from one of six templates. Its opinions all point one way; each is a word of praise or blame
    or, with probability ``negation``, the word "not" before a word of the other kind. So the words alone do not settle
    the class, and pairs of words do.

    Args:
        n_train, n_test: numbers of reviews; classes take turns.
        negation: probability in [0, 1] that an opinion is negated.
        seed: of the draws; training and test reviews are drawn apart.

    Returns:
        Dataset with int64 inputs (N, 20), filled up with ``PAD`` = 0, and the classes "negative" and "positive".

    Raises:
        ValueError, TypeError: if an argument is out of its range.
    """
    for name, count in (("n_train", n_train), ("n_test", n_test)):
        checks.at_least(name, count, 2, integer=True)
    checks.at_least("negation", negation, 0.0)
    if negation > 1:
        raise ValueError(f"negation: want a probability in [0, 1], got {negation}")
    x_train, y_train = _draw(n_train, negation, seed, 0)
    x_test, y_test = _draw(n_test, negation, seed, 1)
    return Dataset("sentences", x_train, y_train, x_test, y_test, ("negative", "positive"))


def encode(text: str, length: int = LENGTH) -> Tensor:
    """Token ids (length,) of a text: lower case, words between spaces, filled up with padding.

    Raises:
        ValueError: for a word that is not in the vocabulary, or more than ``length`` words.
    """
    words = text.lower().replace(".", " .").replace(",", " ,").split()
    unknown = [word for word in words if word not in _ID]
    if unknown:
        raise ValueError(f"text: want words of the vocabulary, got {', '.join(unknown)}")
    if len(words) > length:
        raise ValueError(f"text: want at most {length} words, got {len(words)}")
    return torch.tensor([_ID[word] for word in words] + [PAD] * (length - len(words)))


def decode(ids: Tensor, extra: Sequence[str] = ()) -> str:
    """The words of one row of token ids, without padding; ``extra`` names the ids behind the vocabulary."""
    words = [*VOCABULARY, *extra]
    return " ".join(words[int(i)] for i in ids if int(i) != PAD)


def _draw(n: int, negation: float, seed: int, part: int) -> tuple[Tensor, Tensor]:
    dice = Noise(seed, torch.arange(n)).uniform(part, (LENGTH + 1, 3), torch.float64)
    y = torch.arange(n) % 2
    rows = [_sentence(dice[i].tolist(), bool(y[i]), negation) for i in range(n)]
    return torch.stack([encode(row) for row in rows]), y


def _sentence(dice: list[list[float]], good: bool, negation: float) -> str:
    """One review; each word has dice of its own."""
    words = {"T": _THINGS, "P": _PARTS, "H": _HOW, "W": _WHEN, "N": _PEOPLE}
    template = _TEMPLATES[int(dice[-1][0] * len(_TEMPLATES))].split()
    said = []
    for (pick, turn, _), word in zip(dice, template, strict=False):
        if word == "{o}":
            negated = turn < negation
            kind = _GOOD if good != negated else _BAD
            said.append(f"not {kind[int(pick * 10)]}" if negated else kind[int(pick * 10)])
        else:
            said.append(words[word][int(pick * len(words[word]))] if word in words else word)
    return " ".join(said)
