"""The score of temporal dependency, held to recognizers of which one knows what they hear.

A sound of the check is written, not recorded: each frame has a height, which says what it is heard as within the whole,
and what it is heard as once the end of the sound is gone. So both transcripts are known, and they differ as they like.
The edit distance is that of its definition: the best of leaving out, inserting and swapping, tried one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustlab.models.speech import BLANK, transcripts
from robustlab.teaching.check.finding import Wrong, blame, require_unchanged

Score = Callable[[nn.Module, Tensor, int, float], Any]
"""(model, sound (T,), length, share) → the score, a number."""
Labels = tuple[int, ...]
HOP, END = 4, 127  # samples per frame; the height of the last frame, which says that the sound is whole


def temporal_score(function: Score, *, seed: int = 0, hints: int = 1) -> None:
    """Check the score of temporal dependency: prints one line where all holds.

    Args:
        function: called as ``function(model, sound, length, share)`` with a recognizer, sounds (N, T) to scores
            (N, F, 11) whose last label is the blank; a sound (T,), of which all behind the first ``length`` samples is
            silence that was added; and a share in (0, 1). It hears the first share · length samples alone, and returns
            the edit distance of that transcript and of as many labels at the beginning of the whole's, over their
            number. Where the beginning is silent and the whole is not, it returns 1.
        seed: of the sounds (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    cases = [sound_case(seed, number) for number in range(12)]
    try:
        _all(function, cases)
    except Wrong as wrong:
        raise wrong.shown_as("temporal_score", hints) from None
    print(f"temporal_score: holds, on {len(cases)} sounds, with a silent beginning too")


class Case(NamedTuple):
    """A sound (T,), how many of its samples are its own, and the share of them that is heard alone."""

    sound: Tensor
    length: int
    share: float


class Reader(nn.Module):
    """Hears a frame as its height says: as one label where the sound has its end, as another where it has not."""

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.nn.functional.pad(x, (0, -x.shape[1] % HOP))[:, ::HOP]
        height = (128 * frames).round().long()
        within, alone = (height - 1).clamp_min(0) // 11, (height - 1).clamp_min(0) % 11
        whole = (height == END).any(dim=1, keepdim=True)
        label = torch.where(whole, within, alone).masked_fill((height == 0) | (height == END), BLANK)
        return torch.nn.functional.one_hot(label, BLANK + 1).to(x.dtype)


def sound_case(seed: int, number: int) -> Case:
    """A sound of three digits and silence; each fourth is heard as nothing without its end."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    frames, added = 10 + number, 3 + 2 * (number % 5)
    few = torch.tensor([1, 2, 3, BLANK])
    within, alone = few[torch.randint(4, (2, frames), generator=generator)]
    kept = torch.rand(frames, generator=generator) < 0.6  # frames that both have in common
    alone = torch.where(kept, within, alone)
    if number % 4 == 3:
        alone[:] = BLANK
    within[:4] = torch.tensor([1, 1, BLANK, 2])  # never nothing, and a repetition
    height = 1 + 11 * within + alone
    height[-1] = END
    sound = torch.cat([height, torch.zeros(added, dtype=height.dtype)]).repeat_interleave(HOP) / 128
    heard = int(frames * (0.4, 0.5, 0.6)[number % 3])
    length = HOP * frames
    return Case(sound, length, (HOP * heard + 1.5) / length)  # within a frame, of which the first sample is heard


def _all(function: Score, cases: list[Case]) -> None:
    got, model = [], Reader().eval()
    for case in cases:
        given = case.sound.clone()
        try:
            out = function(model, given, case.length, case.share)
        except ZeroDivisionError:
            raise _silenced("0/0: the score divides by the number of labels that are heard in a silence") from None
        require_unchanged(given, case.sound)
        if not isinstance(out, int | float | Tensor) or (isinstance(out, Tensor) and out.numel() != 1):
            kind = f"a tensor {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise Wrong(f"the function returned {kind}", "not a number", "One score per sound: a float.")
        got.append(float(out))
    parts = [_heard(model, case) for case in cases]
    want = [_score(first, whole) for first, whole, *_ in parts]
    if _same(got, want):
        return
    spoken = [place for place, (first, *_) in enumerate(parts) if first]
    if _same([got[k] for k in spoken], [want[k] for k in spoken]):
        silent = next(got[k] for k in range(len(got)) if k not in spoken and got[k] != want[k])
        raise _silenced(f"where nothing is heard in the beginning, the score is {silent:.3g}, not 1")
    place = next(k for k, (a, b) in enumerate(zip(got, want, strict=True)) if abs(a - b) > 1e-6 or a != a)
    first, whole = parts[place][:2]
    heard = f"alone {_said(first)} is heard, in the whole {_said(whole)}"
    seen = f"{heard}: the score is {got[place]:.3g}, not {want[place]:.3g}"
    blame(seen, _slips(parts, cases), lambda slip: _same([got[k] for k in spoken], [slip[k] for k in spoken]))
    raise Wrong(
        seen,
        "another distance, or another beginning",
        "Two transcripts: of the whole, and of the beginning with silence behind it.",
        "edit(first, whole[:len(first)]) / len(first).",
    )


def _heard(model: nn.Module, case: Case) -> tuple[Labels, Labels, Labels, Labels, Labels]:
    """What is heard alone and in the whole; alone if the silence behind is counted; of the end; with repetitions."""
    sound, length, share = case
    cut, place = round(share * length), torch.arange(len(sound))
    kept = (place < cut, place >= 0, place < round(share * len(sound)), place >= cut)
    scores = [model((sound * part)[None]) for part in kept]
    labels = [tuple(int(k) for k in transcripts(s)[0] if k >= 0) for s in scores]
    repeated = tuple(int(k) for k in scores[0].argmax(dim=2)[0] if k != BLANK)
    return labels[0], labels[1], labels[2], labels[3], repeated


def _score(first: Labels, whole: Labels) -> float:
    return edits(first, whole[: len(first)]) / len(first) if first else float(bool(whole))


@cache
def edits(a: Labels, b: Labels) -> int:
    """The smallest number of labels to leave out, to insert or to swap, by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))


def _slips(parts: Sequence[tuple[Labels, ...]], cases: list[Case]) -> Iterator[tuple[Any, ...]]:
    """The scores of likely slips, each with its cause and hints."""
    yield from _other_sounds(parts)
    yield from _other_distances(parts, cases)


def _other_sounds(parts: Sequence[tuple[Labels, ...]]) -> Iterator[tuple[Any, ...]]:
    """Where something else is heard, or read off."""
    yield (
        [0.0] * len(parts),
        "the sound is not cut",
        "The beginning must be heard alone.",
        "cut[round(share * length):] = 0.",
    )
    yield (
        [_score(counted, whole) for _, whole, counted, *_ in parts],
        "the silence that was added counts as sound",
        "A string of half a second in a batch of two seconds begins with its first quarter of a second.",
        "round(share * length), not share * len(sound).",
    )
    yield (
        [_score(end, whole) for _, whole, _, end, _ in parts],
        "the end is heard alone, not the beginning",
        "Silence belongs behind the cut.",
        "cut[k:] = 0.",
    )
    yield (
        [
            edits(repeated, whole[: len(repeated)]) / len(repeated) if repeated else 1.0
            for _, whole, _, _, repeated in parts
        ],
        "repetitions are not merged",
        "A label that is on top in three frames in a row is heard once.",
        "robustlab.models.transcripts reads scores off.",
    )


def _other_distances(parts: Sequence[tuple[Labels, ...]], cases: list[Case]) -> Iterator[tuple[Any, ...]]:
    """Where transcripts are compared in another way."""

    def of(score: Callable[..., float]) -> list[float]:
        return [score(*part[:2]) if part[0] else 1.0 for part in parts]

    yield (
        of(lambda first, whole: edits(first, whole) / len(first)),
        "the whole is compared, not its beginning",
        "What comes later in the whole cannot be heard in its beginning.",
        "whole[:len(first)].",
    )
    yield (
        [
            edits(part[0], part[1][: round(case.share * len(part[1]))]) / max(len(part[0]), 1)
            for part, case in zip(parts, cases, strict=True)
        ],
        "the share is taken of the labels, too",
        "How many labels the beginning has, its own transcript says.",
        "whole[:len(first)].",
    )
    yield (
        of(lambda first, whole: edits(first, whole[: len(first)]) / len(whole)),
        "over the labels of the whole",
        "It is a share of the labels that are heard in the beginning.",
        "Divide by len(first).",
    )
    yield of(lambda first, whole: edits(first, whole[: len(first)])), "a count, not a share", "Divide by len(first)."
    yield (
        of(lambda first, whole: sum(a != b for a, b in zip(first, _padded(whole, first), strict=True)) / len(first)),
        "compared place by place, not by edits",
        "One label that is left out moves all behind it by one place.",
        "The edit distance may insert, leave out or swap: three neighbors in its table.",
    )
    yield (
        of(lambda first, whole: 1 - _prefix(first, whole) / len(first)),
        "all labels behind the first difference count",
        "That is the other distance of the paper, the longest common prefix.",
    )


def _padded(whole: Labels, first: Labels) -> Labels:
    return (whole + (-1,) * len(first))[: len(first)]


def _prefix(first: Labels, whole: Labels) -> int:
    same = [a == b for a, b in zip(first, _padded(whole, first), strict=True)]
    return same.index(False) if False in same else len(same)


def _silenced(seen: str) -> Wrong:
    return Wrong(
        seen,
        "a silent beginning has no score of its own",
        "An attacker could silence the beginning, and would pass.",
        "if not first: return float(bool(whole)).",
    )


def _said(labels: Labels) -> str:
    return " ".join(map(str, labels)) or "nothing"


def _same(a: list[float], b: list[float]) -> bool:
    return all(abs(p - q) <= 1e-6 for p, q in zip(a, b, strict=True))
