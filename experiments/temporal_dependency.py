"""Chapter 17: temporal dependency of spoken strings, before and after attacks that know of it, and on natural shifts.

A row is one recognizer, and the strings, targets and thresholds of one draw; the third row of each recognizer attacks
at half the ε. The threshold is set on 200 clean strings for 5 % of false alarms. ``k`` is one half unless the name says
otherwise; "drawn" draws it between 0.2 and 0.8 for each string. "Mixed" sets the threshold on 50 strings each of what
may naturally happen, the clean ones among them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments import nets
from experiments.record import Experiment
from robustlab.attacks import bypass_temporal, transcript
from robustlab.attacks.whitebox.transcript import says
from robustlab.data import digit_strings, spoken_digits, spoken_strings
from robustlab.data.spoken import STRANGER
from robustlab.defenses import temporal_dependency
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate

NETS = ("spoken_gru", "spoken_gru-1", "spoken_gru-2", "spoken_cnn")
ATTACKED, STEPS = 24, 120
HEARD_ALONE = {"k=0.3": 0.3, "k=0.5": 0.5, "k=0.7": 0.7, "drawn": (0.2, 0.8)}


def half_said(digits: Tensor, target: Tensor) -> Tensor:
    """What is said, but for the first half of its digits: those of the target, or the next where they agree."""
    half = (digits >= 0).sum(dim=1, keepdim=True) // 2
    other = torch.where(target.clamp_min(0) == digits, (digits + 1) % 10, target.clamp_min(0))
    return torch.where(torch.arange(digits.shape[1]) < half, other, digits)


def mixed(seed: int) -> tuple[Tensor, Tensor]:
    """Fifty strings each, with their lengths: clean, by a stranger, in noise, and low."""
    kinds = list(shifted(seed).values())
    longest = max(x.shape[1] for x, _ in kinds)
    padded = [F.pad(x[:50], (0, longest - x.shape[1])) for x, _ in kinds]
    return torch.cat(padded), torch.cat([lengths[:50] for _, lengths in kinds])


def shifted(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Other clean strings, and what may naturally happen to them: a stranger, noise, a low voice."""
    recordings = spoken_digits()
    clean = spoken_strings(recordings, 200, seed=seed)
    stranger = spoken_strings(recordings, 200, seed=seed, speakers=[STRANGER])
    noise = Noise(seed, torch.arange(200)).quick_normal(0, clean.x.shape[1:])
    return {
        "clean": (clean.x, clean.lengths),
        "stranger": (stranger.x, stranger.lengths),
        "noise": ((clean.x + 0.02 * noise).clamp(-1, 1), clean.lengths),
        "low voice": (0.2 * clean.x, clean.lengths),
    }


def measure(net: str, draw: int, eps: float) -> dict[str, Rate | float]:
    """Success, areas under the curve and shares caught of each attack, and false alarms."""
    model, recordings = nets.load(net)[0], spoken_digits()
    strings = spoken_strings(recordings, ATTACKED, seed=100 + draw)
    clean = spoken_strings(recordings, 200, seed=200 + draw)
    targets = digit_strings(ATTACKED, seed=300 + draw)
    ends, (wild, wild_lengths) = half_said(strings.digits, targets), mixed(500 + draw)
    with torch.no_grad():
        heard = torch.cat([(model(part).argmax(dim=2) != 10).any(dim=1) for part in wild.split(100)])
    wild, wild_lengths = wild[heard], wild_lengths[heard]
    told = {"eps": eps, "steps": STEPS, "seed": draw}
    knows = {**told, "lengths": strings.lengths}
    attacks = {
        "plain": (targets, lambda: transcript(model, strings.x, target=targets, **told)),
        "segment": (ends, lambda: bypass_temporal(model, strings.x, target=ends, way="segment", **knows)),
        "concatenation": (targets, lambda: bypass_temporal(
            model, strings.x, target=targets, way="concatenation", **knows)),
        "combination": (targets, lambda: bypass_temporal(model, strings.x, target=targets, **knows)),
        "combination, three k": (targets, lambda: bypass_temporal(
            model, strings.x, target=targets, k=(0.3, 0.5, 0.7), **knows)),
    }  # fmt: skip
    found: dict[str, Rate | float] = {}
    for name, (wish, attack) in attacks.items():
        x_adv = attack().x_adv
        with torch.no_grad():
            fooled = says(model(x_adv), wish)
        found[f"{name}: heard"] = Rate.of(fooled)
        sounds, lengths = torch.cat([strings.x, x_adv[fooled]]), torch.cat([strings.lengths, strings.lengths[fooled]])
        for label, k in HEARD_ALONE.items():
            verdict = temporal_dependency(
                model, sounds, clean.x, k=k, lengths=lengths, clean_lengths=clean.lengths, seed=draw
            )
            if bool(fooled.any()):
                found[f"{name}: area, {label}"] = verdict.score(torch.arange(len(sounds)) >= ATTACKED)["auroc"]
            if label == "k=0.5":
                passed = torch.zeros(ATTACKED, dtype=torch.bool)
                passed[fooled] = ~verdict.flagged[ATTACKED:]
                found[f"{name}: passed"] = Rate.of(passed)
                if name == "plain" and bool(fooled.any()):
                    verdict = temporal_dependency(model, sounds, wild, lengths=lengths, clean_lengths=wild_lengths)
                    passed[fooled] = ~verdict.flagged[ATTACKED:]
                    found["plain: passed, mixed"] = Rate.of(passed)
    for name, (sounds, lengths) in shifted(400 + draw).items():
        with torch.no_grad():
            heard = torch.cat([(model(part).argmax(dim=2) != 10).any(dim=1) for part in sounds.split(100)])
        verdict = temporal_dependency(
            model, sounds[heard], clean.x, lengths=lengths[heard], clean_lengths=clean.lengths
        )
        found[f"alarms, {name}"] = Rate.of(verdict.flagged)
    return found


EXPERIMENT = Experiment(
    name="temporal_dependency",
    question="Does the beginning of a sound betray an attack, and does it still if the attack knows of it?",
    cases=[{"net": net, "draw": draw, "eps": eps} for net in NETS for draw, eps in ((0, 0.02), (1, 0.02), (0, 0.01))],
    measure=measure,
    n={"attacked strings": ATTACKED, "strings for each threshold": 200, "other strings of each kind": 200},
    seeds=[0, 1],
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
