"""The texts as they were collected, their words against WordNet, and models of texts against counts made by hand."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from robustlab.data import (
    Vocabulary,
    embedded,
    load_texts,
    load_tokens,
    synonyms,
    vocabulary_of,
    word_table,
    word_vectors,
)
from robustlab.data.make_words import inflected
from robustlab.data.texts import TEXT_SOURCES, UNKNOWN, words_of
from robustlab.data.words import WORDS
from robustlab.models import NaiveBayes, text_bag, text_cnn, text_lstm
from robustlab.models.ngram import Trigrams

SIZES: dict[str, tuple[int, int, int]] = {"sentence_polarity": (8662, 1000, 1000), "banking77": (10003, 0, 3080)}


@pytest.mark.parametrize("name", SIZES)
def test_the_files_are_those_of_their_notes(name: str) -> None:
    source, texts = TEXT_SOURCES[name], load_texts(name)
    note = json.loads((embedded.FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    raw = (embedded.FOLDER / source.file).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == source.sha256 == note["sha256"]
    assert (embedded.FOLDER / note["licence_file"]).exists() and source.citation and source.provenance
    assert (len(texts.texts_train), len(texts.texts_validation), len(texts.texts_test)) == SIZES[name]
    assert not set(texts.texts_train) & set(texts.texts_test) or name == "banking77"
    assert set(texts.y_train.tolist()) == set(range(len(source.classes)))


def test_labels_stand_beside_their_texts() -> None:
    films, bank = load_texts("sentence_polarity"), load_texts("banking77")
    known = dict(zip(films.texts_test, films.y_test.tolist(), strict=True))
    assert known[
        "think of it as gidget , only with muscles and a lot more smarts , but just as endearing and easy to watch ."
    ]
    intents = dict(zip(bank.texts_train, bank.y_train.tolist(), strict=True))
    assert bank.classes[intents["I am still waiting on my card?"]] == "card_arrival"


def test_texts_become_tokens_and_words_again() -> None:
    vocabulary = Vocabulary.of(["The film, it's a film!", "a film"], least=1)
    assert vocabulary.words == ("<pad>", "<unknown>", "film", "a", "!", ",", "it's", "the")
    assert words_of("Don’t go-there 12.") == ["don't", "go", "there", "12", "."]
    x = vocabulary.encode(["a strange film !", ""], 5)
    assert x.tolist() == [[3, UNKNOWN, 2, 4, 0], [0] * 5] and vocabulary.decode(x[0]) == "a <unknown> film !"
    with pytest.raises(ValueError, match=r"^texts: want words of the vocabulary, got strange"):
        vocabulary.encode(["a strange film"], unknown=False)
    with pytest.raises(TypeError, match=r"^texts: "):
        vocabulary.encode("film")
    data = load_tokens("sentence_polarity")
    assert data.x_train.shape == (8662, 40) and int(data.x_train.max()) == len(vocabulary_of("sentence_polarity")) - 1


@pytest.mark.slow
def test_synonyms_are_those_of_wordnet_and_antonyms_are_not_among_them() -> None:
    """Pairs that anybody can look up; the license lies beside the file."""
    raw = (embedded.FOLDER / WORDS.file).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == WORDS.sha256
    assert "Princeton" in (embedded.FOLDER / "wordnet_LICENSE.txt").read_text(encoding="utf-8")
    vocabulary, table = vocabulary_of("sentence_polarity"), word_table()
    words, vectors = synonyms(vocabulary), word_vectors(vocabulary)

    def of(word: str, rows: Tensor = words) -> set[str]:
        return {vocabulary.words[int(i)] for i in rows[vocabulary.id(word)] if int(i) >= 0}

    assert {"movie", "picture"} <= of("film") and {"movies"} <= of("films") and {"boring", "tedious"} <= of("dull")
    assert bool((words[:2] == -1).all()) and not of(".")
    common = Vocabulary(vocabulary.words[:1500])  # its tokens are the same
    near = synonyms(common, by="vectors", similar=0.3)
    best = vectors @ vectors[vocabulary.id("best")]
    assert float(best[vocabulary.id("worst")]) > 0.5, "antonyms keep the same company"
    assert "worst" not in of("best", near) and "good" not in of("bad", near) and of("best", near)
    pairs = {tuple(pair) for pair in table.synonyms.tolist()}
    assert all(pair[::-1] in pairs for pair in pairs)
    cosine = (vectors[:, None] * vectors[words.clamp_min(0)]).sum(dim=2)[words >= 0]
    assert float(cosine.min()) >= 0.3
    assert inflected({("film", "movie"), ("try", "study")}, {"films", "movies", "tries", "studies", "trying"}) == {
        "films": {"movies"}, "tries": {"studies"},
    }  # fmt: skip


def test_trigrams_are_counts_made_by_hand() -> None:
    """ab.b ab c over five tokens, and the sums of all probabilities."""
    x = torch.tensor([[2, 3, 3, 0], [2, 3, 4, 0]])
    model = Trigrams(x, vocabulary=5, weight=0.5)
    read = [[2, 3, 3, 0], [2, 3, 4, 0]]
    unigrams = Counter(itertools.chain(*read))
    p = {c: (unigrams[c] + 1) / (8 + 5) for c in range(5)}
    behind_3 = 0.5 * 1 / 3 + 0.5 * p[4]  # 3 is followed by 3, by the end and by 4
    behind_23 = 0.5 * 1 / 2 + 0.5 * behind_3
    got = model.log_conditional(*(torch.tensor([v]) for v in (2, 3, 4)))
    assert float(got) == pytest.approx(math.log(behind_23))
    unseen = model.log_conditional(*(torch.tensor([v]) for v in (4, 2, 3)))  # "4 2" was never read, "2 3" always
    assert float(unseen) == pytest.approx(math.log(0.5 * 1 + 0.5 * p[3]))
    a, b = (v.flatten() for v in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    every = model.log_conditional(a[:, None].expand(-1, 5), b[:, None].expand(-1, 5), torch.arange(5).expand(25, -1))
    assert torch.allclose(every.exp().sum(dim=1), torch.ones(25).double())
    assert model.log_prob(torch.tensor([[2, 0, 0]]))[0, 2:].abs().sum() == 0


def test_a_change_of_the_language_model_is_that_of_the_whole_text() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, 9, (30, 6), generator=generator)
    x[:10, 4:] = 0
    model, words = Trigrams(x, vocabulary=9), torch.randint(2, 9, (30, 6, 3), generator=generator)
    changes, before = model.changes(x, words), model.log_prob(x).sum(dim=1)
    for place in range(6):
        for k in range(3):
            other = x.clone()
            other[:, place] = words[:, place, k]
            real = x[:, place] > 0
            want = (model.log_prob(other).sum(dim=1) - before) / 3
            assert torch.allclose(changes[real, place, k], want[real])


@pytest.mark.parametrize("build", [text_cnn, text_lstm, text_bag])
def test_models_of_texts(build: Any) -> None:
    model = build(vocabulary=9, embedding=4, classes=3, dropout=0.5, seed=1).double().eval()
    x = torch.tensor([[3, 4, 5, 0, 0], [0, 0, 0, 0, 0]])
    z = model(x)
    assert z.shape == (2, 3) and bool(z.isfinite().all()) and torch.equal(z, model(x))
    if build is not text_cnn:  # the CNN's last window looks at the padding
        assert torch.allclose(model(x[:1, :3]), z[:1]), "padding says nothing"
    if build is text_bag:
        e = model.embed.weight
        assert torch.allclose(z[0], model.out((e[3] + e[4] + e[5]) / 3**0.5)) and torch.allclose(z[1], model.out.bias)
        assert torch.allclose(model(x[:, [2, 0, 1, 3, 4]]), z), "blind to order"
    assert not torch.equal(model.train()(x), model(x))
    for wrong in ({"vocabulary": 0}, {"classes": 1}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: "):
            build(**{"vocabulary": 9, **wrong})


def test_naive_bayes_counts() -> None:
    x, y = torch.tensor([[2, 3, 0], [2, 2, 4], [3, 4, 0], [4, 4, 4]]), torch.tensor([0, 0, 1, 1])
    model = NaiveBayes(x, y, vocabulary=5, pairs=7)

    def terms(row: list[int]) -> list[Any]:
        words = [w for w in row if w]
        return [*words, *(("pair", (a * 7919 + b) % 7) for a, b in itertools.pairwise(words))]

    for row in ([2, 4, 0], [3, 0, 0], [0, 0, 0]):
        for c in (0, 1):
            counts = Counter(t for r, label in zip(x.tolist(), y.tolist(), strict=True) if label == c for t in terms(r))
            total = sum(counts.values()) + 5 + 7
            want = math.log(0.5) + sum(math.log((counts[t] + 1) / total) for t in terms(row))
            assert float(model(torch.tensor([row]))[0, c]) == pytest.approx(want)
