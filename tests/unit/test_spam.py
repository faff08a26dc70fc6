"""The messages as they were collected, and the maps to numbers against scikit-learn's."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import chi2

from robustlab.data import Messages, TextMap, embedded, mapped, sms_spam, text_map
from robustlab.data.spam import SMS_SPAM


@pytest.fixture(scope="module")
def messages() -> Messages:
    return sms_spam()


def test_the_file_is_the_one_of_the_note(messages: Messages) -> None:
    note = json.loads((embedded.FOLDER / "sms_spam.json").read_text(encoding="utf-8"))
    raw = (embedded.FOLDER / SMS_SPAM.file).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SMS_SPAM.sha256 == note["sha256"]
    assert (embedded.FOLDER / note["licence_file"]).exists() and SMS_SPAM.citation and SMS_SPAM.provenance
    assert (len(messages.texts_train), len(messages.texts_test)) == (4160, 1000)
    assert messages.y_train.shape == (4160,) and set(messages.y_test.tolist()) == {0, 1}
    both = set(messages.texts_train) & set(messages.texts_test)
    assert len(both) == 3 and all("000000" in text for text in both), "alike but for masked numbers"
    assert repr(messages) == "Messages(4160 train, 1000 test, 642 of all are spam)"


def test_labels_stand_beside_their_messages(messages: Messages) -> None:
    """Two lines of the owners' readme."""
    known = dict(zip(messages.texts_train + messages.texts_test, [*messages.y_train, *messages.y_test], strict=True))
    assert known["What you doing?how are you?"] == 0
    assert any(y == 1 and text.startswith("Sunshine Quiz!") for text, y in known.items())


def counted(messages: Messages) -> tuple[np.ndarray, np.ndarray, list[str]]:
    reader = CountVectorizer(token_pattern=r"[a-z]+", min_df=5)
    counts = reader.fit_transform(messages.texts_train).toarray()
    return counts, reader.transform(messages.texts_test).toarray(), list(reader.get_feature_names_out())


def test_words_are_logarithms_of_counts_of_telling_words(messages: Messages) -> None:
    by = text_map(messages, "words", d=40)
    train, test, names = counted(messages)
    columns = [names.index(word) for word in by.words]
    data = mapped(messages, by)
    assert np.allclose(data.x_train, np.log1p(train[:, columns])) and float(data.x_train.min()) == 0
    assert np.allclose(data.x_test, np.log1p(test[:, columns]))
    # For presence in two classes the square of the pooled z-value over 1 − p is chi-square's statistic.
    held = train > 0
    score = chi2(held, messages.y_train.numpy())[0] / (1 - held.mean(axis=0))
    assert set(by.words) == {names[j] for j in np.argsort(-score)[:40]}


@pytest.fixture(scope="module")
def components(messages: Messages) -> TextMap:
    return text_map(messages, d=20)


@pytest.mark.slow
def test_components_are_the_leading_singular_vectors(messages: Messages, components: TextMap) -> None:
    by = components
    train, test, _ = counted(messages)
    idf = -np.log((train > 0).mean(axis=0))
    rows = [np.log1p(part) * idf for part in (train, test)]
    rows = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in rows]
    peer = TruncatedSVD(20, algorithm="arpack", random_state=0).fit(rows[0])
    want, got = peer.transform(rows[1]), mapped(messages, by).x_test.numpy()
    assert np.allclose(want @ want.T, got @ got.T, atol=1e-6), "the same subspace, whatever the signs"
    assert np.allclose(by.basis.T @ by.basis, np.eye(20), atol=1e-9)
    largest = by.basis.abs().argmax(dim=0, keepdim=True)
    assert bool((by.basis.gather(0, largest) > 0).all())


def test_a_text_without_known_words_is_at_zero(messages: Messages, components: TextMap) -> None:
    for by in (text_map(messages, "words", d=20), components):
        assert torch.equal(by(["", "0800 123", "zzzqqq"]), torch.zeros(3, 20).double())


def test_bad_input(messages: Messages) -> None:
    for changes, name in (({"kind": "letters"}, "kind"), ({"d": 0}, "d"), ({"d": 10**6}, "d")):
        with pytest.raises(ValueError, match=f"^{name}: "):
            text_map(messages, **changes)
