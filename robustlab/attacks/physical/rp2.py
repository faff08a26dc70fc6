"""Robust physical perturbations: stickers on an object.

Eykholt, Evtimov, Fernandes, Li, Rahmati, Xiao, Prakash, Kohno and Song, "Robust physical-world attacks on deep learning
visual classification" (2018), section 3 and equation (3). The images x_i show one object under physical conditions X^V,
photographed and synthetic ones; T_i moves the perturbation as the object is moved, and M_x is where stickers lie:

    minimize_δ  λ·‖M_x·δ‖_p + NPS(M_x·δ) + E_{x_i ∼ X^V} J( f_θ(x_i + T_i(M_x·δ)), y* )

Where to stick is found first: the same attack on all of the object, with an ℓ1 penalty that leaves δ sparse, shows the
regions where the model is vulnerable, and stickers are cut for these.

Different here: a sticker covers what lies under it, so that δ is its color less that of the object, ``clean``; the
sparse δ comes from proximal steps, whose zeros are exact, where the paper leaves the penalty to Adam; and the regions
are those of the largest |δ| in the mean over a window of ``sticker`` pixels, where the paper cuts them by eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import LossFunction, LossName
from robustlab.attacker.results import PhysicalResult
from robustlab.attacker.victim import Model
from robustlab.attacks.physical.arguments import HeldOut
from robustlab.attacks.physical.expectation import Stage, adam, staged, texture_like
from robustlab.attacks.physical.scenes import Scenes, View, Worn


def rp2(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    held_out: HeldOut,
    scenes: Scenes | Sequence[View] | None = None,
    target: int | None = None,
    mask: Tensor | None = None,
    region: Tensor | None = None,
    area: float = 0.15,
    sticker: int = 3,
    sparsity: float = 0.3,
    mask_steps: int = 30,
    clean: Tensor | None = None,
    colors: Tensor | None = None,
    penalty: Literal["l1", "l2"] = "l2",
    lam: float = 0.01,
    printability: float = 0.01,
    steps: int = 100,
    draws: int = 32,
    lr: float = 0.05,
    loss: LossName | LossFunction = "ce",
    seed: int = 0,
    progress: bool = False,
    trace: bool = False,
) -> PhysicalResult:
    """Stickers on an object that hold in all conditions.

        minimize_δ  E_{x, t} g(f_θ(t(x, clean + M·δ))) + λ·‖M·δ‖_p + λ_NPS·NPS(clean + M·δ)

    Args:
        victim: a Victim, or a model with logits (N, K), for images in [0, 1].
        x: images (N, C, H, W) of the object in its place, under several conditions.
        y: (N,) labels, from which an untargeted attack leads away; None takes the model's prediction.
        held_out: (images, views) that judge the stickers, or (images, views, labels).
        scenes: a family of scenes or a list of views; None means :class:`robustlab.attacks.physical.scenes.Worn`.
        target: what the object is to be taken for; None leads away from the label.
        mask: (1, H, W) bool, where stickers are; None finds them.
        region: (1, H, W) bool, where stickers may be: the object. None is all of the picture. Not beside a ``mask``.
        area: share of the region, in (0, 1], that stickers cover at most.
        sticker: odd, pixels; the width of the window over which vulnerability is averaged.
        sparsity: threshold in [0, 1) below which the first attack moves no color, as a share of the steepest slope.
        mask_steps: of the first attack.
        clean: (C, H, W), the object as it looks; None is the mean of x.
        colors: (P, C) palette of the printer; None prints all of [0, 1].
        penalty: p of ‖M·δ‖_p, ``"l1"`` or ``"l2"``.
        lam: λ ≥ 0.
        printability: weight ≥ 0 of NPS; plays no part without ``colors``.
        steps: of the second attack, at least 1.
        draws: pictures in each step, each a fresh pair of image and scene.
        lr: step size, in units of color.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        seed: of images and scenes.
        progress: show a bar in a terminal.
        trace: keep the estimated objective of every step of the second attack as ``result.trace["loss"]``.

    Returns:
        PhysicalResult. Cost: one query per image at x, and ``draws`` queries and gradients per step, shared evenly
        among the images; without a mask there are ``mask_steps`` more. The judgement is not counted.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Eykholt et al. (2018), section 3 and equation (3).
    """
    checks.one_of("penalty", penalty, ("l1", "l2"))
    _check(area, sticker, sparsity, mask_steps, lam, printability, steps, lr)
    checks.floats(x)
    checks.pictures(x)
    if mask is not None and region is not None:
        raise ValueError("region: want None beside a mask, got both")
    everywhere = torch.ones(1, *x.shape[2:], dtype=torch.bool, device=x.device)
    allowed = mask if mask is not None else region if region is not None else everywhere
    with staged(
        victim, x, y, scenes=Worn() if scenes is None else scenes, held_out=held_out, mask=allowed, colors=colors,
        target=target, loss=loss, draws=draws, seed=seed,
    ) as stage:  # fmt: skip
        base = stage.session.x.mean(dim=0) if clean is None else texture_like("clean", clean, stage)
        if mask is None:
            delta = sparse(stage, base, steps=mask_steps, lr=lr, sparsity=sparsity)
            stage.mask = strongest(delta, stage.mask, area=area, sticker=sticker)

        def price(texture: Tensor) -> Tensor:
            size = torch.linalg.vector_norm((texture - base) * stage.mask, ord=1 if penalty == "l1" else 2)
            return lam * size + printability * stage.ink(texture)

        first = mask_steps if mask is None else 0
        return stage.descend(
            base, adam(lr, base), steps, price=price, first=first, label="rp2", progress=progress, trace=trace
        )


def sparse(stage: Stage, base: Tensor, *, steps: int, lr: float, sparsity: float) -> Tensor:
    """The δ (C, H, W) of the first attack, on all that may be painted.

    δ ← S( δ − lr·∇/‖∇‖_∞, lr·sparsity ), where S moves every color toward 0 by at most its second argument: the
    proximal step of an ℓ1 penalty. A color whose slope is never above the share ``sparsity`` stays exactly 0.
    """
    delta = torch.zeros_like(base)
    for k in range(steps):
        if not stage.affords(k):
            break
        grad = stage.look(base + delta, k).grad * stage.mask
        moved = delta - lr * grad / grad.abs().max().clamp_min(1e-30)
        delta = moved.sign() * (moved.abs() - lr * sparsity).clamp_min(0)
        delta = (base + delta).clamp(0, 1) - base
    return delta * stage.mask


def strongest(delta: Tensor, region: Tensor, *, area: float, sticker: int) -> Tensor:
    """The mask (1, H, W), a share ``area`` of the region, where the mean of Σ_c |δ_c| in a window is largest."""
    strength = delta.abs().sum(dim=0, keepdim=True)[None] * region
    mean = F.avg_pool2d(strength, sticker, stride=1, padding=sticker // 2)[0]
    order = mean.masked_fill(~region, -1.0).flatten().argsort(descending=True, stable=True)
    chosen = order[: max(1, round(area * int(region.sum())))]
    moved = mean.flatten()[chosen] > 0  # the largest are first: where nothing moved there is no sticker but one
    chosen = chosen[: max(1, int(moved.sum()))]
    return torch.zeros_like(region).flatten().index_fill_(0, chosen, True).reshape(region.shape)


def _check(
    area: float, sticker: int, sparsity: float, mask_steps: int, lam: float, printability: float, steps: int, lr: float
) -> None:
    checks.positive("area", area)
    checks.at_most("area", area, 1.0)
    checks.at_least("sticker", sticker, 1, integer=True)
    if sticker % 2 == 0:
        raise ValueError(f"sticker: want an odd number of pixels, got {sticker}")
    checks.not_negative("sparsity", sparsity)
    checks.below("sparsity", sparsity, 1.0)
    for name, count in (("mask_steps", mask_steps), ("steps", steps)):
        checks.at_least(name, count, 1, integer=True)
    checks.not_negative("lam", lam)
    checks.not_negative("printability", printability)
    checks.positive("lr", lr)
