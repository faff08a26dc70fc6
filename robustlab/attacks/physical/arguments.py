"""What callers hand to a physical attack, checked: scenes, masks, palettes, and what judges a texture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.victim import Victim
from robustlab.attacks.physical.scenes import Listed, Scenes, View

HeldOut = tuple[Tensor, Sequence[View]] | tuple[Tensor, Sequence[View], Tensor]
"""Images (M, C, H, W) and views that judge a texture; labels (M,) of the images, else what the model says of them."""


def family_of(scenes: Scenes | Sequence[View]) -> Scenes:
    """A family of scenes, or a list of views as one."""
    if isinstance(scenes, Scenes):
        return scenes
    if not isinstance(scenes, Sequence) or not scenes or not all(callable(view) for view in scenes):
        got = "an empty one" if isinstance(scenes, Sequence) and not scenes else repr(scenes)[:80]
        raise ValueError(f"scenes: want a family of scenes or a list of at least one view, got {got}")
    return Listed(scenes)


def check_mask(mask: Tensor, x: Tensor, family: Scenes, square: bool) -> None:
    """Raises unless the mask has the size that the scenes want and something is to be painted."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask: want a bool tensor (1, h, w), got {getattr(mask, 'dtype', type(mask).__name__)}")
    height, width = x.shape[2:]
    size = None if square else family.texture_size(x)
    if mask.dim() != 3 or mask.shape[0] != 1 or (size is not None and mask.shape[1:] != size):
        wish = "1, h, w" if size is None else f"1, {size[0]}, {size[1]}"
        raise ValueError(f"mask: want shape ({wish}), got {tuple(mask.shape)}")
    if square and not mask.shape[1] == mask.shape[2] <= min(height, width):
        raise ValueError(
            f"mask: want a patch (1, s, s) no larger than the images of {height}×{width}, got {tuple(mask.shape)}"
        )
    if not bool(mask.any()):
        raise ValueError("mask: want at least one pixel to paint, got an empty one")


def palette(colors: Tensor, x: Tensor) -> Tensor:
    """The colors of the printer beside the images."""
    checks.floats(colors, "colors")
    if colors.dim() != 2 or colors.shape[1] != x.shape[1] or not len(colors):
        raise ValueError(f"colors: want (P, {x.shape[1]}), got shape {tuple(colors.shape)}")
    if not bool(((colors >= 0) & (colors <= 1)).all()):
        raise ValueError("colors: want values in [0, 1], got others or NaN")
    return colors.detach().to(x)


def check_held_out(held_out: HeldOut, x: Tensor, victim: Victim) -> None:
    """Raises unless images and views judge what was made for images like x."""
    if not isinstance(held_out, tuple) or len(held_out) not in (2, 3):
        raise TypeError("held_out: want (images, views) or (images, views, labels)")
    images, views = held_out[:2]
    checks.images(images, victim.bounds, "held_out")
    if images.shape[1:] != x.shape[1:] or images.dtype != x.dtype or images.device != x.device:
        raise ValueError(
            f"held_out: want images like x, {x.dtype} {tuple(x.shape[1:])} on {x.device}, "
            f"got {images.dtype} {tuple(images.shape[1:])} on {images.device}"
        )
    if not len(images) or not isinstance(views, Sequence) or not views or not all(callable(view) for view in views):
        raise ValueError("held_out: want at least one image and one view; a family of scenes gives some by .views(20)")
    if len(held_out) == 3:
        checks.labels("held_out", held_out[2], images)
