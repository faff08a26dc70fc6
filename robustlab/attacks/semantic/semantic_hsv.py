"""Shifts of hue and saturation.

Hosseini and Poovendran, "Semantic adversarial examples" (2018), section 3. An object keeps its shape, and so its name,
when its colors change. Images are written as hue H, saturation S and value V; the attacker adds one number to the hue
and one to the saturation of all pixels and leaves the value alone:

    H ← (H + δ_H) mod 1        S ← clip(S + δ_S, 0, 1)

with random trials whose range of saturation grows, so that small changes of it are tried first: in trial i of n,

    δ_H ~ uniform [0, 1)       δ_S ~ uniform [−i/n, i/n],   i = 0, 1, …, n − 1

Only labels are asked for. How far the image moves in any ℓp norm plays no part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.data.color import hsv_to_rgb, rgb_to_hsv
from robustlab.geometry.projections import clip
from robustlab.progress import bar


def semantic_hsv(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    trials: int = 1000,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Shift the hue and the saturation of a color image at random until the label changes.

        H ← (H + δ_H) mod 1,   S ← clip(S + δ_S, 0, 1),   V stays

    Args:
        victim: a Victim, or a model with logits (N, K). Hard-label access suffices.
        x: color images (N, 3, H, W) with channels red, green, blue, in the box.
        y: (N,) labels; None takes the model's prediction.
        trials: n ≥ 1, the number of shifts tried; the first one moves the hue alone.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.
        trace: keep the shifts of each returned image, (1, N) tensors ``result.trace["hue"]`` and ``["saturation"]``;
            0 where the attack failed.

    Returns:
        AttackResult; a sample that was not fooled is returned as it was, since labels do not tell which trial came
        closest. Cost: a query for each trial, 1 for the clean check, and 1 more for the final check of a success.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Hosseini and Poovendran (2018), section 3.
    """
    checks.at_least("trials", trials, 1, integer=True)
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"x: want color images (N, 3, H, W), got shape {tuple(x.shape)}")
    with victim.session(x, y, ids=ids, access="hard") as session:
        low, width, start = session.low, session.high - session.low, session.start
        best = Best(session, points=(start.x, start.x.new_zeros(len(start), 2)))
        live = session.live(noise=session.noise(seed))
        live.hsv = rgb_to_hsv(((live.x - low) / width).clamp(0, 1))
        for trial in bar(range(trials), show=progress, label="semantic_hsv"):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            shift = live.noise.uniform(trial, (2,), session.x.dtype)
            shift[:, 1] = (2 * shift[:, 1] - 1) * (trial / trials)
            points = clip(low + width * _shifted(live.hsv, *shift.unbind(1)), low, session.high)
            _, met = session.ask_labels(points, live)
            best.keep(live, (points, shift), torch.zeros_like(shift[:, 0]), met)
            live.leave(met)
        shifts = session.x.new_zeros(2, 1, len(session.x)).index_copy_(2, session.active, best.points[1].T[:, None])
        kept = {"hue": shifts[0], "saturation": shifts[1]} if trace else None
        return session.result(best.points[0], asked=True, trace=kept)


def _shifted(hsv: Tensor, turn: Tensor, gain: Tensor) -> Tensor:
    """Images in RGB after the hue of each has been turned and its saturation moved."""
    hue, saturation, value = hsv.unbind(1)
    turn, gain = turn[:, None, None], gain[:, None, None]
    return hsv_to_rgb(torch.stack([(hue + turn) % 1.0, (saturation + gain).clamp(0, 1), value], dim=1))
