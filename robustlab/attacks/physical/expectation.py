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
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.composition import boxed, gradient_through
from robustlab.attacker.losses import AttackerLoss, LossFunction, LossName, at_its_end, attacker_loss
from robustlab.attacker.results import PhysicalResult
from robustlab.attacker.session import Goal, Session
from robustlab.attacker.victim import Model, Victim
from robustlab.attacks.physical.arguments import HeldOut, check_held_out, check_mask, family_of, palette
from robustlab.attacks.physical.printing import non_printability, printed
from robustlab.attacks.physical.scenes import Scenes, View
from robustlab.geometry.adam import Adam
from robustlab.geometry.keyed import Noise, derive_seed
from robustlab.progress import bar

Move = Callable[[Tensor, Tensor], Tensor]
"""(texture, gradient) → the texture after a step."""
Beside = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
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
    looked: bool = field(default=False, kw_only=True)  # whether a step has been seen

    def look(self, texture: Tensor, step: int, beside: Beside | None = None) -> Expected:
        """The expected loss at a texture (C, h, w) and its gradient, from ``draws`` pictures.

        ``beside(pictures, render)`` is a penalty (n,) that is added; ``render`` shows another texture in the same
        scenes.
        """
        session, total, grad = self.session, texture.new_zeros(()), torch.zeros_like(texture)
        flat = not self.looked
        for part in torch.arange(self.draws, device=texture.device).split(AT_ONCE):
            live = session.of(self._images(step)[part])
            render = self.scenes.of(live.rows).before(live.x, self.mask, Noise(self.seed, part), step)
            penalty = None if beside is None else partial(_in_scenes, beside, render)
            answer = gradient_through(session, live, texture, render, self.loss, penalty)
            session.settle(live)
            if flat:
                value = self.loss(answer.logits, live.y, live.target, session.kappa)
                ended = at_its_end(self.loss, value, live.target, session.kappa)
                flat = ended is not None and bool(ended.all())
            total, grad = total + answer.loss.sum(), grad + answer.grad
        if flat and bool(grad.any()):  # the session has told of a slope that is exactly 0
            checks.warn(
                f"loss: {self.loss.name!r} is at its end on all {self.draws} pictures of a step, since the model is so "
                "sure that its probabilities round to 1 and 0, so that its slope there is rounding; want "
                'loss="margin", which does not saturate'
            )
        self.looked = True
        return Expected(total / self.draws, grad / self.draws)

    def descend(
        self, texture: Tensor, move: Move, steps: int, *, price: Callable[[Tensor], Tensor] | None = None,
        beside: Beside | None = None, first: int = 0, label: str, progress: bool = False, trace: bool = False,
    ) -> PhysicalResult:  # fmt: skip
        """The loop that physical attacks share: K steps down the expected loss and a price, then the judgement.

            p ← move( p, ∇ E_{x, t} g(f_θ(t(x, p))) + ∇ price(p) )

        Args:
            texture: p at the start.
            move: (texture, gradient) → texture.
            steps: K; they end where a budget cannot pay the next one.
            price: a number, a function of the texture alone.
            beside: as in :meth:`look`.
            first: number of the first step, by which images and scenes are drawn.
            label, progress: of the bar.
            trace: keep the objective of every step.
        """
        losses = list[Tensor]()
        for k in bar(range(first, first + steps), show=progress, label=label):
            if not self.affords(k):
                break
            value, grad = self.look(texture, k, beside)
            if price is not None:
                more, back = slope(price, texture)
                value, grad = value + more, grad + back
            texture = move(texture, grad)
            losses.append(value)
            self.session.keep_texture(texture, self.mask)
        return self.result(texture, losses if trace else None)

    def ink(self, texture: Tensor) -> Tensor:
        """NPS of a texture, a number; 0 where all colors can be printed."""
        return 0.0 * texture.sum() if self.colors is None else non_printability(texture, self.mask, self.colors)

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
    square: bool = False, goal: Goal | None = None,
) -> Iterator[Stage]:  # fmt: skip
    """The checks that physical attacks share, and a session over their images.

    ``square``: the mask is that of a patch, as wide as high, whatever scenes it is shown in. ``goal``: of an attack on
    answers other than classes.
    """
    victim = Victim.of(victim)
    checks.images(x, victim.bounds)
    checks.pictures(x)
    if victim.bounds != (0.0, 1.0):
        raise ValueError(f"victim: want one whose images are in [0, 1], as colors are, got bounds {victim.bounds}")
    checks.at_least("draws", draws, 1, integer=True)
    family, g = family_of(scenes), attacker_loss(loss)
    check_mask(mask, x, family, square)
    if colors is not None:
        colors = palette(colors, x)
    check_held_out(held_out, x, victim)
    if target is not None and (isinstance(target, bool) or not isinstance(target, numbers.Integral)):
        raise TypeError(f"target: want one label for all images, an integer, got {type(target).__name__}")
    with victim.session(x, y, target=target, loss=g, goal=goal) as session:
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


def _in_scenes(beside: Beside, render: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    return beside(pictures, render)


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


def adam(lr: float, like: Tensor) -> Move:
    """Moves by Adam for one texture, which stays in [0, 1]."""
    here = torch.empty_like(like)
    descent = Adam([here])

    def move(texture: Tensor, grad: Tensor) -> Tensor:
        here.copy_(texture)
        descent.step([grad], lr)
        return here.clamp(0, 1)

    return move


def slope(penalty: Callable[[Tensor], Tensor], texture: Tensor) -> tuple[Tensor, Tensor]:
    """A penalty, a number, and its gradient in the texture."""
    with torch.enable_grad():
        leaf = texture.detach().requires_grad_(True)
        value = penalty(leaf)
        (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad
