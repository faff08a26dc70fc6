"""Chapter 17: temporal dependency of spoken strings, before and after attacks that know of it, and on natural shifts.

A row is one recognizer, and the spoken strings, targets and thresholds of one draw; the first draw of two recognizers
is attacked at half the ε as well. The threshold is set beforehand, on 100 clean strings for 5 % of false alarms. ``k``
is one half unless the name says otherwise; "drawn" draws it between 0.2 and 0.8 for each sound. "Mixed" sets the
threshold on 25 sounds each of what may naturally happen, the clean ones among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab.attacker.results import Detection
from robustlab.attacks import bypass_temporal, transcript
from robustlab.attacks.whitebox.transcript import says
from robustlab.data import Strings, digit_strings, spoken_digits, spoken_strings
from robustlab.data.spoken import STRANGER
from robustlab.defenses import temporal_dependency
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate
from robustlab.models import transcripts

NETS = ("spoken_gru", "spoken_gru-1", "spoken_gru-2", "spoken_cnn")
ATTACKED, CLEAN, STEPS = 8, 100, 60
HEARD_ALONE = {"k=0.3": 0.3, "k=0.5": 0.5, "k=0.7": 0.7, "drawn": (0.2, 0.8)}


def half_said(digits: Tensor, target: Tensor) -> Tensor:
    """What is said, but for the first half of its digits: those of the target, or the next where they agree."""
    half = (digits >= 0).sum(dim=1, keepdim=True) // 2
    other = torch.where(target.clamp_min(0) == digits, (digits + 1) % 10, target.clamp_min(0))
    return torch.where(torch.arange(digits.shape[1]) < half, other, digits)


def strings_of(n: int, seed: int, **who: Any) -> Strings:
    """Spoken dates, prices and numbers."""
    return spoken_strings(spoken_digits(), n, seed=seed, **who)


def shifted(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Other clean strings, and what may naturally happen to them, with lengths: a stranger, noise, a low voice."""
    clean, stranger = strings_of(CLEAN, seed), strings_of(CLEAN, seed, speakers=[STRANGER])
    noise = Noise(seed, torch.arange(CLEAN)).quick_normal(0, clean.x.shape[1:])
    return {
        "clean": (clean.x, clean.lengths),
        "stranger": (stranger.x, stranger.lengths),
        "noise": ((clean.x + 0.02 * noise).clamp(-1, 1), clean.lengths),
        "low voice": (0.2 * clean.x, clean.lengths),
    }


def together(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sounds of several lengths in one batch, with silence behind the shorter ones."""
    longest = max(x.shape[1] for x, _ in parts)
    return torch.cat([F.pad(x, (0, longest - x.shape[1])) for x, _ in parts]), torch.cat([n for _, n in parts])


def audible(model: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The sounds in which the model hears something; the detector refuses others."""
    with torch.no_grad():
        heard = (transcripts(model(x)) >= 0).any(dim=1)
    return x[heard], lengths[heard]


def attacked(
    model: nn.Module, strings: Strings, targets: Tensor, eps: float, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The sounds (N, T) of each attack, and whether they are heard as it wants, (N,)."""
    x, ends = strings.x, half_said(strings.digits, targets)
    told: dict[str, Any] = {"eps": eps, "steps": STEPS, "seed": seed}
    knows = {**told, "lengths": strings.lengths}
    made = {
        "plain": (transcript(model, x, target=targets, **told), targets),
        "segment": (bypass_temporal(model, x, target=ends, way="segment", **knows), ends),
        "concatenation": (bypass_temporal(model, x, target=targets, way="concatenation", **knows), targets),
        "combination": (bypass_temporal(model, x, target=targets, **knows), targets),
        "combination, three k": (bypass_temporal(model, x, target=targets, k=(0.3, 0.5, 0.7), **knows), targets),
    }
    with torch.no_grad():
        return {name: (result.x_adv, says(model(result.x_adv), wish)) for name, (result, wish) in made.items()}


def measure(net: str, draw: int, eps: float) -> dict[str, Rate | float]:
    """Success, areas under the curve and shares that pass of each attack, and false alarms."""
    model, strings = nets.load(net)[0], strings_of(ATTACKED, 100 + draw)
    clean = strings_of(CLEAN, 200 + draw)
    made = attacked(model, strings, digit_strings(ATTACKED, seed=300 + draw), eps, draw)
    found: dict[str, Rate | float] = {f"{name}: heard": Rate.of(fooled) for name, (_, fooled) in made.items()}
    sounds = torch.cat([strings.x, *(x_adv for x_adv, _ in made.values())])
    told: dict[str, Any] = {"lengths": strings.lengths.repeat(1 + len(made)), "seed": draw}
    for label, k in HEARD_ALONE.items():
        verdict = temporal_dependency(model, sounds, clean.x, k=k, clean_lengths=clean.lengths, **told)
        honest, *scores = verdict.scores.split(ATTACKED)
        for (name, (_, fooled)), score in zip(made.items(), scores, strict=True):
            if label in ("k=0.5", "drawn"):
                found[f"{name}: passed, {label}"] = Rate.of(fooled & (score <= verdict.threshold))
            if bool(fooled.any()):
                both = torch.cat([honest, score[fooled]])
                area = Detection(both, both > verdict.threshold, verdict.threshold)
                found[f"{name}: area, {label}"] = area.score(torch.arange(len(both)) >= ATTACKED)["auroc"]
    wild, wild_lengths = audible(model, *together([(x[:25], n[:25]) for x, n in shifted(500 + draw).values()]))
    plain, fooled = made["plain"]
    verdict = temporal_dependency(model, plain, wild, lengths=strings.lengths, clean_lengths=wild_lengths)
    found["plain: passed, mixed"] = Rate.of(fooled & ~verdict.flagged)
    for name, other in shifted(400 + draw).items():
        x, lengths = audible(model, *other)
        verdict = temporal_dependency(model, x, clean.x, lengths=lengths, clean_lengths=clean.lengths)
        found[f"alarms, {name}"] = Rate.of(verdict.flagged)
    return found


EXPERIMENT = Experiment(
    name="temporal_dependency",
    question="Does the beginning of a sound betray an attack, and does it still if the attack knows of it?",
    cases=[
        {"net": net, "draw": draw, "eps": eps}
        for net, draw, eps in (
            *((net, draw, 0.02) for net in ("spoken_gru", "spoken_cnn") for draw in range(3)),
            ("spoken_gru-1", 1, 0.02),
            ("spoken_gru-2", 2, 0.02),
            ("spoken_gru", 0, 0.01),
        )
    ],
    measure=measure,
    n={"attacked strings": ATTACKED, "strings for each threshold": CLEAN, "other strings of each kind": CLEAN},
    seeds=[0, 1, 2],
    data=["spoken_digits"],
    nets=NETS,
    tolerance={
        f"{name}: area, {label}": 0.12
        for name in ("plain", "segment", "concatenation", "combination", "combination, three k")
        for label in HEARD_ALONE
    },
)

if __name__ == "__main__":
    EXPERIMENT.main()
