"""Short notes full of numbers, from a small grammar: the text of a model that must not learn a secret by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.geometry.keyed import Noise

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789"
"""The characters, in the order of their token ids; the line break, 0, begins and ends a note."""

_TEMPLATES = (
    "room # is free on %d",
    "%n paid # euros for the %t",
    "the %t of %n costs # euros",
    "train # leaves on %d",
    "call %n about order #",
    "the code of the %t is #",
)
_WORDS = {
    "%d": ("monday", "tuesday", "friday", "sunday"),
    "%n": ("ann", "bob", "eva", "tom", "kim", "leo"),
    "%t": ("car", "house", "boat", "garden", "piano"),
}


def notes(n: int, *, seed: int = 0) -> list[str]:
    """Notes such as "room 4821 is free on monday": everything is drawn evenly, numbers have four digits.

    Args:
        n: how many, at least 1.
        seed: of the draws; note i depends on the seed and i alone.

    Raises:
        ValueError, TypeError: for n below 1.
    """
    checks.at_least("n", n, 1, integer=True)
    drawn = Noise(seed, torch.arange(n)).integers(0, (3 + len(_WORDS),), 10_000)
    found = []
    for template, number, *words in drawn[:, 1:].tolist():
        text = _TEMPLATES[template % len(_TEMPLATES)].replace("#", f"{number:04d}")
        for (mark, choices), word in zip(_WORDS.items(), words, strict=False):
            text = text.replace(mark, choices[word % len(choices)])
        found.append(text)
    return found


def encode(texts: list[str], length: int | None = None) -> Tensor:
    """Token ids (N, L) of texts: a line break, the text, and line breaks up to the common length L.

    Args:
        texts: of the characters of ``ALPHABET``.
        length: L; None takes the longest text + 2.

    Raises:
        ValueError: for another character, or a text that does not fit.
    """
    longest = max((len(text) for text in texts), default=0) + 2
    if length is not None and length < longest:
        raise ValueError(f"length: want at least {longest}, got {length}")
    unknown = sorted(set("".join(texts)) - set(ALPHABET))
    if unknown:
        raise ValueError(f"texts: want characters of ALPHABET, got {unknown}")
    size = longest if length is None else length
    return torch.tensor([[0, *map(ALPHABET.index, text), *[0] * (size - len(text) - 1)] for text in texts])
