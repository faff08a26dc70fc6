"""The check of temporal dependency's score: right makes pass, each slip gets its cause."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustlab.defenses.detection.temporal_dependency import beginnings, disagreement
from robustlab.models import transcripts
from robustlab.models.speech import heard
from robustlab.teaching import check
from robustlab.teaching.check.temporal_score import Reader, edits, sound_case
from tests.every import every
from tests.planted import cause_of, run

SCORE = """
def edit(a, b):
    row = list(range(len(b) + 1))
    for i, label in enumerate(a, start=1):
        before, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (label != other)))
    return row[-1]

def score(model, sound, length, share):
    cut = sound.clone()
    cut[round(share * length):] = 0
    whole, first = ([int(k) for k in said if k >= 0] for said in transcripts(model(torch.stack([sound, cut]))))
    if not first:
        return float(bool(whole))
    part = whole[:len(first)]
    return edit(first, part) / len(first)
"""
MERGED = "([int(k) for k in said if k >= 0] for said in transcripts(model(torch.stack([sound, cut]))))"
SILENT = "    if not first:\n        return float(bool(whole))\n"
SILENCE = "a silent beginning has no score of its own"
SLIPS = [
    ("the sound is not cut", "] = 0", "] *= 1"),
    ("the silence that was added counts as sound", "share * length", "share * len(sound)"),
    ("the end is heard alone, not the beginning", "[round(share * length):]", "[:round(share * length)]"),
    ("the whole is compared, not its beginning", "part = whole[:len(first)]", "part = whole"),
    ("the share is taken of the labels, too", "whole[:len(first)]", "whole[:round(share * len(whole))]"),
    ("over the labels of the whole", "/ len(first)", "/ len(whole)"),
    ("a count, not a share", "/ len(first)", ""),
    ("compared place by place, not by edits", "edit(first, part)",
     "sum(a != b for a, b in zip(first, part + [-1] * len(first)))"),
    ("all labels behind the first difference count", "edit(first, part)",
     "next((len(first) - k for k in range(len(first)) if first[:k + 1] != part[:k + 1]), 0)"),
    ("repetitions are not merged", MERGED,
     "([int(k) for k in s.argmax(1) if k < 10] if j else [int(k) for k in transcripts(s[None])[0] if k >= 0]"
     " for j, s in enumerate(model(torch.stack([sound, cut]))))"),
    (SILENCE, SILENT, ""),
    (SILENCE, "return float(bool(whole))", "return 0.0"),
    (SILENCE, "return float(bool(whole))", "return float('nan')"),
    ("another distance, or another beginning", "edit(first, part)", "edit(first, part[::-1])"),
    ("x was changed in place", "cut = sound.clone()", "cut = sound"),
    ("not a number", "return edit(first, part) / len(first)", "return first, part"),
]  # fmt: skip


def score(*replaced: tuple[str, str]) -> Any:
    return run(SCORE, *replaced, transcripts=transcripts)["score"]


@every("seed", [0, 1, 30])
def test_a_right_score_passes(seed: int) -> None:
    for right in (score(), by_robustlab, by_cutting_off):
        check.temporal_score(right, seed=seed)


def by_robustlab(model: nn.Module, sound: Tensor, length: int, share: float) -> Tensor:
    parts = beginnings(sound[None], share, torch.tensor([length])), sound[None]
    return disagreement(*(heard(model, part) for part in parts))


def by_cutting_off(model: nn.Module, sound: Tensor, length: int, share: float) -> float:
    """Without silence behind: the beginning is a shorter sound, as in the paper."""
    first, whole = (
        [int(k) for k in transcripts(model(part[None]))[0] if k >= 0]
        for part in (sound[: int(share * length)], sound[:length])
    )
    return float(edits(tuple(first), tuple(whole[: len(first)])) / len(first) if first else len(whole) > 0)


@every("cause, old, new", SLIPS)
def test_each_slip_is_named(cause: str, old: str, new: str) -> None:
    assert cause_of(check.temporal_score, score((old, new))) == cause
    assert cause_of(check.temporal_score, score((old, new)), seed=2) == cause


def test_the_reader_hears_what_its_sounds_were_written_to_say() -> None:
    for number in range(12):
        sound, length, share = sound_case(0, number)
        whole, first = (
            heard(Reader(), sound[None]),
            heard(Reader(), beginnings(sound[None], share, torch.tensor([length]))),
        )
        assert whole[0, :2].tolist() == [1, 2] and 0 < share < 1 and not bool(sound[length:].any())
        assert bool((first < 0).all()) == (number % 4 == 3)
