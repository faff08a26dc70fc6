"""Square Attack.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via random
search" (2020), algorithms 1 to 3, on the budget-based formulation (3) of the survey with scores alone. Random search:
change δ inside one random square, keep the change if the attacker's loss g fell or the goal is met,

    δ′ = δ changed in a square of side round(√(p_i·H·W))        δ ← δ′ if g(x + δ′) < g(x + δ)

A share p_i of the pixels is changed at query i: ``p_init`` at first, and half as much after each of the queries 10, 50,
200, 500, 1000, 2000, 4000, 6000 and 8000.

ℓ∞: every element of δ is ±ε, clipped to the box. The start has vertical stripes one pixel wide; in a square, each
channel gets one random sign.

ℓ2: a window W of δ takes the shape η of two adjacent bumps of opposite sign (its values fall off with the distance from
the two centers as Σ_{c ≥ distance} 1/(c + 1)²), added to what was there,

    δ_W ∝ ±η/‖η‖ + δ_W/‖δ_W‖        with ‖δ_W‖² = ‖δ_{W ∪ W′}‖² + (ε² − ‖δ‖²)/C  in each of C channels,

and pays for it with the budget of a second window W′, which is set to 0, and with its part of what the box had left
unspent. The start has such bumps on a grid of 5 × 5 tiles.

Different here: each sample has windows of its own, drawn by its own id, where the authors' code draws one for the whole
batch; windows reach the last row and column, as in the paper; the start is one of the ``queries``; for images that are
smaller than 5 pixels the grid has tiles of one pixel. The schedule is that of the authors' code (the paper does not
halve at 500).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.parts import beside, overwrite
from robustlab.attacker.results import AttackResult
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Model, Victim
from robustlab.geometry.norms import get_norm
from robustlab.geometry.projections import clip, clip_
from robustlab.progress import bar

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # in a run of 10,000 queries


def square(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    norm: Literal["l2", "linf"] = "linf",
    eps: float | Tensor,
    queries: int = 5000,
    p_init: float = 0.8,
    loss: LossName | LossFunction | None = None,
    restarts: int = 1,
    rescale: bool = False,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Square Attack: random search over squares, with scores alone.

        minimize_δ g(δ | x, y)  subject to ‖δ‖_p ≤ ε, x + δ ∈ box

    Args:
        victim: a Victim, or a model with logits (N, K); soft access suffices.
        x: images (N, C, H, W), in the box.
        y: (N,) labels; None takes the model's prediction.
        norm: ``"linf"`` or ``"l2"``.
        eps: radius ε ≥ 0 in units of x; a number or (N,).
        queries: at most so many points are tried in each restart.
        p_init: share of the pixels changed at first, in (0, 1].
        loss: attacker's loss g, minimized (:mod:`robustlab.attacker.losses`); None means ``"margin"`` and, with a
            target, ``"ce"``, as in the authors' code.
        restarts: number of random starts; a sample that is done skips the rest.
        rescale: stretch the schedule of p, which is made for 10,000 queries, to ``queries``.
        target: a label, or (N,), for a targeted attack.
        seed, ids: randomness, keyed by the seed and each sample's id (default 0 … N − 1).
        progress: show a bar in a terminal.

    Returns:
        AttackResult; a sample that was not fooled gets its point of smallest g. Cost without success: ``queries``
        per restart and 1 for the clean check. A success has 1 more, for the final check. No gradients.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Andriushchenko et al. (2020), algorithms 1 to 3.
    """
    checks.one_of("norm", norm, ("l2", "linf"))
    checks.at_least("queries", queries, 1, integer=True)
    checks.at_least("restarts", restarts, 1, integer=True)
    checks.positive("p_init", p_init)
    checks.at_most("p_init", p_init, 1)
    default: LossName = "margin" if target is None else "ce"
    g, victim = attacker_loss(default if loss is None else loss), Victim.of(victim)
    checks.images(x, victim.bounds)
    checks.pictures(x)
    eps = checks.radius(eps, x, norm, victim.bounds)
    with victim.session(x, y, target=target, ids=ids, access="soft", loss=g, first_round=1) as session:
        best, search = Best(session), (_Linf if norm == "linf" else _L2)(session)
        for restart in range(restarts):
            live = session.live(session.unmet() if restart else None, eps=eps, noise=session.noise(seed))
            live.points, live.loss = live.x.clone(), torch.full_like(live.eps, torch.inf)
            live.keep(session.can_pay(live))
            for i in bar(range(queries), show=progress, label="square"):
                if not len(live):
                    break
                p = _share(i, queries, p_init, rescale)
                points = search.start(live, (restart, 0)) if i == 0 else search.propose(live, (restart, i), p)
                answer = session.ask(points, live, g)
                value = torch.where(answer.met, -torch.inf, answer.loss)
                better = value < live.loss
                overwrite(live.points, better, points)
                live.loss = torch.where(better, value, live.loss)
                paying = session.can_pay(live)
                stay = ~answer.met if paying is None else ~answer.met & paying
                if i + 1 == queries or not bool(stay.all()):  # images are not copied at every query
                    best.keep(live, live.points, live.loss)
                    live.keep(stay)
        return session.result(best.points, asked=True)


def _share(i: int, queries: int, p_init: float, rescale: bool) -> float:
    """p at query i, the start being query 0."""
    place = i - 1 if not rescale else (i - 1) * 10_000 // queries
    return p_init / 2 ** sum(place > h for h in _HALVINGS)


class _Search(ABC):
    """How the points of live images are changed."""

    def __init__(self, session: Session) -> None:
        self.low, self.high = session.low, session.high
        self.channels, self.height, self.width = session.x.shape[1:]
        self._square: tuple[int, Tensor, Tensor] = 0, session.x, session.x  # a side, what it leaves, places in a square

    @abstractmethod
    def start(self, live: Live, draw: tuple[int, int]) -> Tensor:
        """The first point of every sample."""

    @abstractmethod
    def propose(self, live: Live, draw: tuple[int, int], p: float) -> Tensor:
        """``live.points`` with a share ``p`` of their pixels changed."""

    def windows(self, unit: Tensor, side: int) -> Tensor:
        """Uniform numbers (..., 2) as squares in the image: the (..., side²) places of their pixels in its rows."""
        if self._square[0] != side:  # the same for many queries in turn
            along = torch.arange(side, device=unit.device)
            reach = unit.new_tensor([self.height - side + 1, self.width - side + 1])
            self._square = side, reach, (along[:, None] * self.width + along).flatten()
        _, reach, places = self._square
        down, right = (unit * reach).long().unbind(dim=-1)
        return torch.add(right, down, alpha=self.width)[..., None] + places


class _Linf(_Search):
    """δ = ±ε."""

    def start(self, live: Live, draw: tuple[int, int]) -> Tensor:
        ends = [self.moved(live, torch.full_like(live.x, sign)).flatten(2) for sign in (-1, 1)]
        live.ends = torch.cat(ends, dim=2)  # all that an element can be, (n, C, 2·H·W)
        unit = live.noise.uniform(draw, (self.channels * self.width,), torch.float64)
        return self.moved(live, _signs(unit, live.x).reshape(-1, self.channels, 1, self.width))

    def propose(self, live: Live, draw: tuple[int, int], p: float) -> Tensor:
        side = min(max(round(math.sqrt(p * self.height * self.width)), 1), self.height, self.width)
        unit = live.noise.uniform(draw, (2 + self.channels,), torch.float64)
        place = self.windows(unit[:, :2], side)[:, None].expand(-1, self.channels, -1)
        up = (unit[:, 2:, None] >= 0.5) * (self.height * self.width)
        changed = live.ends.gather(2, place + up)
        return live.points.flatten(2).scatter(2, place, changed).reshape(live.points.shape)

    def moved(self, live: Live, sign: Tensor) -> Tensor:
        return clip(torch.addcmul(live.x, sign, beside(live.eps, sign)), self.low, self.high)


class _L2(_Search):
    """‖δ‖₂ = ε before clipping."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._shapes: tuple[int, Tensor] = 0, session.x  # a side, and both ways in which the bumps of a square lie

    def start(self, live: Live, draw: tuple[int, int]) -> Tensor:
        side = max(min(self.height, self.width) // 5, 1)
        down, right = self.height // side, self.width // side
        unit = live.noise.uniform(draw, (down * right * (self.channels + 1),), torch.float64)
        turned = unit[:, : down * right].reshape(-1, 1, down, right, 1, 1) < 0.5
        sign = _signs(unit[:, down * right :], live.x).reshape(-1, self.channels, down, right, 1, 1)
        bump = _bumps(side, live.x)
        tiles = sign * torch.where(turned, bump, bump.T)  # (n, C, down, right, side, side)
        delta = torch.zeros_like(live.x)
        top, left = (self.height - down * side) // 2, (self.width - right * side) // 2
        patch = tiles.transpose(3, 4).reshape(-1, self.channels, down * side, right * side)
        delta[:, :, top : top + down * side, left : left + right * side] = patch
        return self.moved(live, delta)

    def propose(self, live: Live, draw: tuple[int, int], p: float) -> Tensor:
        side = max(round(math.sqrt(p * self.height * self.width)), 3) | 1
        side = min(side, self.height, self.width)
        unit = live.noise.uniform(draw, (5 + self.channels,), torch.float64)
        delta = (live.points - live.x).flatten(2)
        both = self.windows(unit[:, :4].reshape(-1, 2, 2), side)  # W and W′, (n, 2, side²)
        into, out_of = (place.expand(-1, self.channels, -1) for place in both.split(1, dim=1))
        if self._shapes[0] != side:  # the same for many queries in turn
            bump = _bumps(side, delta)
            self._shapes = side, torch.stack([bump.T.flatten(), bump.flatten()])
        shape = self._shapes[1][(unit[:, 4] < 0.5).long()][:, None]  # (n, 1, side²)
        fresh = _signs(unit[:, 5:], live.x)[:, :, None] * shape + _unit(delta.gather(2, into))

        square_of = delta.square()
        emptied = torch.zeros_like(delta[:, :1]).scatter_(2, both.flatten(1)[:, None], 1.0)
        unspent = (live.eps[:, None].square() - square_of.sum(dim=(1, 2))[:, None]).clamp_min(0)
        budget = unspent / self.channels + square_of.mul_(emptied).sum(dim=2)  # (n, C)
        delta.scatter_(2, out_of, 0.0).scatter_(2, into, _unit(fresh).mul_(budget.sqrt()[:, :, None]))
        return self.moved(live, delta.reshape(live.x.shape))

    def moved(self, live: Live, delta: Tensor) -> Tensor:
        unit = _unit(delta.flatten(1)).reshape(delta.shape)
        return clip_(unit.mul_(beside(live.eps, delta)).add_(live.x), self.low, self.high)


def _signs(unit: Tensor, like: Tensor) -> Tensor:
    """Uniform numbers (n, m) as random signs in the dtype of the images."""
    return 1 - 2 * (unit < 0.5).to(like.dtype)


def _unit(rows: Tensor) -> Tensor:
    """Rows (..., d) of length 1; 0 where they are 0."""
    return get_norm("l2").steepest(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)


def _bumps(side: int, like: Tensor) -> Tensor:
    """η of (side, side) and length 1: a bump in the upper half, its negative in the lower one."""
    half = side // 2
    parts = [sign * _bump(rows, side, like) for sign, rows in ((1, half), (-1, side - half)) if rows]
    return _unit(torch.cat(parts).flatten()).reshape(side, side)


def _bump(height: int, width: int, like: Tensor) -> Tensor:
    """(height, width), length 1: Σ over c ≥ distance of 1/(c + 1)², in Chebyshev's distance from the center."""
    down = (torch.arange(height, device=like.device) - height // 2).abs()
    right = (torch.arange(width, device=like.device) - width // 2).abs()
    distance = torch.maximum(down[:, None], right)
    terms = torch.arange(1, max(height, width) // 2 + 2, device=like.device, dtype=like.dtype).pow(-2)
    return _unit(terms.flip(0).cumsum(0).flip(0)[distance].flatten()).reshape(height, width)
