"""Adversarial patches.

Brown, Mané, Roy, Abadi and Gilmer, "Adversarial patch" (2017), section 2. A patch p is painted that takes over whatever
picture it lies in. The operator A(p, x, l, t) puts it into image x at location l, turned and scaled by t, and

    p̂ = argmax_p  E_{x ∼ X, t ∼ T, l ∼ L} log f_θ( A(p, x, l, t) )_target

so that one patch serves all images, places, angles and sizes. To hide it the paper also holds it near a picture that
nobody minds: ‖p − p_orig‖_∞ < ε.

Different here: untargeted too, where the label of the image loses its probability; the patch may be held to colors that
can be printed by the non-printability score of Sharif et al. (2016); Adam, where the paper says gradient descent; and
perspective, light and noise of a camera may be among the transformations.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import LossFunction, LossName
from robustlab.attacker.results import PhysicalResult
from robustlab.attacker.victim import Model
from robustlab.attacks.physical.arguments import HeldOut
from robustlab.attacks.physical.expectation import adam, staged, texture_like
from robustlab.attacks.physical.optics import places
from robustlab.attacks.physical.scenes import Placed, Scenes, View


def patch(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    held_out: HeldOut,
    scenes: Scenes | Sequence[View] | None = None,
    target: int | None = None,
    mask: Tensor | None = None,
    colors: Tensor | None = None,
    disguise: Tensor | None = None,
    eps: float = 1.0,
    steps: int = 100,
    draws: int = 32,
    lr: float = 0.05,
    printability: float = 0.01,
    loss: LossName | LossFunction = "ce",
    seed: int = 0,
    progress: bool = False,
    trace: bool = False,
) -> PhysicalResult:
    """One patch for all images, at any place, angle and size.

        minimize_p  E_{x, t} g(f_θ(t(x, p))) + λ·NPS(p)  subject to p ∈ [0, 1], ‖p − p_orig‖_∞ ≤ ε

    Args:
        victim: a Victim, or a model with logits (N, K), for images in [0, 1].
        x: images (N, C, H, W) that the patch is made in.
        y: (N,) labels, from which an untargeted patch leads away; None takes the model's prediction.
        held_out: (images, views) that judge the patch, or (images, views, labels);
            :meth:`robustlab.attacks.physical.scenes.Scenes.views` gives views.
        scenes: a family of scenes or a list of views; None means :class:`robustlab.attacks.physical.scenes.Placed`.
        target: the class that every picture is to be taken for; None leads away from the label.
        mask: (1, s, s) bool, which pixels of the patch are printed; s is at most the images' shorter side. None means
            a disk of half of it.
        colors: (P, C) palette of the printer; None prints all of [0, 1].
        disguise: p_orig (C, s, s) in [0, 1], at which the patch begins and near which it stays; None begins with gray.
        eps: ε ≥ 0, how far each color may be from the disguise; plays no part without one.
        steps: gradient steps, at least 1.
        draws: pictures in each step, each a fresh pair of image and scene.
        lr: step size of Adam, in units of color.
        printability: λ ≥ 0, the weight of NPS; plays no part without ``colors``.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        seed: of images and scenes.
        progress: show a bar in a terminal.
        trace: keep the estimated loss of every step as ``result.trace["loss"]``, (steps,).

    Returns:
        PhysicalResult. Cost: one query per image at x, and ``draws`` queries and gradients per step, shared evenly
        among the images. The judgement is not counted.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Brown et al. (2017), section 2.
    """
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("lr", lr)
    checks.not_negative("eps", eps)
    checks.not_negative("printability", printability)
    checks.floats(x)
    checks.pictures(x)
    given = disk(min(x.shape[2:]) // 2, x) if mask is None else mask
    with staged(
        victim, x, y, scenes=Placed() if scenes is None else scenes, held_out=held_out, mask=given, colors=colors,
        target=target, loss=loss, draws=draws, seed=seed, square=True,
    ) as stage:  # fmt: skip
        gray = stage.session.x.new_full((x.shape[1], *stage.mask.shape[1:]), 0.5)
        start = gray if disguise is None else texture_like("disguise", disguise, stage)
        reach, down = 1.0 if disguise is None else eps, adam(lr, start)

        def near(texture: Tensor, grad: Tensor) -> Tensor:
            return down(texture, grad).clamp(start - reach, start + reach)

        return stage.descend(
            start, near, steps, price=lambda texture: printability * stage.ink(texture), label="patch",
            progress=progress, trace=trace,
        )  # fmt: skip


def disk(side: int, like: Tensor) -> Tensor:
    """The mask (1, side, side) of a round patch: pixels whose center is inside the circle."""
    where = places(side, side, like)
    return (where.square().sum(dim=-1) <= 1)[None]
