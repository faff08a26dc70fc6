"""What physical attacks share: the expectation over images and scenes, and the judgement on others of both.

Athalye, Engstrom, Ilyas and Kwok, "Synthesizing robust adversarial examples" (2018), section 2.1. A texture p is not
seen as it is, but through scenes t that are drawn, and not before one image but before any of a set:

    minimize_p  E_{x, t} g( f_θ(t(x, p)) )  +  penalties(p)

Each step estimates the expectation and its gradient through t by ``draws`` fresh pairs of an image and a scene. A
texture is worth what it does in scenes and before images that were not drawn from while it was made: these are
``held_out``, and they are asked about once, at the end, after printing.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.losses import AttackerLoss, LossFunction, LossName, attacker_loss
from robustlab.attacker.results import PhysicalResult
from robustlab.attacker.session import Session
from robustlab.attacker.through import boxed
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.physical.printing import printed
from robustlab.attacks.physical.scenes import Listed, Scenes, View
from robustlab.geometry.keyed import Noise, derive_seed

HeldOut = tuple[Tensor, Sequence[View]] | tuple[Tensor, Sequence[View], Tensor]
"""Images (M, C, H, W) and views that judge a texture; labels (M,) of the images, else what the model says of them."""
AT_ONCE = 128  # pictures in one pass


class Expected(NamedTuple):
    """An estimate of the expected loss, a number, and of its gradient in the texture (C, h, w)."""

    loss: Tensor
    grad: Tensor


@dataclass
class Stage:
    """An attack at work: its session, what may be painted, and where it is seen.

    Attributes:
        session: about the images x.
        mask: (1, h, w) bool.
        colors: (P, C), the palette, or None.
        rows: images that are used, those of which the model says numbers.
    """

    session: Session
    scenes: Scenes
    mask: Tensor
    colors: Tensor | None
    rows: Tensor
    loss: AttackerLoss
    draws: int
    seed: int
    held_out: HeldOut
    target: int | None

    def look(
        self, texture: Tensor, step: int, beside: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None
    ) -> Expected:
        """The expected loss at a texture (C, h, w) and its gradient, from ``draws`` pictures.

        ``beside(pictures, render)``: a penalty (n,) of each picture, whose gradient is added; ``render`` shows another
        texture in the same scenes.
        """
        session, total, grad = self.session, texture.new_zeros(()), torch.zeros_like(texture)
        for part in torch.arange(self.draws, device=texture.device).split(AT_ONCE):
            live = session.of(self._images(step)[part])
            render = self.scenes.before(live.x, self.mask, Noise(self.seed, part), step)
            with torch.enable_grad():
                leaf = texture.detach().requires_grad_(True)
                shown = render(leaf)
                seen = boxed(shown, session.low, session.high)
                extra = None if beside is None else beside(seen, render)
            answer = session.gradient(seen.detach(), live, self.loss)
            session.settle(live)
            total += answer.loss.sum()
            if seen.requires_grad:
                (back,) = torch.autograd.grad(seen, leaf, answer.grad, retain_graph=extra is not None)
                grad += back
            if extra is not None and extra.requires_grad:
                (back,) = torch.autograd.grad(extra, leaf, torch.ones_like(extra))
                total, grad = total + extra.detach().sum(), grad + back
        return Expected(total / self.draws, grad / self.draws)

    def affords(self, step: int) -> bool:
        """Whether every image has a query left for each picture of it; the judgement costs the images nothing."""
        if self.session.budget is None:
            return True
        asked = torch.bincount(self._images(step), minlength=len(self.session.x))[self.rows]
        return self.session.all_can_pay(self.session.of(self.rows), asked - 1)

    def _images(self, step: int) -> Tensor:
        """Which image stands in each picture of a step, (draws,): all as often as can be, in a random order."""
        order = Noise(derive_seed(self.seed, 1), self.rows.new_zeros(1)).permutation(step, len(self.rows))[0]
        return self.rows[order].repeat(-(-self.draws // len(order)))[: self.draws]

    def result(self, texture: Tensor, trace: list[Tensor] | None = None) -> PhysicalResult:
        """Print the texture and judge it: on each held-out image in each held-out view."""
        final = printed(texture, self.mask, self.colors)
        final = final.to(self.session._dtype or final.dtype)
        images, views, *labels = self.held_out
        images = images.detach()
        seen = [self._labels(view(images, final, self.mask)) for view in views]
        now = torch.stack(seen, dim=1)
        if self.target is not None:
            success = now == self.target
        else:
            success = now != (labels[0].to(now.device) if labels else self._labels(images))[:, None]
        return self.session.physical_result(
            final, self.mask, success, {"loss": torch.stack(trace)} if trace else None
        )  # fmt: skip

    def _labels(self, pictures: Tensor) -> Tensor:
        asked = boxed(pictures, self.session.low, self.session.high)
        return torch.cat([self.session.labels_of(part) for part in asked.split(500)])


@contextmanager
def staged(
    victim: Model, x: Tensor, y: Tensor | None, *, scenes: Scenes | Sequence[View], held_out: HeldOut,
    mask: Tensor, colors: Tensor | None, target: int | None, loss: LossName | LossFunction, draws: int, seed: int,
    square: bool = False,
) -> Iterator[Stage]:  # fmt: skip
    """The checks that physical attacks share, and a session over their images.

    ``square``: the mask is that of a patch, as wide as high, whatever scenes it is shown in.
    """
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    checks.pictures(x)
    if victim.bounds != (0.0, 1.0):
        raise ValueError(f"victim: want one whose images are in [0, 1], as colors are, got bounds {victim.bounds}")
    checks.at_least("draws", draws, 1, integer=True)
    family, g = _family(scenes), attacker_loss(loss)
    _check_mask(mask, x, family, square)
    if colors is not None:
        colors = _palette(colors, x)
    _check_held_out(held_out, x, victim)
    if target is not None and (isinstance(target, bool) or not isinstance(target, numbers.Integral)):
        raise TypeError(f"target: want one label for all images, an integer, got {type(target).__name__}")
    with victim.session(x, y, target=target, loss=g) as session:
        if target is not None and len(x) and bool((session.y == target).all()):
            raise ValueError(
                f"target: want a label other than that of all images, got {target}, which is what they are"
            )
        if len(held_out) == 3 and session.clean is not None:
            checks.in_classes("held_out", held_out[2], session.clean.shape[1])
        rows = (~session.lost).nonzero().flatten()
        if not len(rows):
            raise ValueError(f"x: want at least one image of which the model says numbers, got {len(x)} without")
        yield Stage(session, family, mask.to(x.device).clone(), colors, rows, g, draws, seed, held_out, target)


def _family(scenes: Scenes | Sequence[View]) -> Scenes:
    if isinstance(scenes, Scenes):
        return scenes
    if not isinstance(scenes, Sequence) or not scenes or not all(callable(view) for view in scenes):
        got = "an empty one" if isinstance(scenes, Sequence) and not scenes else repr(scenes)[:80]
        raise ValueError(f"scenes: want a family of scenes or a list of at least one view, got {got}")
    return Listed(scenes)


def _check_mask(mask: Tensor, x: Tensor, family: Scenes, square: bool) -> None:
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


def _palette(colors: Tensor, x: Tensor) -> Tensor:
    checks.floats(colors, "colors")
    if colors.dim() != 2 or colors.shape[1] != x.shape[1] or not len(colors):
        raise ValueError(f"colors: want (P, {x.shape[1]}), got shape {tuple(colors.shape)}")
    if not bool(((colors >= 0) & (colors <= 1)).all()):
        raise ValueError("colors: want values in [0, 1], got others or NaN")
    return colors.detach().to(x)


def _check_held_out(held_out: HeldOut, x: Tensor, victim: Victim) -> None:
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


def texture_like(name: str, texture: Tensor, stage: Stage) -> Tensor:
    """The caller's texture beside the images; raises unless it has the size of the mask and colors in [0, 1]."""
    x = stage.session.x
    checks.floats(texture, name)
    shape = (x.shape[1], *stage.mask.shape[1:])
    if texture.shape != shape:
        raise ValueError(f"{name}: want shape {shape}, got {tuple(texture.shape)}")
    if not bool(((texture >= 0) & (texture <= 1)).all()):
        raise ValueError(f"{name}: want colors in [0, 1], got others or NaN")
    return texture.detach().to(x)


class Adam:
    """Adam (Kingma and Ba 2015) for one texture, which stays in [0, 1]."""

    def __init__(self, lr: float) -> None:
        self.lr, self.steps = lr, 0
        self.mean = self.square = torch.zeros(())

    def step(self, texture: Tensor, grad: Tensor) -> Tensor:
        """The texture after a step against ``grad``."""
        if not self.steps:
            self.mean, self.square = torch.zeros_like(grad), torch.zeros_like(grad)
        self.steps += 1
        self.mean = self.mean.lerp(grad, 0.1)
        self.square = self.square.lerp(grad.square(), 0.001)
        scale = (self.square / (1 - 0.999**self.steps)).sqrt().add(1e-12)
        return (texture - self.lr * self.mean / (1 - 0.9**self.steps) / scale).clamp(0, 1)


def slope(penalty: Callable[[Tensor], Tensor], texture: Tensor) -> tuple[Tensor, Tensor]:
    """A penalty, a number, and its gradient in the texture."""
    with torch.enable_grad():
        leaf = texture.detach().requires_grad_(True)
        value = penalty(leaf)
        (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad
