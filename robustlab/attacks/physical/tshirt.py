"""Adversarial T-shirts, whose wearer a detector of persons does not find.

Xu, Zhang, Liu, Fan, Sun, Chen, Chen, Wang and Lin, "Adversarial T-shirt! Evading person detectors in a physical world"
(2020), section 3. What is printed on a shirt is seen through folds of the cloth, a printer's colors, and a camera. A
detector says boxes b_j with confidences p_j; what is minimized is the confidence of all that overlap the person's box B
by more than η, of which those below ν no longer count:

    f(x) = Σ_j max{p_j(x), ν}·1[IoU(b_j(x), B) > η]
    minimize_δ  1/M Σ_i E_{t, t_TPS, v} f(x_i') + λ·TV(δ)

with the pictures x_i' of :mod:`robustlab.attacks.physical.shirts`. One shirt against K detectors is a min-max problem,
in which an opponent weighs the detectors (:mod:`robustlab.attacks.universal.minmax_universal`):

    minimize_δ  maximize_{w ≥ 0, Σ w = 1}  Σ_k w_k·φ_k(δ) − γ/2·‖w − 1/K‖²

Different here: rendered persons, where the paper filmed some; f is taken less what ν adds to each box, and divided by
its mean over the frames without a print, so that the opponent compares like with like; Adam; the print may be held to
the colors of a printer by the non-printability score of Sharif et al. (2016); and a person who is not found without
the print is refused, since nothing hides who was not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.physical.arguments import HeldOut, family_of
from robustlab.attacks.physical.expectation import adam, staged, texture_like
from robustlab.attacks.physical.printing import total_variation
from robustlab.attacks.physical.scenes import Scenes, View
from robustlab.attacks.physical.watching import Confidence, Hidden, ShirtResult, Watched, held_out_persons

_SHEET = (20, 16)  # resolution of a texture that may have any


def tshirt(
    victim: Model | Sequence[Model],
    x: Tensor,
    y: Tensor | None = None,
    *,
    held_out: HeldOut,
    scenes: Scenes | Sequence[View],
    mask: Tensor | None = None,
    colors: Tensor | None = None,
    clean: Tensor | None = None,
    nu: float = 0.05,
    iou: float = 0.3,
    threshold: float = 0.5,
    smoothness: float = 0.001,
    printability: float = 0.0,
    weight_step: float = 0.05,
    gamma: float = 1.0,
    steps: int = 100,
    draws: int = 16,
    lr: float = 0.1,
    seed: int = 0,
    progress: bool = False,
    trace: bool = False,
) -> ShirtResult:
    """One print on a shirt, by which detectors do not find who wears it.

        minimize_δ  maximize_w  Σ_k w_k·E_{x, t} f_k(t(x, δ)) − γ/2·‖w − 1/K‖² + λ·TV(δ) + κ·NPS(δ)
        w ← P_Δ( w + β·(F(δ) − γ·(w − 1/K)) )      after each step of δ

    Args:
        victim: a detector or a list of K of them, for images in [0, 1]: modules that answer with (boxes (N, J, 4),
            scores (N, J)) or as torchvision's detectors do, or victims of such with ``answer="boxes"``.
        x: frames (N, C, H, W), each with a person; every detector must find it without the print.
        y: (N, 4), the persons' boxes in pixels; None takes for each detector the box of which it is surest.
        held_out: (frames, views) that judge the print, or (frames, views, boxes).
        scenes: :class:`robustlab.attacks.physical.shirts.Shirts` of these frames, or a list of views.
        mask: (1, h, w) bool, what of the sheet is printed, and its resolution; None is all of 20 by 16 pixels, or of
            the images where the scenes want that.
        colors: (P, C) palette of the printer; None prints all of [0, 1].
        clean: (C, h, w), the print before the attack, at which it begins; None is gray.
        nu: ν in [0, 1), the confidence below which a box no longer counts.
        iou: η in [0, 1), how much a box must overlap the person's to count, in the loss and in the judgement.
        threshold: of confidence in (0, 1), above which a box is a detection.
        smoothness: λ ≥ 0, the weight of total variation.
        printability: κ ≥ 0, the weight of NPS; plays no part without ``colors``.
        weight_step: β > 0, the opponent's.
        gamma: γ ≥ 0, how much the opponent is held to the mean; 0 is the worst detector alone.
        steps: at least 1.
        draws: pictures in each step, each a fresh pair of frame and scene; all detectors see the same.
        lr: step size of Adam, in units of color.
        seed: of frames and scenes.
        progress: show a bar in a terminal.
        trace: keep ``result.trace["loss"]``, (steps,), and of the detectors ``["losses"]`` and ``["weights"]``, both
            (steps, K).

    Returns:
        ShirtResult. Cost for each detector: one query per frame at x, and ``draws`` queries and gradients per step,
        shared evenly among the frames. The judgement is not counted.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work; ValueError where a detector does not find the
            person of a frame, of ``x`` or held out, without the print.

    Source:
        Xu et al. (2020), section 3.
    """
    _check(nu, iou, threshold, smoothness, printability, weight_step, gamma, steps, lr)
    checks.floats(x)
    checks.pictures(x)
    victims, judge, family = _victims(victim), _boxes_apart(held_out), family_of(scenes)
    given = _checked("y", y, x)
    size = (family.texture_size(x) or _SHEET) if mask is None else None
    whole = mask if size is None else torch.ones(1, *size, dtype=torch.bool, device=x.device)
    loss = Confidence(nu, iou)
    with ExitStack() as stack:
        stages = []
        for each in victims:
            hidden = Hidden(threshold, iou)
            opened = staged(
                each, x, None, scenes=family, held_out=judge[:2], mask=whole, colors=colors, target=None, loss=loss,  # type: ignore[arg-type]
                draws=draws, seed=seed, goal=hidden,
            )  # fmt: skip
            stages.append(stack.enter_context(opened))
            session = stages[-1].session
            session.y = hidden.boxes = hidden.found("x", session.clean, given)
            stages[-1].loss = attacker_loss(replace(loss, unit=float(loss(session.clean, session.y).mean())))
        persons = held_out_persons(stages, judge[0].detach(), judge[2] if len(judge) == 3 else None, threshold, iou)
        start = stages[0].session.x.new_full((x.shape[1], *stages[0].mask.shape[1:]), 0.5)
        watched = Watched(
            **vars(stages[0]), stages=stages, persons=persons, threshold=threshold, iou=iou,
            weights=start.new_full((len(stages),), 1 / len(stages)), weight_step=weight_step, gamma=gamma,
        )  # fmt: skip

        def price(texture: Tensor) -> Tensor:
            return smoothness * total_variation(texture, watched.mask) + printability * watched.ink(texture)

        begin = start if clean is None else texture_like("clean", clean, stages[0])
        result = watched.descend(
            begin, adam(lr, begin), steps, price=price, label="tshirt", progress=progress, trace=trace
        )
        assert isinstance(result, ShirtResult)
        return result


def _victims(given: Model | Sequence[Model]) -> list[Victim]:
    models = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    if not models:
        raise ValueError("victim: want at least one detector, got an empty list")
    victims = [each if isinstance(each, Victim) else Victim(each, answer="boxes") for each in models]
    for each in victims:
        if each.answer != "boxes":
            raise ValueError(f'victim: want detectors, Victim(model, answer="boxes"), got an answer of {each.answer!r}')
    return victims


def _boxes_apart(held_out: HeldOut) -> HeldOut:
    """The same, its form checked; boxes are no labels."""
    if not isinstance(held_out, tuple) or len(held_out) not in (2, 3):
        raise TypeError("held_out: want (frames, views) or (frames, views, boxes)")
    checks.floats(held_out[0], "held_out")
    return held_out if len(held_out) == 2 else (*held_out[:2], _checked("held_out", held_out[2], held_out[0]))  # type: ignore[return-value]


def _checked(name: str, boxes: Tensor | None, x: Tensor) -> Tensor | None:
    """The caller's boxes (N, 4); raises unless each has a width and a height."""
    if boxes is None:
        return None
    if not isinstance(boxes, Tensor) or not boxes.is_floating_point() or boxes.shape != (len(x), 4):
        got = f"{boxes.dtype} of shape {tuple(boxes.shape)}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise ValueError(f"{name}: want boxes of floats, shape ({len(x)}, 4), one per frame, got {got}")
    empty = (~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{name}: want boxes (left, top, right, bottom) with a width and a height, got none in rows {empty[:10]}"
        )
    return boxes.detach().to(x)


def _check(
    nu: float, iou: float, threshold: float, smoothness: float, printability: float, weight_step: float, gamma: float,
    steps: int, lr: float,
) -> None:  # fmt: skip
    for name, share in (("nu", nu), ("iou", iou)):
        checks.not_negative(name, share)
        checks.below(name, share, 1.0)
    checks.positive("threshold", threshold)
    checks.below("threshold", threshold, 1.0)
    for name, weight in (("smoothness", smoothness), ("printability", printability), ("gamma", gamma)):
        checks.not_negative(name, weight)
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("weight_step", weight_step)
    checks.positive("lr", lr)
