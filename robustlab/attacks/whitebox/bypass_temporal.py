"""Attacks that know of temporal dependency.

Yang, Li, Chen and Song, "Characterizing audio adversarial examples using temporal dependency" (2019), section 4.4: an
attacker who knows that the first k of a sound will be heard alone, and its transcript S_k compared with the beginning
of the whole's, can split the sound there, t = t_k t_rest, and

    segment          change the first k alone:            minimize CTC(x + δ, t) + CTC((x + δ)_k, t_k)
    concatenation    make each part say its share alone:  CTC((x + δ)_k, t_k) and CTC((x + δ)_rest, t_rest), then join
    combination      change everything for both at once:  CTC(x + δ, t) + CTC((x + δ)_k, t_k)

all of them inside the ℓ∞ ball. Different here: t_k has round(k·|t|) labels, and several k can be attacked at once, for
a detector that draws its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.whitebox.transcript import Heard, checked_labels, listener, transcript
from robustlab.geometry.norms import measure
from robustlab.models.speech import first_part

Way = Literal["segment", "concatenation", "combination"]


def bypass_temporal(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    target: Tensor,
    way: Way = "combination",
    k: float | Sequence[float] = 0.5,
    lengths: Tensor | None = None,
    eps: float | Tensor,
    steps: int = 200,
    step_size: float | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Make a recognizer hear a target in the whole, and the target's beginning in the beginning.

    Args:
        victim: a recognizer, as for :func:`robustlab.attacks.transcript`.
        x: sounds (N, T), in the box.
        y: not looked at, since there is a target.
        target: (N, S) int64 labels with −1 behind the last. The segment attack leaves the rest of the sound as it is:
            its target should end with what is said there.
        way: ``"segment"``, ``"concatenation"`` or ``"combination"``.
        k: the share of the sound that the detector hears alone, in (0, 1); for the combination also several.
        lengths: (N,), how many samples of a sound are its own; None is T.
        eps, steps, step_size, seed, ids, progress: as for :func:`robustlab.attacks.transcript`; the concatenation takes
            so many steps for each part.

    Returns:
        AttackResult; success means that the whole is heard as the target, and the beginning as the target's. The
        concatenation shares a victim's budget out evenly over both parts, and keeps two queries for the joined sound.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Yang et al. (2019), section 4.4. Departures: see the module.
    """
    victim = listener(victim)
    checks.images(x, victim.bounds)
    checks.one_of("way", way, get_args(Way))
    target = checked_labels("target", target, x)
    shares = [k] if isinstance(k, float | int) else list(k)
    if not shares or (way != "combination" and len(shares) > 1):
        raise ValueError(f"k: want one share, or several for the combination, got {k}")
    for share in shares:
        checks.positive("k", share)
        checks.below("k", share, 1)
    beginnings = [Heard(first_part(x, share, lengths), _labels_of(target, share)) for share in shares]
    told: dict[str, Any] = {"steps": steps, "step_size": step_size, "seed": seed, "ids": ids, "progress": progress}
    if way != "concatenation":
        movable = beginnings[0].mask if way == "segment" else None
        return transcript(victim, x, target=target, also=beginnings, movable=movable, eps=eps, **told)
    first, rest = beginnings[0], _rest(beginnings[0], target)
    payer = _limited(victim, None if victim.budget is None else (victim.budget - 2) // 2)
    halves = [transcript(payer, x * p.mask, target=p.target, movable=p.mask, eps=eps, **told) for p in (first, rest)]
    joined = torch.where(first.mask, halves[0].x_adv, halves[1].x_adv)
    judged = transcript(_limited(victim, 4), joined, target=target, also=[first], eps=0.0)  # a look at both, no step
    queries = judged.queries + halves[0].queries + halves[1].queries
    return replace(
        judged,
        distances=measure(joined - x),
        queries=queries,
        gradients=judged.gradients + halves[0].gradients + halves[1].gradients,
        first_success=torch.where(judged.success, queries, -1),
    )


def _limited(victim: Victim, budget: int | None) -> Victim:
    """The victim with another budget."""
    if budget is not None and budget < 2:
        raise ValueError(f"budget: want at least 6 for the concatenation, 2 of them for each part, got {victim.budget}")
    twin = copy(victim)
    twin.budget = budget
    return twin


def _labels_of(target: Tensor, share: float) -> Tensor:
    """The first round(share·|t|) labels of each target."""
    kept = (share * (target >= 0).sum(dim=1).double()).round()
    return target.masked_fill(torch.arange(target.shape[1], device=target.device) >= kept[:, None], -1)


def _rest(first: Heard, target: Tensor) -> Heard:
    """The other part of each sound, and the labels behind those of the first."""
    taken = (first.target >= 0).sum(dim=1, keepdim=True)
    place = torch.arange(target.shape[1], device=target.device) + taken
    behind = torch.cat([target, torch.full_like(target, -1)], dim=1)
    return Heard(~first.mask, behind.gather(1, place))
