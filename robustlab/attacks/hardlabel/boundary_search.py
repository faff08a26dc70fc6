"""What hard-label attacks share: where they begin, the search for the boundary, and the step off it at the end.

A label tells on which side of the boundary a point is, and no more. So every attack begins at a point that meets the
goal (:class:`Starts`), and looks for the boundary between it and x by bisection (:meth:`Search.bisect`), or along a ray
from x (:mod:`robustlab.attacks.hardlabel.ray_search`). What is kept is always a point about which the model was asked,
clipped to the box, in the dtype of x, and what is measured is its own distance. How many questions a bisection takes
depends on its accuracy alone, so that no sample waits for another.

A point on the boundary may fall back over it when sums are rounded otherwise. White-box attacks win by a margin of
scores; here the nearest success is moved away from x by 1e-4 of its distance at the end, if the model agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Live, closest
from robustlab.attacker.parts import beside, overwrite
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Victim
from robustlab.data.pairs import Pairs, read_labeled
from robustlab.geometry.norms import Norm
from robustlab.geometry.projections import clip, clip_

_TOGETHER = 2**15  # elements of the directions of one sample that are in memory at a time


@dataclass(frozen=True)
class Starts:
    """Where an attack may begin, in this order, until a point meets the goal:

    1. ``init`` (N, ...), a point for each sample, such as an image of the target class;
    2. the images of ``pool``, a data set, whose label is the target, or without a target another than y, the nearest
       of them in ℓ2 first;
    3. x blended with noise, (1 − w)·x + w·u, u uniform in the box; w = 1 at first, then uniform on (0, 1).

    Args:
        tries: at most so many points are asked about for each sample.
        normal: u is x plus normal noise of the box's width instead, clipped.
    """

    init: Tensor | None
    pool: tuple[Tensor, Tensor] | None
    tries: int
    normal: bool = False

    @classmethod
    def read(
        cls, victim: Victim, x: Tensor, init: Tensor | None, pool: Pairs | None, tries: int, *, normal: bool = False
    ) -> Starts:
        """Checked arguments of an attack.

        Raises:
            ValueError, TypeError: for a wrong argument.
        """
        checks.images(x, victim.bounds)
        checks.at_least("tries", tries, 1, integer=True)
        if init is not None:
            checks.same_shape("init", init, x)
            checks.images(init, victim.bounds, "init")
            init = init.detach().to(x)
        if pool is None:
            return cls(init, None, tries, normal)
        images, label = read_labeled(pool, "pool")
        checks.images(images, victim.bounds, "pool")
        if images.shape[1:] != x.shape[1:]:
            raise ValueError(f"pool: want samples of shape {tuple(x.shape[1:])}, got {tuple(images.shape[1:])}")
        return cls(init, (images.to(x), label.to(x.device)), tries, normal)

    def prepare(self, session: Session, live: Live) -> None:
        """Leave at the samples what :meth:`point` needs."""
        weight = [live.noise.uniform((1, j), (), live.x.dtype) for j in range(1, self.tries)]
        live.weight = torch.stack([torch.ones_like(live.x.flatten(1)[:, 0]), *weight], dim=1)
        if self.init is not None:
            live.init = clip(self.init[live.rows].to(live.x), session.low, session.high)
        if self.pool is None:
            return
        images, label = self.pool
        fits = label != live.y[:, None] if live.target is None else label == live.target[:, None]
        far = torch.cdist(live.x.flatten(1), images.to(live.x).flatten(1), compute_mode=_EXACT)
        order = torch.where(fits, far, torch.inf).argsort(dim=1, stable=True)[:, : self.tries]
        live.order = torch.where(fits.gather(1, order), order, -1)

    def point(self, session: Session, live: Live, number: Tensor) -> Tensor:
        """The point of each sample that has the ``number`` (n,), from 0 on."""
        width = session.high - session.low
        if self.normal:
            noise = live.x + width * live.noise.normal((0, number), live.x.shape[1:], live.x.dtype)
            noise = clip(noise, session.low, session.high)
        else:
            noise = session.low + width * live.noise.uniform((0, number), live.x.shape[1:], live.x.dtype)
        weight = live.weight.gather(1, number[:, None])[:, 0]
        points = clip(blend(live.x, noise, weight), session.low, session.high)
        if self.pool is not None:
            k = number - int(self.init is not None)
            known = (k >= 0) & (k < live.order.shape[1])
            index = live.order.gather(1, torch.where(known, k, 0)[:, None])[:, 0]
            overwrite(points, known & (index >= 0), self.pool[0].to(points)[index.clamp_min(0)])
        if self.init is not None:
            overwrite(points, number == 0, live.init)
        return points


_EXACT = "donot_use_mm_for_euclid_dist"  # a product would round a row otherwise in another batch


class Search:
    """One hard-label attack: its questions, the nearest success of each sample, and the moves that all of them share.

    Attributes:
        session: the conversation with the victim.
        ball: in which norm distances are measured.
        best: the nearest success of each sample.
    """

    def __init__(self, session: Session, ball: Norm, seed: int) -> None:
        self.session, self.ball, self.best, self._seed = session, ball, closest(session), seed

    def can_pay(self, live: Live, cost: int = 1) -> Tensor | None:
        """Which samples have ``cost`` more queries, and still one for the step off the boundary: bool (n,), or None."""
        return self.session.can_pay(live, cost + 1)

    def inside(self, points: Tensor) -> Tensor:
        """``points`` clipped to the box."""
        return clip(points, self.session.low, self.session.high)

    def clip_(self, points: Tensor) -> Tensor:
        """``inside`` in place."""
        return clip_(points, self.session.low, self.session.high)

    def ask(self, points: Tensor, live: Live, length: Tensor | None = None) -> Tensor:
        """Whether the goal is met at ``points``, (n,), one query each; the nearest successes are kept.

        ``length``: their distances from x, (n,), where they are known.
        """
        met = self.session.ask_labels(points, live)[1]
        self.best.keep(live, points, self.ball.length(points - live.x) if length is None else length, met)
        return met

    def begin(self, starts: Starts) -> Live:
        """The samples for which a start was found, as ``live.points``; of the others a warning names the rows."""
        live = self.session.live(noise=self.session.noise(self._seed))
        starts.prepare(self.session, live)
        for j in range(starts.tries):
            live.keep(self.can_pay(live))
            if not len(live):
                break
            number = torch.full_like(live.rows, j)
            live.leave(self.ask(starts.point(self.session, live, number), live))
        return self.found()

    def found(self) -> Live:
        """The samples that have had a success, with the nearest as ``live.points``; a warning names the others."""
        won = self.best.value.isfinite()
        rows = self.session.active[~won].tolist()
        if rows:
            more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
            checks.warn(
                f"init: want a start that meets the goal, found none for rows {rows[:10]}{more}; their attack has "
                "failed. Give one per sample as init=, or labeled images to choose from as pool="
            )
        live = self.session.live(won, noise=self.session.noise(self._seed))
        live.points = self.best.points[won]
        return live

    def bisect(self, live: Live, between: Callable[[Tensor, Tensor, Tensor], Tensor], halvings: int) -> None:
        """Move ``live.points``, which meet the goal, towards x, to the boundary; they go on meeting it.

        Args:
            between: (x, far, t) → the points at t of the way from x to the far ends, t (n,) in (0, 1).
            halvings: the last t is within 2^−halvings of the boundary. A query each; who cannot pay is left out.
        """
        live.far = live.points
        live.points = live.points.clone()
        live.under, live.over = torch.zeros_like(live.x.flatten(1)[:, 0]), torch.ones_like(live.x.flatten(1)[:, 0])
        for _ in range(halvings):
            live.keep(self.can_pay(live))
            if not len(live):
                return
            middle = (live.under + live.over) / 2
            points = self.inside(between(live.x, live.far, middle))
            met = self.ask(points, live)
            overwrite(live.points, met, points)
            live.under, live.over = torch.where(met, live.under, middle), torch.where(met, middle, live.over)

    def result(self) -> AttackResult:
        """The nearest successes, a little off the boundary, checked once more; x where there is none."""
        session, points = self.session, self.best.points
        live = session.live(self.best.value.isfinite())
        live.keep(session.can_pay(live))
        if len(live):
            place = torch.arange(len(points), device=points.device) if live.place is None else live.place
            near, part = points[place], max(1e-4, 2 * session.rounding)
            off = self.inside(torch.lerp(live.x, near, 1 + part))
            overwrite(near, session.ask_labels(off, live)[1], off)
            points[place] = near
        return session.result(points, asked=True, revert=True)


def blend(x: Tensor, far: Tensor, t: Tensor) -> Tensor:
    """(1 − t)·x + t·far."""
    return torch.lerp(x, far, beside(t, x))


def parts(count: int, d: int) -> Iterator[tuple[int, int]]:
    """``count`` directions of d elements in portions that fit into memory: (number, size) of each."""
    size = max(1, _TOGETHER // d)
    for number, first in enumerate(range(0, count, size)):
        yield number, min(size, count - first)


def halvings_for(accuracy: float, dtype: torch.dtype) -> int:
    """How often 1 is halved until it is at most the accuracy, which is no finer than rounding allows."""
    return max(0, math.ceil(-math.log2(max(accuracy, 8 * torch.finfo(dtype).eps))))
