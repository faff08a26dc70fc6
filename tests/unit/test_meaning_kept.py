"""A judge of meaning against cosines by hand: of counts of words, and of vectors at a known angle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustlab.attacks import meaning_kept
from robustlab.data import Vocabulary

WORDS = Vocabulary(("<pad>", "<unknown>", "good", "bad", "film", "the"))
X = torch.tensor([[5, 2, 4, 0], [5, 4, 0, 0], [2, 2, 2, 4]])
OTHER = torch.tensor([[5, 3, 4, 0], [5, 4, 0, 0], [3, 3, 3, 0]])


def counts(texts: list[str]) -> np.ndarray:
    """A toy encoder: how often each word stands in a text."""
    return np.array([[text.split().count(word) for word in WORDS.words] for text in texts], dtype=np.float32)


def test_a_toy_encoder_is_asked_once_and_gives_the_cosines_by_hand() -> None:
    asked: list[list[str]] = []

    def judge(texts: list[str]) -> np.ndarray:
        asked.append(texts)
        return counts(texts)

    kept = meaning_kept(X, OTHER, vocabulary=WORDS, judge=judge)
    assert asked == [["the good film", "the film", "good good good film", "the bad film", "the film", "bad bad bad"]]
    assert kept.dtype == torch.float64
    # (1,1,1)·(1,1,1) in two words of three; the same; no word in common.
    torch.testing.assert_close(kept, torch.tensor([2 / 3, 1.0, 0.0]).double())
    texts, others = asked[0][:3], asked[0][3:]
    assert torch.equal(meaning_kept(texts, others, judge=counts), kept)
    assert torch.equal(meaning_kept(texts, OTHER, vocabulary=WORDS, judge=counts), kept)


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_the_length_of_a_vector_does_not_count(degrees: float) -> None:
    turned = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])

    def judge(texts: list[str]) -> Tensor:
        return torch.stack([7.0 * torch.tensor([1.0, 0.0]), 1e-3 * turned]).requires_grad_(True)

    kept = meaning_kept(["one"], ["other"], judge=judge)
    assert not kept.requires_grad and float(kept) == pytest.approx(math.cos(math.radians(degrees)), abs=1e-7)


def test_nothing_said_is_judged_as_0_and_no_text_is_asked_about() -> None:
    assert meaning_kept([""], ["film"], judge=counts).tolist() == [0.0]
    assert meaning_kept([], [], judge=lambda texts: pytest.fail("asked")).shape == (0,)


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        ({"x_adv": OTHER[:2]}, ValueError, "x_adv: want as many texts as x, 3, got 2"),
        ({"vocabulary": None}, ValueError, "vocabulary: want one, since x holds"),
        ({"x": X.float()}, ValueError, r"x: want token ids \(N, T\), got torch.float32"),
        ({"x_adv": X + 5}, ValueError, "x_adv: want token ids from 0 to 5, got 5 to 10"),
        ({"x": X - 1}, ValueError, "x: want token ids from 0 to 5, got -1 to 4"),
        ({"x": "the film"}, TypeError, "x: want token ids or a list of strings, got str"),
        ({"judge": "encoder"}, TypeError, "judge: want a function of a list of strings, got str"),
        ({"judge": lambda texts: np.ones(4)}, ValueError, r"judge: want a vector per text, \(6, d\), got shape \(4,\)"),
        ({"judge": lambda texts: np.log(counts(texts) - 0.5)}, ValueError, r"judge: want finite .* texts \[0, 1, 2\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in log")
def test_bad_input(wrong: dict[str, Any], error: type[Exception], named: str) -> None:
    told: dict[str, Any] = {"x": X, "x_adv": OTHER, "vocabulary": WORDS, "judge": counts} | wrong
    with pytest.raises(error, match=rf"^{named}"):
        meaning_kept(told.pop("x"), told.pop("x_adv"), **told)
