"""Adversarial eyeglasses.

Sharif, Bhagavatula, Bauer and Reiter, "Accessorize to a crime: real and stealthy attacks on state-of-the-art face
recognition" (2016), section 5 and equation (4). A person prints the front of an eyeglass frame. It must work in all of
the person's pictures X, be smooth, since a camera does not see the difference of neighboring pixels, and printable:

    minimize_r  κ₁·Σ_{x ∈ X} softmaxloss(x + r, c_t) + κ₂·TV(r) + κ₃·NPS(r)

toward another person c_t (impersonation), or with the sign of the first term turned, away from oneself (dodging).
Gradient descent with momentum, coefficient 0.4, from a frame of one color. In each step the frame is moved and turned a
little, as glasses are never worn twice alike.

Different here: the mean over pictures in the place of the sum; the gradient is divided by its largest element, so that
the step size is in units of color.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import LossFunction, LossName
from robustlab.attacker.results import PhysicalResult
from robustlab.attacker.victim import Model
from robustlab.attacks.physical.arguments import HeldOut
from robustlab.attacks.physical.camera import Camera
from robustlab.attacks.physical.expectation import staged
from robustlab.attacks.physical.optics import places
from robustlab.attacks.physical.printing import total_variation
from robustlab.attacks.physical.scenes import Scenes, View, Worn


def eyeglasses(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    held_out: HeldOut,
    scenes: Scenes | Sequence[View] | None = None,
    target: int | None = None,
    mask: Tensor | None = None,
    colors: Tensor | None = None,
    color: float = 0.5,
    smoothness: float = 1e-3,
    printability: float = 0.01,
    momentum: float = 0.4,
    steps: int = 100,
    draws: int = 32,
    lr: float = 0.05,
    loss: LossName | LossFunction = "ce",
    seed: int = 0,
    progress: bool = False,
    trace: bool = False,
) -> PhysicalResult:
    """A frame of glasses by which a person is not recognized, or taken for another.

        minimize_r  E_{x, t} g(f_θ(t(x, r))) + κ₂·TV(r) + κ₃·NPS(r)  subject to r ∈ [0, 1]

    Args:
        victim: a Victim, or a model with logits (N, K), for images in [0, 1].
        x: (N, C, H, W), pictures of the wearer, or of several.
        y: (N,) who that is, which dodging leads away from; None takes the model's prediction.
        held_out: (images, views) that judge the glasses, or (images, views, labels): other pictures of the wearer.
        scenes: a family of scenes or a list of views; None means glasses that slip by one pixel and turn by 4°.
        target: whom to impersonate; None is dodging.
        mask: (1, H, W) bool, the frame's front; None means :func:`frames`.
        colors: (P, C) palette of the printer; None prints all of [0, 1].
        color: of the frame at the start, in all channels.
        smoothness: κ₂ ≥ 0, the weight of TV.
        printability: κ₃ ≥ 0, the weight of NPS; plays no part without ``colors``.
        momentum: coefficient in [0, 1).
        steps: at least 1.
        draws: pictures in each step, each a fresh pair of image and scene.
        lr: step size, in units of color.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        seed: of images and scenes.
        progress: show a bar in a terminal.
        trace: keep the estimated objective of every step as ``result.trace["loss"]``, (steps,).

    Returns:
        PhysicalResult. Cost: one query per image at x, and ``draws`` queries and gradients per step, shared evenly
        among the images. The judgement is not counted.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Sharif et al. (2016), section 5 and equation (4).
    """
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("lr", lr)
    for name, number in (("color", color), ("smoothness", smoothness), ("printability", printability)):
        checks.not_negative(name, number)
    checks.at_most("color", color, 1.0)
    checks.not_negative("momentum", momentum)
    checks.below("momentum", momentum, 1.0)
    checks.floats(x)
    checks.pictures(x)
    worn = Worn(slip=1.0, turn=4.0, camera=Camera(tilt=0.02)) if scenes is None else scenes
    with staged(
        victim, x, y, scenes=worn, held_out=held_out, mask=frames(x) if mask is None else mask, colors=colors,
        target=target, loss=loss, draws=draws, seed=seed,
    ) as stage:  # fmt: skip

        def price(texture: Tensor) -> Tensor:
            return smoothness * total_variation(texture, stage.mask) + printability * stage.ink(texture)

        start = stage.session.x.new_full((x.shape[1], *stage.mask.shape[1:]), color)
        velocity = torch.zeros_like(start)

        def roll(texture: Tensor, grad: Tensor) -> Tensor:
            nonlocal velocity
            whole = grad * stage.mask
            velocity = momentum * velocity - lr * whole / whole.abs().max().clamp_min(1e-30)
            return (texture + velocity).clamp(0, 1)

        return stage.descend(start, roll, steps, price=price, label="eyeglasses", progress=progress, trace=trace)


def frames(like: Tensor, *, eyes: float = 0.42, apart: float = 0.34, lens: float = 0.14, rim: float = 0.06) -> Tensor:
    """The front of an eyeglass frame, a mask (1, H, W) beside images (N, C, H, W): two rims, a bridge and temples.

    All lengths are shares of the picture: ``eyes`` from the top, ``apart`` from each other, the radius of a ``lens``,
    the width of the ``rim``.
    """
    where = (places(like.shape[2], like.shape[3], like) + 1) / 2
    right, down = (where[..., 0] - 0.5).abs(), where[..., 1] - eyes
    away = ((right - apart / 2).square() + down.square()).sqrt()
    rims = (away >= lens) & (away <= lens + rim)
    bars = (down.abs() <= rim / 2) & ((right <= apart / 2 - lens) | ((right >= apart / 2 + lens) & (right <= 0.42)))
    return (rims | bars)[None]
