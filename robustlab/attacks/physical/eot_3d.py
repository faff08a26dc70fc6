"""An adversarial texture of a solid, over its poses.

Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust adversarial examples" (2018), sections 2.2 and 2.3. The texture
of a solid is changed so that its pictures are taken for class y_t from every side. Pose, background, light and sensor
noise are drawn for each picture; rendering is differentiable in the texture. What must not be noticed is the picture,
not the texture, so that the distance is that of the rendered pictures, in the color space LAB, where it is close to
what an eye sees:

    maximize_{x'}  E_{t ∼ T} [ log f_θ(t(x'))_{y_t} − λ·‖LAB(t(x')) − LAB(t(x))‖₂ ]

Different here: solids of a few triangles (:mod:`robustlab.attacks.physical.mesh`), whose pictures are rendered by
sampling, where the paper's turtle was printed and photographed; untargeted too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import LossFunction, LossName
from robustlab.attacker.results import PhysicalResult
from robustlab.attacker.victim import Model
from robustlab.attacks.physical.arguments import HeldOut
from robustlab.attacks.physical.expectation import adam, staged, texture_like
from robustlab.attacks.physical.scenes import Scenes, Turned, View


def eot_3d(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    held_out: HeldOut,
    scenes: Scenes | Sequence[View] | None = None,
    target: int | None = None,
    mask: Tensor | None = None,
    clean: Tensor | None = None,
    colors: Tensor | None = None,
    lam: float = 1e-3,
    printability: float = 0.0,
    steps: int = 100,
    draws: int = 16,
    lr: float = 0.05,
    loss: LossName | LossFunction = "ce",
    seed: int = 0,
    progress: bool = False,
    trace: bool = False,
) -> PhysicalResult:
    """One texture for all poses of a solid before all backgrounds.

        minimize_p  E_{x, t} [ g(f_θ(t(x, p))) + λ·‖LAB(t(x, p)) − LAB(t(x, clean))‖₂ ]  subject to p ∈ [0, 1]

    Args:
        victim: a Victim, or a model with logits (N, K), for images in [0, 1].
        x: color images (N, 3, H, W): the backgrounds before which the solid stands.
        y: (N,) labels, from which an untargeted attack leads away: that of the solid; None takes what the model says
            of the backgrounds.
        held_out: (backgrounds, views) that judge the texture, or (backgrounds, views, labels).
        scenes: a family of scenes or a list of views; None means :class:`robustlab.attacks.physical.scenes.Turned`.
        target: what the solid is to be taken for; None leads away from the label.
        mask: (1, h, w) bool, the part of the texture that may change, and its resolution; None is all of it, at that
            of the images.
        clean: (3, h, w), the texture before the attack, at which it begins; None is gray.
        colors: (P, 3) palette of the printer; None prints all of [0, 1].
        lam: λ ≥ 0, in units of the loss per unit of LAB, of which white is 100.
        printability: weight ≥ 0 of NPS; plays no part without ``colors``.
        steps: at least 1.
        draws: pictures in each step, each a fresh pair of background and pose.
        lr: step size of Adam, in units of color.
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`).
        seed: of backgrounds and poses.
        progress: show a bar in a terminal.
        trace: keep the estimated objective of every step as ``result.trace["loss"]``, (steps,).

    Returns:
        PhysicalResult. Cost: one query per image at x, and ``draws`` queries and gradients per step, shared evenly
        among the images. The judgement is not counted.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Athalye, Engstrom, Ilyas and Kwok (2018), sections 2.2 and 2.3.
    """
    checks.at_least("steps", steps, 1, integer=True)
    checks.positive("lr", lr)
    checks.not_negative("lam", lam)
    checks.not_negative("printability", printability)
    checks.floats(x)
    checks.pictures(x)
    if x.shape[1] != 3:
        raise ValueError(f"x: want color images (N, 3, H, W), got shape {tuple(x.shape)}")
    whole = torch.ones(1, *x.shape[2:], dtype=torch.bool, device=x.device) if mask is None else mask
    with staged(
        victim, x, y, scenes=Turned() if scenes is None else scenes, held_out=held_out, mask=whole, colors=colors,
        target=target, loss=loss, draws=draws, seed=seed,
    ) as stage:  # fmt: skip
        gray = stage.session.x.new_full((3, *stage.mask.shape[1:]), 0.5)
        base = gray if clean is None else texture_like("clean", clean, stage)

        def noticed(pictures: Tensor, render: Callable[[Tensor], Tensor]) -> Tensor:
            with torch.no_grad():
                before = lab(render(base).clamp(0, 1))
            return lam * torch.linalg.vector_norm((lab(pictures) - before).flatten(1), dim=1)

        return stage.descend(
            base, adam(lr, base), steps, price=lambda texture: printability * stage.ink(texture),
            beside=noticed if lam else None, label="eot_3d", progress=progress, trace=trace,
        )  # fmt: skip


def lab(images: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB images (n, 3, H, W) in [0, 1], by the white of daylight (D65): L* from 0 to 100."""
    linear = torch.where(images > 0.04045, ((images.clamp_min(0.04) + 0.055) / 1.055) ** 2.4, images / 12.92)
    to_xyz = images.new_tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    relative = torch.einsum("ij,njhw->nihw", to_xyz / to_xyz.sum(dim=1, keepdim=True), linear)
    edge = 6 / 29
    bent = torch.where(relative > edge**3, relative.clamp_min(1e-3) ** (1 / 3), relative / (3 * edge**2) + 4 / 29)
    x, y, z = bent.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
