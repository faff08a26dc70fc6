"""Temporal dependency: distances by a table and by hand, a model that depends on all and one that does not, errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustlab import zoo
from robustlab.attacks import transcript
from robustlab.data import digit_strings, spoken_digits, spoken_strings
from robustlab.defenses import temporal_dependency
from robustlab.defenses.detection.temporal_dependency import beginnings, disagreement, edit_distance

BLANK = 3


def padded(rows: list[list[int]], width: int = 9) -> Tensor:
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def random_rows(seed: int, n: int = 300) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 7, (n,), generator=generator).tolist()
    return [torch.randint(0, 3, (size,), generator=generator).tolist() for size in sizes]


def levenshtein(a: list[int], b: list[int]) -> int:
    """By the recursion of its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0])
    )  # fmt: skip


def test_the_edit_distance_is_that_of_its_definition() -> None:
    a, b = random_rows(0), random_rows(1)
    ours = edit_distance(padded(a), padded(b, 7)).tolist()
    assert ours == [levenshtein(p, q) for p, q in zip(a, b, strict=True)]
    nothing = torch.empty(0, 0, dtype=torch.int64)
    assert len(set(ours)) > 4 and edit_distance(nothing, nothing).shape == (0,)


@pytest.mark.parametrize("distance", ["wer", "lcp"])
def test_disagreement_compares_as_many_labels_of_the_whole(distance: str) -> None:
    """The whole's first |S_k| labels, never more; where the beginning says more than the whole, that counts."""
    beginning, whole = random_rows(2), random_rows(3)
    ours = disagreement(padded(beginning), padded(whole, 7), distance).tolist()  # type: ignore[arg-type]
    for part, all_, value in zip(beginning, whole, ours, strict=True):
        reference = all_[: len(part)]
        if not part:
            assert value == float(bool(all_))
            continue
        same = 0
        while same < min(len(part), len(reference)) and part[same] == reference[same]:
            same += 1
        wish = levenshtein(part, reference) if distance == "wer" else len(part) - same
        assert value == pytest.approx(wish / len(part))


def test_beginnings_are_cut_by_each_sounds_own_length() -> None:
    x = torch.ones(3, 10)
    cut = beginnings(x, torch.tensor([0.5, 0.5, 0.9]), torch.tensor([10, 4, 10]))
    assert cut.sum(dim=1).tolist() == [5, 2, 9] and cut[0].tolist() == [1.0] * 5 + [0.0] * 5
    assert beginnings(x, 0.3).sum(dim=1).tolist() == [3, 3, 3] and bool((x == 1).all())


class Local(nn.Module):
    """A frame of two samples says a label by itself: 0 where it is loud, nothing in silence."""

    rate = 8000

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def context(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, ::2])

    def forward(self, x: Tensor) -> Tensor:
        loud = x.unflatten(1, (-1, 2)).abs().amax(dim=2) * self.gain
        turned = self.context(x)
        never = torch.full_like(loud, -9)
        labels = [torch.where(turned == other, never, loud - 0.1) for other in (1, 0)]
        return torch.stack([*labels, never, torch.zeros_like(loud)], dim=2)


class Whole(Local):
    """Every loud frame says 1 in place of 0 if anything is said in the last quarter."""

    def context(self, x: Tensor) -> Tensor:
        last = x[:, 3 * x.shape[1] // 4 :].abs().amax(dim=1, keepdim=True) > 0.1
        return last.to(x.dtype).expand(-1, x.shape[1] // 2)


def knocks(n: int = 6) -> Tensor:
    """Loud frames with silence between them, in all quarters."""
    x = torch.zeros(n, 32)
    x[:, ::4] = torch.linspace(0.3, 0.9, n)[:, None]
    return x


def test_where_scores_are_local_nothing_is_found_and_where_all_depends_on_all_everything() -> None:
    x = knocks()
    near, far = (temporal_dependency(model, x, x, k=0.5) for model in (Local(), Whole()))
    assert (near.scores == 0).all() and (near.details["beginning"] >= 0).sum(dim=1).tolist() == [4] * 6
    assert (far.scores == 1).all() and (far.details["whole"][:, :8] == 1).all()
    assert (far.details["beginning"][:, :4] == 0).all()
    drawn = temporal_dependency(Whole(), knocks(60), x, k=(0.2, 0.95), seed=1)
    counts = (drawn.details["beginning"] >= 0).sum(dim=1)
    assert counts.min() <= 3 and counts.max() >= 7 and 0 < int((drawn.scores == 0).sum()) < 30
    some = torch.tensor([3, 50])
    again = temporal_dependency(Whole(), knocks(60)[some], x, k=(0.2, 0.95), seed=1, ids=some)
    assert torch.equal(again.scores, drawn.scores[some])


@pytest.mark.slow
def test_the_threshold_and_the_area_are_those_of_brute_force() -> None:
    """On spoken strings under attack: pairs are counted one by one, and the clean sounds above the threshold."""
    model, recordings = zoo.load("spoken_cnn"), spoken_digits()
    strings, clean = spoken_strings(recordings, 8, seed=3), spoken_strings(recordings, 40, seed=4)
    attacked = transcript(model, strings.x, target=digit_strings(8, seed=99), eps=0.02, steps=40).x_adv
    x, lengths = torch.cat([strings.x, attacked]), strings.lengths.repeat(2)
    found = temporal_dependency(
        model, x, clean.x, k=0.3, lengths=lengths, clean_lengths=clean.lengths, rejection_rate=0.1
    )
    truth = torch.arange(16) >= 8
    pairs = [(a > b) + 0.5 * (a == b) for a in found.scores[8:].tolist() for b in found.scores[:8].tolist()]
    assert found.score(truth)["auroc"] == pytest.approx(sum(pairs) / 64)
    known = sorted(found.details["clean_scores"].tolist(), reverse=True)
    assert found.threshold == known[3] and sum(score > found.threshold for score in known) <= 4
    few = temporal_dependency(model, x[:2], clean.x[:5], lengths=lengths[:2], clean_lengths=clean.lengths[:5])
    assert math.isinf(few.threshold) and not few.flagged.any()


def test_bad_input() -> None:
    model, x = Local(), knocks()
    real = zoo.load("spoken_cnn")
    for call, error, message in (
        (lambda: temporal_dependency(real, x, x), ValueError, r"x: want sounds \(N, T\) of at least one window, T ≥"),
        (lambda: temporal_dependency(model, x, x, rate=16_000), ValueError, "rate: want the model's 8000 .* got 16000"),
        (lambda: temporal_dependency(model, x * torch.tensor([[1.0]] * 5 + [[0.0]]), x), ValueError,
         r"x: want sounds in which the model hears something, got an empty transcript in rows \[5\]"),
        (lambda: temporal_dependency(model, x, 0 * x), ValueError, r"clean: want sounds in which .* in rows \[0, 1, 2"),
        (lambda: temporal_dependency(model, x, x[:0]), ValueError, "clean: want at least 1 sound"),
        (lambda: temporal_dependency(model, x, x, k=1.0), ValueError, "k: want"),
        (lambda: temporal_dependency(model, x, x, k=(0.6, 0.4)), ValueError, r"k: want \(low, high\)"),
        (lambda: temporal_dependency(model, x, x, distance="cer"), ValueError, "distance: want one of"),  # type: ignore
        (lambda: temporal_dependency(model, x, x, lengths=torch.full((6,), 33)), ValueError, "lengths: want 1 … 32"),
        (lambda: temporal_dependency(model, x, x, lengths=torch.ones(6)), TypeError, "lengths: want integers"),
        (lambda: temporal_dependency(model, x, x, rejection_rate=1.0), ValueError, "rejection_rate: want"),
        (lambda: temporal_dependency(model, 2 * x, x), ValueError, r"x: want values in \[-1"),
    ):  # fmt: skip
        with pytest.raises(error, match=f"^{message}"):
            call()
