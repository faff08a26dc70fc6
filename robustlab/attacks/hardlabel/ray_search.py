"""What OPT and Sign-OPT share: how far the boundary is in a direction, and the search for a better direction.

The distance of the boundary from x in the direction θ is a continuous function g(θ) of it, even where labels are all
that is told. The ray x + s·θ is clipped to the box, and its points are named by their own distance from x
(:meth:`RaySearch.on_ray`): what is asked about is what is measured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustlab.attacker.live import Live
from robustlab.attacker.parts import beside
from robustlab.attacker.session import Session
from robustlab.attacks.hardlabel.boundary_search import Search, Starts
from robustlab.geometry.portions import IN_CACHE, portions
from robustlab.geometry.projections import clip_, l2_filling, room_of

BRACKET = 20
"""Queries that a search along a ray costs, about."""
AT_ONCE = 4 * IN_CACHE
"""Elements of points on rays that are made together: that takes many short calls."""


class RaySearch(Search):
    """A search in which ``live.theta`` is a unit direction of each sample, ``live.g`` the boundary's distance in it."""

    def aim(self, starts: Starts, accuracy: float) -> Live:
        """The samples for which a start was found, with the unit direction ``live.theta`` of the nearest boundary.

        All starts are tried. A direction is bisected only if the goal is met in it nearer than in those before. Who is
        done with one start goes on to the next at once, so that all samples ask in each round.
        ``live.g`` is the distance to the boundary along it.
        """
        live = self.session.live(noise=self.session.noise(self._seed))
        starts.prepare(self.session, live)
        rays = live.part()
        rays.slot, rays.number = torch.arange(len(rays), device=live.rows.device), torch.zeros_like(live.rows)
        rays.points, rays.done = live.x.clone(), torch.ones_like(live.rows, dtype=torch.bool)
        rays.keep(self.can_pay(rays))
        while len(rays):
            self._next_start(starts, accuracy, live, rays)
            asked, met, done = self._ask_along(rays, only_nearer=True)
            won = met.nonzero().flatten()
            rays.points.index_copy_(0, won, asked[won])
            paying = self.can_pay(rays)
            rays.done = done if paying is None else done | ~paying
            length = self.ball.length(rays.points - rays.x)
            self.best.keep(rays, rays.points, length, rays.done & rays.over.isfinite())
            rays.number = rays.number + rays.done
            more = rays.number < starts.tries
            rays.keep(more if paying is None else more & paying)
        live = self.found()
        away = live.points - live.x
        live.theta, live.g = self.ball.steepest(away), self.ball.length(away)
        return live

    def _next_start(self, starts: Starts, accuracy: float, live: Live, rays: Live) -> None:
        """Turn the ``rays`` that are done to the next start of their samples, of which ``live`` knows all."""
        done = rays.done.nonzero().flatten()
        if not len(done):
            return
        among = torch.zeros_like(live.rows, dtype=torch.bool).index_fill_(0, rays.slot[done], True)
        some = live.part(among, only=("noise", "weight", "init", "order"))
        away = starts.point(self.session, some, rays.number[done]) - some.x
        length = torch.minimum(self.ball.length(away), self.best.of(rays)[done])
        ray = self._ray(some.x, self.ball.steepest(away), length, torch.full_like(length, accuracy))
        for name, value in ray.items():
            setattr(rays, name, getattr(rays, name).index_copy_(0, done, value) if hasattr(rays, name) else value)

    def nearer(self, live: Live, theta: Tensor, length: Tensor, accuracy: Tensor) -> Tensor:
        """The distance of the boundary along ``theta`` where that is below ``length``, (n,); ∞ elsewhere."""
        g, points = self.distance(live, theta, length, accuracy, only_nearer=True)
        self.best.keep(live, points, self.ball.length(points - live.x), g.isfinite())
        return g

    def distance(
        self, live: Live, theta: Tensor, guess: Tensor, accuracy: Tensor, *, only_nearer: bool = False
    ) -> tuple[Tensor, Tensor]:
        """g(θ): how far from x the boundary is in a direction, on the ray as it is clipped (:meth:`RaySearch.on_ray`).

        From the guess it goes out, or in, by 1 %, 2 %, 4 %, … until the boundary is between two points; these are
        bisected. What is returned is the point that meets the goal. The end of the clipped ray ends the search.

        Args:
            live: samples; a place may be named more than once, and then each of its rows has a direction of its own.
            theta: directions (n, ...).
            guess: a distance (n,) above 0.
            accuracy: of g, (n,), relative to the guess; it is no finer than rounding allows.
            only_nearer: give up where the guess itself does not meet the goal.

        Returns:
            g (n,), ∞ where the goal was not met or the budget ended before, and the points (n, ...).
        """
        points, g, seek = live.x.clone(), torch.full_like(guess, torch.inf), live.part()
        seek.place, seek.slot = None, torch.arange(len(g), device=g.device)
        for name, value in self._ray(live.x, theta, guess, accuracy).items():
            setattr(seek, name, value)
        while len(seek):
            seek.keep(self._each_can_pay(seek))
            if not len(seek):
                break
            asked, met, done = self._ask_along(seek, only_nearer)
            won = met.nonzero().flatten()
            points.index_copy_(0, seek.slot[won], asked[won])
            g[seek.slot] = seek.over
            seek.leave(done)
        return g, points

    def _ray(self, x: Tensor, theta: Tensor, guess: Tensor, accuracy: Tensor) -> dict[str, Tensor]:
        """What a search in the directions ``theta`` keeps of each: the ray, and where on it the boundary may be."""
        room = rooms(self.session, x, theta)
        end = self.ball.length(room)
        return {
            "theta": theta, "room": room, "end": end, "at": torch.minimum(guess, end), "step": 0.01 * guess,
            "fine": guess * accuracy.clamp_min(8 * torch.finfo(guess.dtype).eps),
            "under": torch.zeros_like(guess), "over": torch.full_like(guess, torch.inf),
        }  # fmt: skip

    def _ask_along(self, seek: Live, only_nearer: bool) -> tuple[Tensor, Tensor, Tensor]:
        """One question about each ray: the points (n, ...), whether the goal is met there, and whose search is over."""
        asked = torch.empty_like(seek.x)
        for rows in portions(asked, AT_ONCE):
            self.on_ray(seek.x[rows], seek.theta[rows], seek.room[rows], seek.at[rows], out=asked[rows])
        met = self.session.ask_labels(asked, seek)[1]
        seek.under, seek.over = torch.where(met, seek.under, seek.at), torch.where(met, seek.at, seek.over)
        outward = seek.over.isinf()
        done = (seek.over - seek.under <= seek.fine) | (outward if only_nearer else outward & (seek.under >= seek.end))
        back = torch.maximum(seek.over - seek.step, seek.over / 2)
        inward = torch.where(seek.under == 0, back, (seek.under + seek.over) / 2)
        out = torch.minimum(seek.under + seek.step, seek.end)
        seek.at, seek.step = torch.where(outward, out, inward), 2 * seek.step
        return asked, met, done

    def _each_can_pay(self, live: Live) -> Tensor | None:
        """As :meth:`can_pay`, where a place is named more than once: its first rows, as far as its budget goes."""
        if self.session.all_surely_pay(2):
            return None
        assert self.session.budget is not None
        order = torch.arange(len(live), device=live.rows.device) - torch.searchsorted(live.rows, live.rows)
        return self.session.queries[live.rows] + order + 3 <= self.session.budget

    def on_ray(self, x: Tensor, theta: Tensor, room: Tensor, length: Tensor, *, out: Tensor) -> None:
        """Put into ``out`` the point of the ray x + s·θ, clipped to the box, whose distance ‖·‖₂ from x is ``length``.

        A clipped ray bends where an element reaches its end, and ends in a corner; its points are named by their own
        distance, so that what is asked about is what is measured.
        """
        rows = theta.flatten(1)
        size = rows.abs()
        delta = size * l2_filling(size, room, length[:, None])
        torch.minimum(delta, room, out=delta).mul_(torch.sign(rows, out=size))
        clip_(torch.add(x, delta.reshape(x.shape), out=out), self.session.low, self.session.high)

    def line_search(self, live: Live, gradient: Tensor, accuracy: Tensor, most: int = 15) -> None:
        """Turn ``live.theta`` against a gradient of g, θ ← θ − α·gradient, by the step α that brings g down most.

        α is doubled as long as g falls; if it has not fallen at all, α is quartered until it does. Both at most
        ``most`` times. Where nothing helps θ stays, and α is the last.
        """
        live.turn, start = gradient, live.g
        for factor in (2.0, 0.25):
            trying = live.part(live.g >= start)
            trying.at = (live.g >= start).nonzero().flatten()
            trying.origin = trying.theta
            for _ in range(most):
                trying.keep(self.can_pay(trying))
                if not len(trying):
                    break
                at = trying.at
                alpha = live.alpha[at] if factor > 1 else live.alpha[at] * factor
                theta = self.ball.steepest(trying.origin - beside(alpha, trying.turn) * trying.turn)
                g = self.nearer(trying, theta, live.g[at], accuracy[at])
                fell = g < live.g[at]
                live.theta = live.theta.index_copy(0, at[fell], theta[fell])
                live.g = live.g.index_copy(0, at[fell], g[fell])
                live.alpha = live.alpha.index_copy(0, at, torch.where(fell & (factor > 1), alpha * factor, alpha))
                trying.keep(fell if factor > 1 else ~fell)


def rooms(session: Session, x: Tensor, theta: Tensor) -> Tensor:
    """How far each element of x may go in the direction's sign until it is at an end of the box, (n, d)."""
    low, high = ((end - x).flatten(1) for end in (session.low, session.high))
    return room_of(theta.flatten(1), low, high)


def refine(live: Live) -> None:
    """Where α has fallen below 1e-4 it begins at 1 again, with a β of a tenth; who has β below 1e-8 is done."""
    small = live.alpha < 1e-4
    live.alpha, live.beta = torch.where(small, 1.0, live.alpha), torch.where(small, live.beta / 10, live.beta)
    live.keep(live.beta >= 1e-8)


def turned(theta: Tensor, beta: Tensor, u: Tensor) -> Tensor:
    """(θ + βu)/‖θ + βu‖ for m unit directions u of each sample, (n, m, ...)."""
    return unit_((beta.reshape(-1, *[1] * (u.dim() - 1)) * u).add_(theta.unsqueeze(1)))


def unit_(rows: Tensor) -> Tensor:
    """(n, m, ...) of length 1 each, in place."""
    rows /= rows.flatten(2).norm(dim=2).reshape(*rows.shape[:2], *[1] * (rows.dim() - 2))
    return rows
