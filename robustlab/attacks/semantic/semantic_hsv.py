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
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Model, Victim
from robustlab.data.color import hsv_to_rgb, rgb_to_hsv
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
        low, width = session.low, session.high - session.low
        hsv = rgb_to_hsv(((session.x - low) / width).clamp(0, 1))
        best, shift, noise, rows = (
            session.x.clone(),
            session.x.new_zeros(2, 1, len(session.x)),
            session.noise(seed),
            session.active,
        )
        for trial in bar(range(trials), show=progress, label="semantic_hsv"):
            rows = rows[session.can_pay(rows)]
            if not rows.numel():
                break
            unit = noise.take(rows).uniform(trial, (2,), session.x.dtype)
            turn, gain = unit[:, 0], (2 * unit[:, 1] - 1) * (trial / trials)
            points = (low + width * _shifted(hsv[rows], turn, gain)).clamp(low, session.high)
            _, met = session.ask_labels(points, rows)
            won = rows[met]
            best[won], shift[0, 0, won], shift[1, 0, won] = points[met], turn[met], gain[met]
            rows = rows[~met]
        kept = {"hue": shift[0], "saturation": shift[1]} if trace else None
        return session.result(best, asked=True, trace=kept)


def _shifted(hsv: Tensor, turn: Tensor, gain: Tensor) -> Tensor:
    """Images in RGB after the hue of each has been turned and its saturation moved."""
    hue, saturation, value = hsv.unbind(1)
    turn, gain = turn[:, None, None], gain[:, None, None]
    return hsv_to_rgb(torch.stack([(hue + turn) % 1.0, (saturation + gain).clamp(0, 1), value], dim=1))
