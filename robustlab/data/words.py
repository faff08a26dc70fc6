"""What is known of words: WordNet's synonyms and antonyms, and vectors made of the company that words keep.

The table was made by ``robustlab/data/make_words.py`` from WordNet 3.0 and the training parts of the shipped texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.embedded import Source, read_source
from robustlab.data.texts import UNKNOWN, Vocabulary

WORDS = Source(
    title="Synonyms, antonyms and vectors of 8,060 words",
    file="words.npz",
    sha256="39f951aec7411ba262c593f9a071d394f8086443bf99b9b3838b34591ff5c89c",
    classes=(),
    provenance="Synonyms and antonyms from WordNet 3.0 as in Debian's package wordnet-base, vectors from the training "
    "parts of sentence_polarity, banking77 and sms_spam, by robustlab/data/make_words.py.",
    license="WordNet 3.0, copyright 2006 by Princeton University: wordnet_LICENSE.txt beside the file.",
    citation="Fellbaum (ed.), WordNet: an electronic lexical database, MIT Press, 1998.",
)
Kinship = Literal["wordnet", "vectors"]


@dataclass(frozen=True, eq=False, repr=False)
class WordTable:
    """The table of words.

    Attributes:
        vocabulary: the words of the table.
        synonyms, antonyms: (n, 2) int64, pairs of token ids, each in both orders.
        vectors: (V, 50) float32 of length 1; 0 for padding and the unknown.
    """

    vocabulary: Vocabulary
    synonyms: Tensor
    antonyms: Tensor
    vectors: Tensor

    def __repr__(self) -> str:
        return f"WordTable({len(self.vocabulary)} words, {len(self.synonyms)} pairs of synonyms)"


@cache
def word_table() -> WordTable:
    """The table that ships.

    Raises:
        ValueError: if the shipped file was changed.
    """
    arrays = read_source(WORDS)
    vocabulary = Vocabulary(tuple(bytes(arrays["words"]).decode().split("\n")))
    vectors = torch.from_numpy(arrays["vectors"]).float()
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-9)
    same, opposite = (torch.from_numpy(arrays[kind]).long() for kind in ("synonyms", "antonyms"))
    return WordTable(vocabulary, same, opposite, vectors)


def word_vectors(vocabulary: Vocabulary) -> Tensor:
    """(V, 50), the vector of each token of a vocabulary; 0 where the table does not know the word."""
    table = word_table()
    return table.vectors[_places(vocabulary)]


def synonyms(vocabulary: Vocabulary, *, by: Kinship = "wordnet", similar: float = 0.3, most: int = 15) -> Tensor:
    """The words that may stand for each word of a vocabulary, (V, K) int64 token ids; −1 where there are no more.

    A candidate is a word whose vector has a cosine of at least ``similar`` with the word's own; the nearest come first.
    Antonyms, padding and unknown are never candidates, nor are marks.

    Args:
        vocabulary: of the texts.
        by: ``"wordnet"`` takes the synonyms of WordNet, ``"vectors"`` all words, among which are many that keep the
            same company and mean something else.
        similar: least cosine, in [−1, 1]; −1 is no filter.
        most: K, the paper's 15 by default.

    Raises:
        ValueError, TypeError: if an argument is out of its range.

    Source:
        Lei et al. (2019), section 5, which takes the 15 nearest in Paragram vectors and a least similarity of 0.75.
        Cosines of our vectors, which come from fewer texts, are smaller: of two random words they are below 0.3 in nine
        cases of ten.
    """
    checks.one_of("by", by, get_args(Kinship))
    checks.at_least("most", most, 1, integer=True)
    checks.at_least("similar", similar, -1.0)
    checks.at_most("similar", similar, 1.0)
    vectors, places, size = word_vectors(vocabulary), _places(vocabulary), len(vocabulary)
    word = torch.tensor([token.replace("'", "").isalpha() for token in vocabulary.words]) & (places > UNKNOWN)
    if by == "wordnet":
        here, there = _pairs(word_table().synonyms, places)
    else:
        here, there = (vectors @ vectors.T >= similar).nonzero().unbind(dim=1)
    cosine = (vectors[here] * vectors[there]).sum(dim=1)
    opposite = torch.stack(_pairs(word_table().antonyms, places)) * torch.tensor([[size], [1]])
    allowed = word[here] & word[there] & (here != there) & (cosine >= similar)
    allowed &= ~torch.isin(here * size + there, opposite.sum(dim=0))
    here, there, cosine = here[allowed], there[allowed], cosine[allowed]
    order = cosine.argsort(descending=True, stable=True)
    order = order[here[order].argsort(stable=True)]  # sorted by the word, and for each word the nearest first
    here, there = here[order], there[order]
    rank = torch.arange(len(here)) - torch.searchsorted(here, here)
    few = rank < most
    out = torch.full((size, max(1, min(most, int(rank.max()) + 1 if len(rank) else 1))), -1)
    out[here[few], rank[few]] = there[few]
    return out


def _places(vocabulary: Vocabulary) -> Tensor:
    """(V,): the token of each word in the table, 1 where it is not there, 0 for padding."""
    known = word_table().vocabulary
    return torch.tensor([0 if i == 0 else known.id(word) for i, word in enumerate(vocabulary.words)])


def _pairs(pairs: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of the table (P, 2) of which a vocabulary has both words, as its token ids."""
    back = torch.full((len(word_table().vocabulary),), -1)
    back[places] = torch.arange(len(places))
    back[: UNKNOWN + 1] = -1
    here, there = back[pairs[:, 0]], back[pairs[:, 1]]
    both = (here >= 0) & (there >= 0)
    return here[both], there[both]
