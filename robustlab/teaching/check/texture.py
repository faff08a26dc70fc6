"""A texture painted by descent over random scenes, held to losses whose best texture is known.

Where the loss is affine in the colors, with slopes that change from scene to scene, the best color of a pixel is an end
of [0, 1]: 0 where the mean slope is positive and 1 where it is negative. Where it is a bowl, it is the bowl's middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustlab.teaching.check.finding import Wrong, require_answer, require_in_box, require_unchanged

Slope = Callable[[Tensor, Tensor, int], Tensor]
"""(texture (C, H, W), mask (H, W), step k) → the gradient of the loss in the scenes of step k, like the texture."""
Paint = Callable[[Slope, Tensor, Tensor, int, float], Tensor]
"""(slope, clean (C, H, W), mask (H, W), steps, lr) → the texture."""
STEPS, RATE = 120, 0.1


def texture(function: Paint, *, seed: int = 0, hints: int = 1) -> None:
    """Check the descent that paints a sticker: prints one line where all holds.

    Args:
        function: called as ``function(slope, clean, mask, steps, lr)`` with the face (C, H, W) in [0, 1] that is there
            without a sticker, where the sticker is (H, W), a number of steps, and the step size of an optimizer such
            as Adam. ``slope(texture, mask, k)`` is the gradient of the loss in scenes that differ from step to step,
            k. Returns colors in [0, 1] of least mean loss in the mask; what it returns elsewhere is not looked at.
        seed: of faces and losses (default 0).
        hints: how many hints to show (default 1).

    Raises:
        Wrong: with what was seen, the likely cause and hints.
    """
    generator = torch.Generator().manual_seed(seed)
    try:
        _ends(function, generator)
        _middle(function, generator)
    except Wrong as wrong:
        raise wrong.shown_as("texture", hints) from None
    print("texture: holds, on affine losses of scenes that change, and on a bowl")


class Scenes:
    """A slope that notes how it was asked."""

    def __init__(self, of: Callable[[Tensor, int], Tensor], clean: Tensor, mask: Tensor) -> None:
        self.of, self.clean, self.mask, self.steps = of, clean, mask, list[int]()
        self.low, self.high = 0.0, 1.0

    def __call__(self, colors: Tensor, mask: Tensor, k: int) -> Tensor:
        """The slope in the scenes of a step, where the mask is."""
        if colors.shape != self.clean.shape:
            raise Wrong(
                f"slope was asked about a texture of shape {tuple(colors.shape)}",
                "wrong shape of the texture",
                f"A texture has the shape of the face: {tuple(self.clean.shape)}.",
            )
        self.steps.append(int(k))
        inside = colors.detach()[:, self.mask]
        self.low, self.high = min(self.low, float(inside.min())), max(self.high, float(inside.max()))
        return self.of(colors.detach(), int(k)) * self.mask


def _case(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    clean = 0.3 + 0.4 * torch.rand(3, 5, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 5, generator=generator) < 0.5
    mask[2, 2], mask[0, 0] = True, False
    return clean, mask


def _painted(function: Paint, scenes: Scenes, steps: int) -> Tensor:
    given = scenes.clean.clone()
    out = require_answer(function(scenes, given, scenes.mask.clone(), steps, RATE), scenes.clean)
    require_unchanged(given, scenes.clean)
    if scenes.low < -1e-9 or scenes.high > 1 + 1e-9:
        raise Wrong(
            f"slope was asked about colors from {scenes.low:.2g} to {scenes.high:.2g}",
            "no clamp to [0, 1] in the loop",
            "A printer has no color beyond white. What the loop sees must be what is printed.",
            "texture.clamp_(0, 1) after each step.",
        )
    if len(scenes.steps) > 1 and len(set(scenes.steps)) == 1:
        raise Wrong(
            f"slope was asked {len(scenes.steps)} times about the scenes of step {scenes.steps[0]}",
            "the same scenes in every step",
            "A texture that is fitted to a few pictures works in these pictures.",
            "Hand over the number of the step: slope(texture, mask, k).",
        )
    require_in_box(out[:, scenes.mask], 1e-9, "Clamp the colors to [0, 1].")
    return out


def _ends(function: Paint, generator: torch.Generator) -> None:
    clean, mask = _case(generator)
    mean = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    mean = mean + 0.5 * mean.sign()
    rest = 0.3 * torch.randn(clean.shape, generator=generator, dtype=torch.float64).clamp(-1.5, 1.5)
    scenes = Scenes(lambda colors, k: mean + (-1) ** k * rest, clean, mask)
    out = _painted(function, scenes, STEPS)[:, mask]
    best = (mean < 0).to(out)[:, mask]
    wrong: Any = (out - best).abs() > 0.01
    if not bool(wrong.any()):
        return
    if torch.allclose(out, 1 - best, atol=0.01):
        raise Wrong(
            "every color is at the wrong end",
            "the loss is climbed, not descended",
            "The slope is that of a loss, which is to become small.",
            "Set texture.grad to the slope, or subtract it.",
        )
    if torch.allclose(out, clean[:, mask], atol=0.01):
        raise Wrong("the colors are those of the face", "nothing is painted", "Where do the steps go?")
    raise Wrong(
        f"{int(wrong.sum())} of {wrong.numel()} colors are not at the end to which the mean slope goes",
        "too few steps, or steps that shrink",
        f"{STEPS} steps of {RATE} reach every color.",
        "Make all steps, each with the learning rate that is given.",
    )


def _middle(function: Paint, generator: torch.Generator) -> None:
    clean, mask = _case(generator)
    middle = 0.2 + 0.6 * torch.rand(clean.shape, generator=generator, dtype=torch.float64)
    scenes = Scenes(lambda colors, k: 2 * (colors - middle), clean, mask)
    out = _painted(function, scenes, 2 * STEPS)
    gap = float((out - middle)[:, mask].abs().max())
    if gap > 0.05:
        raise Wrong(
            f"where the best texture lies inside of the box, the result is {gap:.2g} away from it",
            "the slope is not that at the texture of the step",
            "The loss bends, so its slope is another one at each texture.",
            "Ask slope about the texture as it is now, in every step.",
        )
