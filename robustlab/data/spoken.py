"""Spoken digits, and strings of them that a small grammar draws: dates, prices, and numbers with a check digit.

The recordings are those of the Free Spoken Digit Dataset, under CC BY-SA 4.0, and so is every sound that is made from
them. Sounds are floats in [−1, 1] at 8 kHz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.data.embedded import Source, read_source
from robustlab.data.pairs import Part
from robustlab.geometry.keyed import Noise

SPOKEN_DIGITS = Source(
    title="Free Spoken Digit Dataset, 780 recordings",
    file="spoken_digits.npz",
    sha256="dc58fdd06200902ec3f3a8d78345b05498979771546f66fa94c78772d6340a37",
    classes=tuple("0123456789"),
    provenance="Recordings 0 to 12 of each digit by each of six speakers, of github.com/Jakobovski/"
    "free-spoken-digit-dataset; 0 to 4 are for testing. spoken_digits.json beside the file has the details.",
    license="CC BY-SA 4.0, which binds the file and every sound made from it: spoken_digits_readme.md beside the file.",
    citation="Jackson and others, Free Spoken Digit Dataset, doi:10.5281/zenodo.1342401.",
)
RATE = 8000  # samples per second
LONGEST = 8  # digits in a string
STRANGER = "yweweler"
"""The speaker whom no shipped recognizer has heard: who tests a shift that is natural."""
Kind = Literal["date", "price", "number"]
_LOUDNESS, _PEAK = 0.08, 0.95  # root mean square of a recording, and what no sample may pass
_EDGE, _GAP = 400, (160, 800)  # silence in samples: before the first digit, and (least, most) after each


@dataclass(frozen=True, eq=False, repr=False)
class Recordings:
    """Recordings of single digits, end to end in one tensor; recording k is ``samples[start[k] : start[k + 1]]``.

    Attributes:
        samples: float32 in [−1, 1]; each recording is scaled to a root mean square of 0.08, less where it would clip.
        start: (R + 1,) int64.
        digit, speaker, take: (R,) int64; the speaker is a place in ``speakers``.
        is_test: (R,) bool, takes 0 to 4.
        speakers: their names.
    """

    samples: Tensor
    start: Tensor
    digit: Tensor
    speaker: Tensor
    take: Tensor
    is_test: Tensor
    speakers: tuple[str, ...]

    def __repr__(self) -> str:
        seconds = len(self.samples) / RATE
        return f"Recordings({len(self.digit)} digits by {len(self.speakers)} speakers, {seconds:.0f} s)"

    def joined(
        self,
        rows: Tensor,
        *,
        gain: Tensor | None = None,
        seed: int = 0,
        ids: Tensor | None = None,
        length: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Recordings one after the other, with 20 to 100 ms of silence after each.

        Args:
            rows: (N, L) int64, the recordings of each sound, with −1 behind the last.
            gain: (N, L), a factor of each recording; None takes 1. What is beyond ±1 then is clipped.
            seed, ids: of the silences, keyed by the seed and each sound's id (default 0 … N − 1).
            length: T of the sounds in samples; None takes the longest. What is behind the last digit is silence.

        Returns:
            The sounds (N, T), and how many samples of each are not that silence, (N,).

        Raises:
            ValueError: if ``length`` is less than the longest sound has, or a row is no recording.
        """
        if rows.dim() != 2 or rows.is_floating_point() or not bool(((rows >= -1) & (rows < len(self.digit))).all()):
            raise ValueError(f"rows: want integers (N, L) from −1 to {len(self.digit) - 1}, got {tuple(rows.shape)}")
        n, device = len(rows), rows.device
        samples, start = self.samples.to(device), self.start.to(device)
        spoken, at = rows >= 0, rows.clamp_min(0)
        size = (start[at + 1] - start[at]) * spoken
        noise = Noise(seed, torch.arange(n, device=device) if ids is None else ids.to(device))
        gaps = (_GAP[0] + noise.integers(0, rows.shape[1:], _GAP[1] - _GAP[0] + 1)) * spoken
        ends = _EDGE + (size + gaps).cumsum(dim=1)
        lengths = ends[:, -1] if rows.shape[1] else torch.full((n,), _EDGE, device=device)
        longest = int(lengths.max()) if n else _EDGE
        if length is not None and length < longest:
            raise ValueError(f"length: want at least {longest}, which the longest sound takes, got {length}")
        sounds = samples.new_zeros(n, longest if length is None else length)
        count = size.flatten()
        within = torch.arange(int(count.sum()), device=device) - (count.cumsum(0) - count).repeat_interleave(count)
        sound = torch.arange(n, device=device)[:, None].expand_as(rows).flatten().repeat_interleave(count)
        place = (ends - size - gaps).flatten().repeat_interleave(count) + within
        spoken_samples = samples[start[at].flatten().repeat_interleave(count) + within]
        if gain is not None:
            spoken_samples = (spoken_samples * gain.to(samples).flatten().repeat_interleave(count)).clamp(-1, 1)
        sounds[sound, place] = spoken_samples
        return sounds, lengths


@dataclass(frozen=True, eq=False, repr=False)
class Strings:
    """Spoken strings of digits.

    Attributes:
        x: (N, T) sounds in [−1, 1].
        lengths: (N,) samples before the silence at the end.
        digits: (N, 8) int64, what is said, with −1 behind the last digit.
        rows: (N, 8) int64, the recordings, likewise.
        speaker: (N,) int64.
    """

    x: Tensor
    lengths: Tensor
    digits: Tensor
    rows: Tensor
    speaker: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Strings({len(self)} sounds of {self.x.shape[1] / RATE:.1f} s)"


def spoken_digits() -> Recordings:
    """The 780 recordings of the Free Spoken Digit Dataset that ship here.

    Raises:
        ValueError: if the shipped file was changed.
    """
    arrays = read_source(SPOKEN_DIGITS)
    start = torch.from_numpy(arrays["start"]).long()
    samples = torch.from_numpy(arrays["samples"]).double() / 2**15
    size = start.diff()
    owner = torch.arange(len(size)).repeat_interleave(size)
    power = torch.zeros(len(size), dtype=torch.float64).index_add_(0, owner, samples.square()) / size
    peak = torch.zeros_like(power).scatter_reduce_(0, owner, samples.abs(), "amax")
    scale = torch.minimum(_LOUDNESS / power.sqrt(), _PEAK / peak)
    numbers = {key: torch.from_numpy(arrays[key]).long() for key in ("digit", "speaker", "take")}
    is_test = torch.from_numpy(arrays["split"]) == 3
    names = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")  # the order of spoken_digits.json
    return Recordings((samples * scale[owner]).float(), start, **numbers, is_test=is_test, speakers=names)


def digit_strings(n: int, *, kind: Kind | None = None, seed: int = 0) -> Tensor:
    """Strings of 4 to 8 digits of the grammar, (n, 8) int64 with −1 behind the last digit.

        date     DDMMYYYY, a day of 1950 … 2049 (8 digits; no day is above 28)
        price    E…ECC, 2 to 4 digits of euros, the first not 0, and 00, 50, 95 or 99 cents (4 to 6 digits)
        number   4 to 8 digits of which the last is a check digit: Σ_j d_j is divisible by 10

    Args:
        n: how many, at least 0.
        kind: of all; None draws each with equal chance.
        seed: of the draws; string i depends on the seed and i alone.

    Raises:
        ValueError, TypeError: for n below 0, or another kind.
    """
    checks.at_least("n", n, 0, integer=True)
    noise = Noise(seed, torch.arange(n))
    kinds = get_args(Kind)
    if kind is not None:
        checks.one_of("kind", kind, kinds)
    drawn = noise.integers(0, (), len(kinds)) if kind is None else torch.full((n,), kinds.index(kind))
    made = torch.stack([_dates(noise), _prices(noise), _numbers(noise)])
    return made[drawn, torch.arange(n)]


def spoken_strings(
    recordings: Recordings,
    n: int,
    *,
    kind: Kind | None = None,
    part: Part = "test",
    speakers: Sequence[str] | None = None,
    seed: int = 0,
    length: int | None = None,
) -> Strings:
    """Strings of :func:`digit_strings`, each said by one speaker.

    Args:
        recordings: of :func:`spoken_digits`.
        n: how many, at least 1.
        kind: of all; None draws each with equal chance.
        part: whose recordings: ``"test"`` for takes 0 to 4, ``"train"`` for the rest.
        speakers: who may speak, drawn evenly; None takes all but :data:`STRANGER`.
        seed: of the draws.
        length: samples T of each sound; None takes the longest.

    Raises:
        ValueError, TypeError: for another kind or part, an unknown speaker, or n below 1.
    """
    checks.at_least("n", n, 1, integer=True)
    checks.one_of("part", part, get_args(Part))
    numbers = _numbers_of(recordings, speakers)
    digits = digit_strings(n, kind=kind, seed=seed)
    noise = Noise(seed, torch.arange(n))
    speaker = numbers[noise.integers(20, (), len(numbers))]
    takes = table_of_takes(recordings, part)
    drawn = noise.integers(21, digits.shape[1:], takes.shape[2])
    rows = takes[speaker[:, None], digits.clamp_min(0), drawn].masked_fill(digits < 0, -1)
    x, lengths = recordings.joined(rows, seed=seed, length=length)
    return Strings(x, lengths, digits, rows, speaker)


def said_anew(
    recordings: Recordings, *, speakers: Sequence[str] | None = None, noise: float = 0.02, hidden: float = 0.1
) -> Callable[..., Tensor]:
    """An augmentation that says strings of digits anew each time, with training recordings.

    A speaker says the string with takes drawn for it, each digit between half and 5/4 as loud as recorded; a share of
    the digits is left out, silence in their place, so that a recognizer that can is led to tell them from the others;
    white noise of a standard deviation that is uniform on [0, noise] lies over all.

    Args:
        recordings: of :func:`spoken_digits`.
        speakers: who may speak; None takes all but :data:`STRANGER`.
        noise: the largest standard deviation of the noise, at least 0.
        hidden: share of digits left out, in [0, 1).

    Returns:
        ``augment(digits, *, ids, seed)`` for strings (N, 8) of :func:`digit_strings`, as
        :func:`robustlab.training.fit.fit` calls it: sounds (N, T).

    Raises:
        ValueError, TypeError: for a wrong argument.
    """
    checks.not_negative("noise", noise)
    checks.not_negative("hidden", hidden)
    checks.below("hidden", hidden, 1)
    numbers, takes = _numbers_of(recordings, speakers), table_of_takes(recordings, "train")

    def augment(digits: Tensor, *, ids: Tensor, seed: int) -> Tensor:
        draws, shape, device = Noise(seed, ids.to(digits.device)), digits.shape[1:], digits.device
        speaker = numbers.to(device)[draws.integers(20, (), len(numbers))]
        drawn = draws.integers(21, shape, takes.shape[2])
        rows = takes.to(device)[speaker[:, None], digits.clamp_min(0), drawn].masked_fill(digits < 0, -1)
        gain = draws.uniform(22, shape, low=0.5, high=1.25) * (draws.uniform(23, shape) >= hidden)
        sounds, _ = recordings.joined(rows, gain=gain, seed=seed, ids=ids)
        loudness = draws.uniform(24, (1,), low=0.0, high=max(noise, 1e-9))
        return (sounds + loudness * draws.quick_normal(25, sounds.shape[1:])).clamp(-1, 1)

    return augment


def table_of_takes(recordings: Recordings, part: Part) -> Tensor:
    """The recordings of each speaker and digit, (speakers, 10, takes) int64."""
    chosen = (recordings.is_test == (part == "test")).nonzero().flatten()
    order = (recordings.speaker * 10 + recordings.digit)[chosen].argsort(stable=True)
    return chosen[order].reshape(len(recordings.speakers), 10, -1)


def _numbers_of(recordings: Recordings, speakers: Sequence[str] | None) -> Tensor:
    """The places of speakers among those of the recordings."""
    named = tuple(name for name in recordings.speakers if name != STRANGER) if speakers is None else tuple(speakers)
    if not named:
        raise ValueError("speakers: want at least one, got none")
    for name in named:
        checks.one_of("speakers", name, recordings.speakers)
    return torch.tensor([recordings.speakers.index(name) for name in named])


def _dates(noise: Noise) -> Tensor:
    day, month, year = 1 + noise.integers(1, (), 28), 1 + noise.integers(2, (), 12), 1950 + noise.integers(3, (), 100)
    return _places(day * 10**6 + month * 10**4 + year, 8)


def _prices(noise: Noise) -> Tensor:
    euros = 2 + noise.integers(4, (), 3)  # digits
    least = 10 ** (euros - 1)
    amount = least + noise.integers(5, (), 9 * 10**6) % (9 * least)
    cents = torch.tensor([0, 50, 95, 99])[noise.integers(6, (), 4)]
    return _places(amount * 100 + cents, 8).gather(1, _to_the_left(euros + 2)).masked_fill(_behind(euros + 2), -1)


def _numbers(noise: Noise) -> Tensor:
    count = 4 + noise.integers(7, (), 5)
    digits = noise.integers(8, (LONGEST,), 10).masked_fill(_behind(count - 1), 0)
    check = (-digits.sum(dim=1)) % 10
    return digits.scatter(1, count[:, None] - 1, check[:, None]).masked_fill(_behind(count), -1)


def _places(number: Tensor, digits: int) -> Tensor:
    """The decimal digits (N, digits) of numbers (N,)."""
    return number[:, None] // 10 ** torch.arange(digits - 1, -1, -1) % 10


def _behind(count: Tensor) -> Tensor:
    """(N, 8) bool: the places behind the first ``count`` (N,)."""
    return torch.arange(LONGEST) >= count[:, None]


def _to_the_left(count: Tensor) -> Tensor:
    """(N, 8): the places from which a number of ``count`` digits, flush right in 8, is read flush left."""
    return (torch.arange(LONGEST) + LONGEST - count[:, None]).clamp_max(LONGEST - 1)
