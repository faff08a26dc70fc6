"""Temporal dependency: does the beginning of a sound say the beginning of what the whole says?

Yang, Li, Chen and Song, "Characterizing audio adversarial examples using temporal dependency" (2019), section 3. With
S the transcript of a sound x of n samples, and S_k that of its first k·n samples,

    score(x) = d( S_k, S_{1 … |S_k|} ),   d the word error rate, or one minus the share of the longest common prefix

Words of natural speech depend on each other, and a recognizer of words on all that it hears; an attack makes the two
agree on a sentence for the whole sound, and need not make them agree for a part of it.

Different here: what is cut off is silence, so that all sounds of a batch keep one length; the paper's experiments
choose the threshold after the fact (they state areas under the curve), ours is an order statistic of clean sounds'
scores. Where nothing is heard in the beginning the rate is 0/0 by the paper, and so in the authors' code; ours is 1,
lest an attacker pass by making the beginning silent. Their code cuts both transcripts to the shorter one; ours cuts the
whole's alone, as the paper says. In strings of digits each digit is a word and a character, so that the paper's word
and character error rates are one.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.results import Detection
from robustlab.data.pairs import Pairs, read_inputs
from robustlab.defenses.detection.by_score import passes, threshold_at
from robustlab.geometry.keyed import Noise
from robustlab.models.modes import evaluating
from robustlab.models.speech import first_part, heard

Distance = Literal["wer", "lcp"]


def temporal_dependency(
    model: nn.Module,
    x: Tensor | Pairs,
    clean: Tensor | Pairs,
    *,
    k: float | tuple[float, float] = 0.5,
    distance: Distance = "wer",
    lengths: Tensor | None = None,
    clean_lengths: Tensor | None = None,
    rejection_rate: float = 0.05,
    rate: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    rows: int = 100,
) -> Detection[dict[str, Tensor]]:
    """Flag the sounds whose beginning is not heard alone as it is heard within the whole.

    Args:
        model: a recognizer, sounds (N, T) to scores (N, F, K) whose last label is the blank. It is only looked at.
        x: sounds to be judged, (N, T), or labeled data, whose labels are not looked at.
        clean: clean sounds (M, T'), whose own scores set the threshold, at least 1, or labeled data.
        k: the share of each sound that is its beginning, in (0, 1); a pair (low, high) draws it for each sound, so that
            an attacker does not know it.
        distance: ``"wer"``, the edit distance of both beginnings over the length of S_k, or ``"lcp"``.
        lengths, clean_lengths: (N,) and (M,), how many samples of a sound are not silence that was added behind it,
            from 1 to T; None is all.
        rejection_rate: share of clean sounds that may be flagged, in (0, 1). Fewer than 1/rejection_rate − 1 of them
            set no threshold, and nothing is flagged.
        rate: samples per second of x and ``clean``; None trusts that it is the model's.
        seed, ids: of the drawn k, keyed by the seed and each sound's id (default 0 … N − 1).
        rows: sounds in one forward.

    Returns:
        A Detection whose scores are d. ``details`` has ``"whole"`` and ``"beginning"``, the transcripts of x with −1
        behind the last label, and ``"clean_scores"`` (M,). The ``false_alarm_rate`` is the rejection rate: a clean
        sound is flagged no more often, on average over the draw of the clean sounds.

    Raises:
        ValueError, TypeError: for a wrong argument: sounds shorter than the model's window, another rate than the
            model's, or sounds in which nothing is heard at all, whose rows are named.

    Source:
        Yang et al. (2019), section 3. Departures: see the module.
    """
    x, clean = read_inputs(x, "x", "test"), read_inputs(clean, "clean")
    checks.one_of("distance", distance, get_args(Distance))
    checks.at_least("rows", rows, 1, integer=True)
    checks.positive("rejection_rate", rejection_rate)
    checks.below("rejection_rate", rejection_rate, 1)
    low, high = _shares(k)
    _check_rate(model, rate)
    x_lengths, clean_lengths = _sound(model, x, lengths, "x"), _sound(model, clean, clean_lengths, "clean")
    if not len(clean):
        raise ValueError("clean: want at least 1 sound, got none")
    ids = torch.arange(len(x)) if ids is None else ids
    found = {}
    with torch.inference_mode(False), torch.no_grad(), evaluating(model, device=x.device):
        for role, (name, sounds, size, keys) in enumerate(
            (("x", x, x_lengths, ids), ("clean", clean, clean_lengths, torch.arange(len(clean))))
        ):
            share = Noise(seed, keys.to(x.device)).uniform(role, (), torch.float64, low, high)
            whole = heard(model, sounds, rows=rows)
            _check_heard(name, whole)
            beginning = heard(model, beginnings(sounds, share, size), rows=rows)
            found[name] = whole, beginning, disagreement(beginning, whole, distance).to(x.dtype)
    whole, beginning, scores = found["x"]
    reference = found["clean"][2]
    threshold = threshold_at(rejection_rate, reference)
    details = {"whole": whole, "beginning": beginning, "clean_scores": reference}
    return Detection(
        scores, passes(scores, threshold), threshold, details, false_alarm_rate=rejection_rate, level="sample"
    )


def beginnings(x: Tensor, share: float | Tensor, lengths: Tensor | None = None) -> Tensor:
    """The first round(k·n) samples of each sound (N, T) of n samples, and silence behind them.

    Args:
        x: sounds (N, T).
        share: k, a number or (N,).
        lengths: n, (N,); None is T.
    """
    return x * first_part(x, share, lengths)


def disagreement(beginning: Tensor, whole: Tensor, distance: Distance = "wer") -> Tensor:
    """How far S_k is from the first |S_k| labels of S, (N,) float64.

    Args:
        beginning, whole: transcripts (N, L) and (N, L') int64 with −1 behind the last label.
        distance: ``"wer"``, the edit distance over |S_k|; ``"lcp"``, one minus the length of the longest common prefix
            over |S_k|. Both are 1 where S_k is empty and S is not, and 0 where both are.
    """
    size = (beginning >= 0).sum(dim=1)
    width = max(int(size.max()), 1) if len(size) else 1
    whole = F.pad(whole, (0, max(0, width - whole.shape[1])), value=-1)[:, :width]
    beginning = F.pad(beginning, (0, max(0, width - beginning.shape[1])), value=-1)[:, :width]
    nothing = (whole[:, 0] >= 0).double()
    reference = whole.masked_fill(torch.arange(width, device=whole.device) >= size[:, None], -1)
    if distance == "lcp":
        same = (beginning == reference) & (beginning >= 0)
        value = size - same.long().cumprod(dim=1).sum(dim=1)
    else:
        value = edit_distance(beginning, reference)
    return torch.where(size > 0, value.double() / size.clamp_min(1), nothing)


def edit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Levenshtein's distance of sequences (N, L) and (N, L') with −1 behind the last label; (N,) int64.

    Source: Wagner and Fischer, "The string-to-string correction problem" (1974), one row of their table at a time.
    """
    size_a, size_b = ((part >= 0).sum(dim=1) for part in (a, b))
    columns = torch.arange(b.shape[1] + 1, device=a.device)
    row = columns.expand(len(a), -1)
    at_end = [row]
    for i in range(a.shape[1]):
        swapped = row[:, :-1] + (a[:, i, None] != b)
        best = torch.cat([row[:, :1] + 1, torch.minimum(swapped, row[:, 1:] + 1)], dim=1)
        row = (best - columns).cummin(dim=1).values + columns  # insertions: 1 for each step to the right
        at_end.append(row)
    table = torch.stack(at_end, dim=1)
    return table[torch.arange(len(a), device=a.device), size_a, size_b]


def _shares(k: float | tuple[float, float]) -> tuple[float, float]:
    low, high = k if isinstance(k, tuple) else (k, k)
    checks.positive("k", low)
    checks.below("k", high, 1)
    if low > high:
        raise ValueError(f"k: want (low, high) with low ≤ high, got {k}")
    return low, high


def _check_rate(model: object, rate: int | None) -> None:
    own = getattr(model, "rate", None)
    if rate is not None and own is not None and rate != own:
        raise ValueError(f"rate: want the model's {own} samples per second, got {rate}; resample the sounds")


def _sound(model: nn.Module, x: Tensor, lengths: Tensor | None, name: str) -> Tensor:
    """Raises unless x are sounds (N, T); how many samples of each are its own, (N,)."""
    checks.at_home(model, x, name)
    checks.images(x, (-1.0, 1.0), name, takes=None)
    window = getattr(getattr(model, "spectrogram", None), "window", 1)
    if x.dim() != 2 or x.shape[1] < window:
        raise ValueError(f"{name}: want sounds (N, T) of at least one window, T ≥ {window}, got {tuple(x.shape)}")
    if lengths is None:
        return torch.full((len(x),), x.shape[1], device=x.device)
    argument = "lengths" if name == "x" else "clean_lengths"
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.shape != (len(x),):
        raise TypeError(f"{argument}: want integers of shape ({len(x)},), got {lengths!r}"[:200])
    if len(x) and not bool(((lengths >= window) & (lengths <= x.shape[1])).all()):
        ends = int(lengths.min()), int(lengths.max())
        raise ValueError(f"{argument}: want {window} … {x.shape[1]}, a window at least, got {ends[0]} … {ends[1]}")
    return lengths.to(x.device)


def _check_heard(name: str, whole: Tensor) -> None:
    silent = (whole < 0).all(dim=1).nonzero().flatten().tolist()
    if silent:
        more = f" and {len(silent) - 10} more" if len(silent) > 10 else ""
        raise ValueError(
            f"{name}: want sounds in which the model hears something, got an empty transcript in rows "
            f"{silent[:10]}{more}; leave them out"
        )
