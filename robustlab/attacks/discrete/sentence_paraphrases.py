"""Other ways of saying a sentence, for the first half of the attack by paraphrases.

Lei et al. (2019) take what a trained generator of paraphrases says, and keep what is near in meaning. Here the other
ways come from two sources that can be read:

* a short list of rules of syntax (``RULES``): contractions are opened or closed, "can i" becomes "could i", "want to"
  "would like to", and so on; none of them brings in a word of content;
* questions of the same intent, from a pool of labeled ones, whose vectors are near.

A sentence's vector is the mean of its words' vectors, each with the weight a/(a + p(w)), p the word's frequency and
a = 0.001 (Arora, Liang and Ma, "A simple but tough-to-beat baseline for sentence embeddings", 2017, without their last
step).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.texts import PADDING, UNKNOWN, Vocabulary, words_of
from robustlab.data.words import word_vectors

__all__ = ["sentence_paraphrases"]

RULES: tuple[tuple[str, str], ...] = (
    ("it's", "it is"), ("that's", "that is"), ("there's", "there is"), ("what's", "what is"), ("i'm", "i am"),
    ("i've", "i have"), ("i'd", "i would"), ("you're", "you are"), ("they're", "they are"), ("we're", "we are"),
    ("don't", "do not"), ("doesn't", "does not"), ("didn't", "did not"), ("isn't", "is not"), ("wasn't", "was not"),
    ("can't", "cannot"), ("won't", "will not"), ("couldn't", "could not"), ("hasn't", "has not"),
    ("haven't", "have not"), ("can i", "could i"), ("can you", "could you"), ("how do i", "how can i"),
    ("want to", "would like to"), ("need to", "have to"), ("is there a way to", "can i"),
)  # fmt: skip
"""Ways of saying the same; each is used in both directions, once per paraphrase."""


def sentence_paraphrases(
    texts: Sequence[str],
    vocabulary: Vocabulary,
    *,
    length: int,
    labels: Tensor | None = None,
    pool: tuple[Sequence[str], Tensor] | None = None,
    similar: float = 0.75,
    most: int = 8,
) -> Tensor:
    """The ways of saying each sentence of each text, (N, S, M, L) token ids, with −1 behind the end.

    The first way is the sentence as it is. A text is cut into sentences at . ! and ?, but with a pool, whose texts
    stand for whole texts, it is one sentence. A way that is farther than ``similar``, or that has more unknown words
    than the sentence, is left out.

    Args:
        texts: N of them.
        vocabulary: whose token ids are wanted.
        length: T, behind which a text is cut off.
        labels: (N,) their intents, beside a pool.
        pool: other texts and their intents (P,); None uses the rules alone.
        similar: least cosine of the two vectors, in [−1, 1]; default 0.75, the paper's threshold of similarity.
        most: M − 1, how many other ways of one sentence are kept, the nearest first.

    Raises:
        ValueError, TypeError: if an argument is out of its range, or labels and pool do not come together.
    """
    checks.at_least("length", length, 1, integer=True)
    checks.at_least("most", most, 1, integer=True)
    checks.at_least("similar", similar, -1.0)
    if (labels is None) != (pool is None):
        raise ValueError("pool: want labels beside a pool, and neither without the other")
    rows = vocabulary.encode(texts, length)
    encoder = _Encoder(vocabulary, [*texts, *(pool[0] if pool else ())])
    others = _same_intent(texts, labels, pool, encoder, most) if labels is not None and pool is not None else {}
    parts: list[list[list[list[int]]]] = []
    for number, row in enumerate(rows):
        said = [vocabulary.words[int(token)] for token in row if int(token) != PADDING]
        ids = [int(token) for token in row if int(token) != PADDING]
        ends = [len(said)] if pool else _ends(said)
        here = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            ways = [*_by_rules(said[start:end]), *others.get(number, [])]
            here.append([ids[start:end], *encoder.nearest(said[start:end], ways, similar, most)])
        parts.append(here)
    return _stacked(parts)


class _Encoder:
    """Vectors of sentences."""

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[str]) -> None:
        self.vocabulary = vocabulary
        counts = torch.bincount(vocabulary.encode(texts).flatten(), minlength=len(vocabulary))
        share = (counts + 1) / counts[UNKNOWN:].sum().clamp_min(1)
        self.weighted = word_vectors(vocabulary) * (0.001 / (0.001 + share))[:, None]

    def __call__(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """(n, 50), of length 1; 0 for a sentence without a known word."""
        rows = [torch.tensor([self.vocabulary.id(word) for word in said] or [PADDING]) for said in sentences]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING) if rows else None
        found = self.weighted[:0] if tokens is None else self.weighted[tokens].sum(dim=1)
        return found / found.norm(dim=1, keepdim=True).clamp_min(1e-9)

    def nearest(self, said: list[str], ways: list[list[str]], similar: float, most: int) -> list[list[int]]:
        """The token ids of the ways that are near enough, without doubles, the nearest first."""
        known = [list(way) for way in dict.fromkeys(map(tuple, ways)) if list(way) != said]
        ids = [[self.vocabulary.id(word) for word in way] for way in known]
        cosine = (self(known) @ self([said]).T)[:, 0].tolist()
        order = sorted(range(len(known)), key=lambda i: (-cosine[i], i))
        unknown = said.count(self.vocabulary.words[UNKNOWN])
        return [ids[i] for i in order if cosine[i] >= similar and ids[i].count(UNKNOWN) <= unknown][:most]


def _same_intent(
    texts: Sequence[str], labels: Tensor, pool: tuple[Sequence[str], Tensor], encoder: _Encoder, most: int
) -> dict[int, list[list[str]]]:
    """For each text the nearest texts of the pool that have its label."""
    words = [words_of(text) for text in pool[0]]
    cosine = encoder([words_of(text) for text in texts]) @ encoder(words).T
    cosine = torch.where(labels.cpu()[:, None] == pool[1].cpu()[None], cosine, -2.0)
    value, place = cosine.topk(min(most, len(words)), dim=1)
    rows = zip(value.tolist(), place.tolist(), strict=True)
    return {i: [words[j] for v, j in zip(*row, strict=True) if v > -2] for i, row in enumerate(rows)}


def _by_rules(said: Sequence[str]) -> list[list[str]]:
    """What each rule, in either direction, makes of a sentence."""
    text, found = f" {' '.join(said)} ", []
    for pair in RULES:
        for old, new in (pair, pair[::-1]):
            other = re.sub(f" {re.escape(old)} ", f" {new} ", text, count=1)
            if other != text:
                found.append(other.split())
    return found


def _ends(said: Sequence[str]) -> list[int]:
    """Where the sentences of a text end; a mark belongs to the sentence before it."""
    last = len(said)
    marks = [i + 1 for i, word in enumerate(said) if word in ".!?" and (i + 1 == last or said[i + 1] not in ".!?")]
    return marks if marks and marks[-1] == last else [*marks, last]


def _stacked(parts: list[list[list[list[int]]]]) -> Tensor:
    """Nested lists as one tensor, −1 where there is nothing."""
    s = max([1, *(len(here) for here in parts)])
    m = max([1, *(len(ways) for here in parts for ways in here)])
    longest = max([1, *(len(way) for here in parts for ways in here for way in ways)])
    out = torch.full((len(parts), s, m, longest), -1, dtype=torch.int64)
    for i, here in enumerate(parts):
        for j, ways in enumerate(here):
            rows = list(zip_longest(*ways, fillvalue=-1))
            if rows:
                out[i, j, : len(ways), : len(rows)] = torch.tensor(rows).T
    return out
