"""Spoken strings: what is said is what the grammar allows, by one speaker, from recordings of one part only."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from robustlab.data import Recordings, digit_strings, embedded, said_anew, spoken_digits, spoken_strings
from robustlab.data.spoken import SPOKEN_DIGITS, STRANGER


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return spoken_digits()


def test_the_file_is_the_one_of_the_note(recordings: Recordings) -> None:
    note = json.loads((embedded.FOLDER / "spoken_digits.json").read_text(encoding="utf-8"))
    raw = (embedded.FOLDER / SPOKEN_DIGITS.file).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == SPOKEN_DIGITS.sha256 == note["sha256"]
    assert "Attribution-ShareAlike 4.0" in note["licence"] and "CC BY-SA 4.0" in SPOKEN_DIGITS.license
    assert "Attribution-ShareAlike" in (embedded.FOLDER / note["licence_file"]).read_text(encoding="utf-8")
    assert recordings.speakers == tuple(note["speakers"]) and STRANGER in recordings.speakers
    assert repr(recordings) == "Recordings(780 digits by 6 speakers, 339 s)"


@pytest.mark.slow
def test_recordings_are_those_of_the_file_but_for_their_loudness(recordings: Recordings) -> None:
    stored = np.load(embedded.FOLDER / SPOKEN_DIGITS.file)
    counts = np.zeros((6, 10, 2), dtype=int)
    for k in range(0, 780, 37):
        first, last = stored["start"][k : k + 2]
        raw, ours = stored["samples"][first:last] / 2**15, recordings.samples[first:last].double().numpy()
        scale = min(0.08 / math.sqrt((raw**2).mean()), 0.95 / np.abs(raw).max())
        assert np.allclose(ours, raw * scale, atol=1e-6)
    for k in range(780):
        counts[stored["speaker"][k], stored["digit"][k], int(recordings.is_test[k])] += 1
    assert (counts[:, :, 0] == 8).all() and (counts[:, :, 1] == 5).all()
    assert torch.equal(recordings.is_test, recordings.take < 5)


def test_strings_obey_the_grammar() -> None:
    dates, prices, numbers = (digit_strings(3000, kind=kind, seed=7) for kind in ("date", "price", "number"))
    for row in dates.tolist():
        day, month, year = (int("".join(map(str, row[a:b]))) for a, b in ((0, 2), (2, 4), (4, 8)))
        assert 1 <= day <= 28 and 1 <= month <= 12 and 1950 <= year <= 2049
    for row in prices.tolist():
        said = [d for d in row if d >= 0]
        assert 4 <= len(said) <= 6 and said[0] > 0 and said[-2:] in ([0, 0], [5, 0], [9, 5], [9, 9])
        assert row == said + [-1] * (8 - len(said))
    for row in numbers.tolist():
        said = [d for d in row if d >= 0]
        assert 4 <= len(said) <= 8 and sum(said) % 10 == 0 and row == said + [-1] * (8 - len(said))
    for strings, lengths in ((prices, 3), (numbers, 5)):
        sizes = (strings >= 0).sum(dim=1)
        assert len(sizes.unique()) == lengths and int(torch.bincount(sizes).max()) < 1.3 * 3000 / lengths
    assert [len(numbers[:, j][numbers[:, j] >= 0].unique()) for j in (0, 7)] == [10, 10]
    assert len({tuple(row[:4]) for row in dates.tolist()}) == 28 * 12
    mixed = digit_strings(3000, seed=7)
    kinds = torch.stack([(mixed == part).all(dim=1) for part in (dates, prices, numbers)]).sum(dim=1)
    assert int(kinds.min()) > 900 and int(kinds.sum()) == 3000
    assert torch.equal(digit_strings(10, seed=7), mixed[:10])
    assert digit_strings(0).shape == (0, 8)


def test_a_string_is_its_recordings_one_after_the_other(recordings: Recordings) -> None:
    """Found again, sample by sample, in the sound; the silences are 20 to 100 ms long."""
    strings = spoken_strings(recordings, 30, seed=5)
    for i in range(30):
        sound, at, spans = strings.x[i], 0, []
        for k, digit in zip(strings.rows[i].tolist(), strings.digits[i].tolist(), strict=True):
            assert (k < 0) == (digit < 0)
            if k < 0:
                continue
            assert (
                recordings.digit[k] == digit and recordings.speaker[k] == strings.speaker[i] and recordings.is_test[k]
            )
            clip = recordings.samples[recordings.start[k] : recordings.start[k + 1]]
            first = next(p for p in range(at, at + 1000) if torch.equal(sound[p : p + len(clip)], clip))
            spans.append((first, first + len(clip)))
            at = first + len(clip)
        gaps = [b[0] - a[1] for a, b in pairwise(spans)]
        assert spans[0][0] == 400 and all(160 <= gap <= 800 for gap in gaps)
        assert at + 160 <= int(strings.lengths[i]) <= at + 800
        heard = torch.zeros_like(sound, dtype=torch.bool)
        for first, last in spans:
            heard[first:last] = True
        assert bool((sound[~heard] == 0).all())
    assert recordings.speakers.index(STRANGER) not in strings.speaker.tolist()
    assert repr(strings).startswith("Strings(30 sounds of ")


def test_parts_and_speakers_are_kept_apart(recordings: Recordings) -> None:
    train, test = (spoken_strings(recordings, 200, part=part) for part in ("train", "test"))
    assert not set(train.rows.flatten().tolist()) & set(test.rows.flatten().tolist()) - {-1}
    stranger = spoken_strings(recordings, 20, speakers=[STRANGER])
    assert set(stranger.speaker.tolist()) == {recordings.speakers.index(STRANGER)}
    assert len(train.speaker.unique()) == 5 and 350 < len(train.rows.unique()) <= 5 * 10 * 8 + 1
    longer = spoken_strings(recordings, 20, speakers=[STRANGER], length=60_000)
    assert longer.x.shape == (20, 60_000) and torch.equal(longer.x[:, : stranger.x.shape[1]], stranger.x)
    assert bool((longer.x[:, stranger.x.shape[1] :] == 0).all())


def test_what_is_said_anew_differs_each_time_and_uses_training_recordings(recordings: Recordings) -> None:
    digits, ids = digit_strings(40, seed=1), torch.arange(40)
    quiet = said_anew(recordings, noise=0.0, hidden=0.0)
    first, again, other = (quiet(digits, ids=ids, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and (first.shape != other.shape or not torch.equal(first, other))
    one = quiet(digits[3:4], ids=ids[3:4], seed=1)
    assert torch.equal(one[0], first[3, : one.shape[1]])
    assert float(said_anew(recordings, noise=0.1)(digits, ids=ids, seed=1)[:, :300].std()) > 0.02
    share = said_anew(recordings, noise=0.0, hidden=0.5)(digits, ids=ids, seed=1)
    assert 0.3 < float(share.abs().sum() / first.abs().sum()) < 0.7
    assert before_is_kept(recordings, quiet)


def before_is_kept(recordings: Recordings, augment: object) -> bool:
    digits = digit_strings(4, seed=1)
    copy, state = digits.clone(), torch.random.get_rng_state()
    augment(digits, ids=torch.arange(4), seed=3)  # type: ignore[operator]
    return torch.equal(copy, digits) and torch.equal(state, torch.random.get_rng_state())


def test_bad_input(recordings: Recordings) -> None:
    for call, message in (
        (lambda: spoken_strings(recordings, 0), "n: want at least 1"),
        (lambda: spoken_strings(recordings, 2, kind="time"), "kind: want one of"),  # type: ignore[arg-type]
        (lambda: spoken_strings(recordings, 2, part="all"), "part: want one of"),  # type: ignore[arg-type]
        (lambda: spoken_strings(recordings, 2, speakers=["nobody"]), "speakers: want one of"),
        (lambda: spoken_strings(recordings, 2, speakers=[]), "speakers: want at least one"),
        (lambda: spoken_strings(recordings, 2, length=1000), r"length: want at least \d+"),
        (lambda: recordings.joined(torch.tensor([[780]])), "rows: want integers"),
        (lambda: said_anew(recordings, hidden=1.0), "hidden: want"),
        (lambda: said_anew(recordings, noise=-1.0), "noise: want"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}"):
            call()
