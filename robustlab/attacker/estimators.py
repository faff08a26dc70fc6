"""Gradients from values alone: the estimators that attacks on scores, and a poisoner who sees only values, share.

Who sees scores asks for a loss f at points around x, and puts a gradient together from what is heard. All samples are
asked about at once: x is (n, ...), and ``values`` maps points (n, m, ...), m of each sample, to their losses (n, m); of
a session that is :meth:`robustlab.attacker.session.Session.values`. With directions u_1 … u_q of each sample and c such
that E[c·u uᵀ] is the identity,

    forward       ĝ = c/q Σ_i (f(x + μ u_i) − f(x))/μ · u_i                q values, and one at x
    central       ĝ = c/q Σ_i (f(x + μ u_i) − f(x − μ u_i))/(2μ) · u_i     2q values, in antithetic pairs
    coordinates   ĝ_j = (f(x + h e_j) − f(x − h e_j))/(2h)                 2 values for each coordinate j

u is Gaussian (c = 1) or uniform on the unit sphere of R^d (c = d). Both random estimates are unbiased on quadratics for
every μ; in general they estimate the gradient of f averaged over the μ-ball, or over N(x, μ²I). Where f is linear on
that scale, E⟨ĝ, g⟩ / (E‖ĝ‖² ‖g‖²)^½ is √(q/(q + d − 1)) on the sphere and √(q/(q + d + 1)) for Gaussian directions.

**The box.** No probe leaves it, and the differences say so. A pair that would leave the box is moved inside as a whole,
so that its difference is along u, whole and centered a little off x. A probe of ``forward`` is clipped, since f(x) is
shared by all; its slope in coordinate j is then multiplied by the probability that x_j + μ u_j stays inside, by which
the estimate is divided: at an end of the box that is ½. (On the sphere it is computed as if u were Gaussian, which is
off by O(1/d).) A coordinate at an end is differenced on one side.

**Fewer dimensions.** With a search space A of :mod:`robustlab.attacks.softlabel.spaces`, estimate the gradient of
z ↦ f(x + A(z)), ``lambda z: values(clip(x[:, None] + A(z), low, high))``, with any estimator and without ``box``. What
is clipped there has no slope.

Source: Liu et al., "A primer on zeroth-order optimization in signal processing and machine learning" (2020), section
II; Nesterov and Spokoiny, "Random gradient-free minimization of convex functions" (2017), for the averaged f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robustlab import checks
from robustlab.attacker.domain import Bound
from robustlab.attacker.live import Live
from robustlab.attacker.losses import LossFunction
from robustlab.attacker.session import Session
from robustlab.geometry.keyed import Draw, Noise
from robustlab.geometry.portions import portions
from robustlab.geometry.projections import clip_

Values = Callable[..., Tensor]
"""From points (n, m, ...) to their values (n, m), or (n, m, r) of r functions in :func:`forward`. NaN where nothing is
heard: the mean leaves that direction out. Where samples have different numbers of directions, a mask (n, m) of those to
ask about comes second."""
Kind = Literal["gaussian", "sphere"]
Ends = tuple[Bound, Bound]
AT_ONCE = 2**22  # elements of points that are made together
_BLOCK = 16  # directions drawn by one key


class Directions:
    """q random directions for each sample, drawn when they are asked for, and the same each time.

    Their numbers are the quick ones of :class:`robustlab.geometry.keyed.Noise`, of 24 bits, so that both dtypes walk
    along the same directions; a draw for each query would else cost as much as a small model's answer.

    Args:
        noise: randomness of the n samples.
        draw: names the draw; directions of another name are independent.
        q: how many, at least 1; or (n,) int64, a number for each sample, beyond which its directions are 0.
        like: (n, ...), of the shape and dtype of a direction for each sample.
        kind: ``"gaussian"``, or ``"sphere"`` for length 1.
    """

    def __init__(self, noise: Noise, draw: Draw, q: int | Tensor, like: Tensor, kind: Kind = "gaussian") -> None:
        self._numbers = (sorted(set(q.tolist())) or [1]) if isinstance(q, Tensor) else [q]  # of no sample, any
        self._each = q if isinstance(q, Tensor) and len(self._numbers) > 1 else None
        checks.at_least("q", self._numbers[0], 1, integer=True)
        checks.one_of("kind", kind, ("gaussian", "sphere"))
        self.noise, self.draw, self.q, self.like, self.kind = noise, draw, self._numbers[-1], like, kind
        self.dimension = like.shape[1:].numel()
        self.weight = 1.0 if kind == "gaussian" else float(self.dimension)
        # The deviation of a coordinate, near the ends.
        self.deviation = 1.0 if kind == "gaussian" else (self.dimension + 2) ** -0.5
        self._drawn: list[Tensor] | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """Parts (n, m, ...) of them, as many as memory bears; not to be changed."""
        if self.q * self.like.numel() > 2 * AT_ONCE:
            return self._parts()
        if self._drawn is None:  # estimates at two points, or of two losses, ask for them twice
            self._drawn = list(self._parts())
        return iter(self._drawn)

    def _parts(self) -> Iterator[Tensor]:
        blocks = max(1, AT_ONCE // (_BLOCK * max(1, self.like.numel())))
        for first in range(0, self.q, _BLOCK * blocks):
            starts = range(first, min(self.q, first + _BLOCK * blocks), _BLOCK)
            drawn = [self._block(start) for start in starts]
            yield drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim=1)

    def own(self, first: int, m: int) -> Tensor | None:
        """Which of the m directions from ``first`` on are a sample's own, (n, m); None where all are."""
        if self._each is None:
            return None
        return torch.arange(first, first + m, device=self._each.device) < self._each[:, None]

    def _block(self, start: int) -> Tensor:
        count, like = min(_BLOCK, self.q - start), self.like
        if self._each is None:
            u = self._made(self.noise, start, count)
        else:
            u = like.new_zeros(len(like), count, self.dimension)
            fewest = self._numbers[0]
            if fewest > start:
                u[:, : fewest - start] = self._made(self.noise, start, min(count, fewest - start))
            for number in (number for number in self._numbers[1:] if number > start):
                rows, some = (self._each >= number).nonzero().flatten(), min(count, number - start)
                u[rows, :some] = self._made(self.noise.take(rows), start, some)
        return u.reshape(len(like), count, *like.shape[1:])

    def _made(self, noise: Noise, start: int, count: int) -> Tensor:
        keys = (self.draw,) if isinstance(self.draw, int) else tuple(self.draw)
        u = noise.quick_normal((*keys, start // _BLOCK), (count, self.dimension), self.like.dtype)
        if self.kind == "sphere":
            for rows in portions(u):
                u[rows] /= torch.linalg.vector_norm(u[rows], dim=2, keepdim=True)
        return u


def difference_step(dtype: torch.dtype) -> float:
    """h = ε^⅓ with the machine's ε: 6.1e-6 in float64, 4.9e-3 in float32.

    The error of a central difference is h²·f‴/6 of curvature and about ulp(f)/h of rounding. In float32, h = 1e-4 loses
    several percent of the gradient to rounding.
    """
    return float(torch.finfo(dtype).eps ** (1 / 3))


def forward(
    values: Values, x: Tensor, directions: Directions, mu: float, *,
    base: Tensor | None = None, box: Ends | None = None, signs: bool = False,
) -> Tensor:  # fmt: skip
    """One-sided differences along random directions: q values for each sample, and one more without ``base``.

        ĝ = c/q Σ_i (f(x + μ u_i) − f(x))/μ · u_i

    Args:
        values: f, from points (n, m, ...) to (n, m), or of several functions at once to (n, m, r).
        x: (n, ...).
        directions: the u_i.
        mu: μ > 0, in units of x.
        base: f(x), (n,) or (n, r), where it is known.
        box: ends that no probe passes; None for none.
        signs: only the signs of the differences are used, as where nothing else is to be heard.

    Returns:
        ĝ, the shape and dtype of x, or (n, r, ...) with one for each function.

    Source:
        Liu et al. (2020), equation (2) of the primer, and its average over q directions.
    """
    checks.positive("mu", mu)
    base = values(x[:, None])[:, 0] if base is None else base
    mean, first = _Mean(x, mu, signs), 0
    for u in directions:
        points, own = torch.empty_like(u), directions.own(first, u.shape[1])
        for rows in portions(u):
            _inside_(torch.mul(u[rows], mu, out=points[rows]).add_(x[rows, None]), box)
        mean.add(u, (values(points) if own is None else values(points, own)) - base[:, None])
        first += u.shape[1]
    found = mean.of(directions)
    if box is not None:
        found = found / _share_inside(x, mu * directions.deviation, box)[:, None]
    return found if base.dim() == 2 else found.squeeze(1)


def central(
    values: Values, x: Tensor, directions: Directions, mu: float, *, box: Ends | None = None, signs: bool = False
) -> Tensor:
    """Central differences along random directions, in antithetic pairs: 2q values for each sample.

        ĝ = c/q Σ_i (f(x + μ u_i) − f(x − μ u_i))/(2μ) · u_i

    Arguments and result as of :func:`forward`. A pair that would leave the box is moved inside as a whole, so that its
    two points differ by 2μu; an element that is longer than the box is wide takes its two ends.

    Source:
        Liu et al. (2020), the two-point estimate of the primer; Ilyas et al. (2018), antithetic sampling.
    """
    checks.positive("mu", mu)
    mean, first = _Mean(x, 2 * mu, signs), 0
    for u in directions:
        own = directions.own(first, u.shape[1])
        points = u.new_empty(len(u), 2 * u.shape[1], *u.shape[2:])
        for rows in portions(u):
            _pairs(points[rows], x[rows, None], mu * u[rows], box)
        heard = values(points) if own is None else values(points, own.repeat(1, 2))
        up, down = heard.chunk(2, dim=1)
        mean.add(u, up - down)
        first += u.shape[1]
    return mean.of(directions).squeeze(1)


def _pairs(points: Tensor, x: Tensor, step: Tensor, box: Ends | None) -> None:
    """Put x + step and x − step, moved inside as a whole, into the first and the second half of ``points``."""
    up, down = points.chunk(2, dim=1)
    middle = x
    if box is not None:
        reach = step.abs()
        middle = torch.maximum(x, reach + box[0])
        middle = torch.minimum(middle, box[1] - reach, out=middle)
    _inside_(torch.add(middle, step, out=up), box)
    _inside_(torch.sub(middle, step, out=down), box)


class Slopes(NamedTuple):
    """Of chosen coordinates, (n, m) each; ``bend``, the second derivatives, only where f(x) was given."""

    slope: Tensor
    bend: Tensor | None


def coordinates(
    values: Values, x: Tensor, index: Tensor | None = None, *,
    h: float | None = None, base: Tensor | None = None, box: Ends | None = None,
) -> Slopes:  # fmt: skip
    """Central differences in chosen coordinates, two values for each; one-sided at an end of the box.

        slope_j = (f(x + h e_j) − f(x − h e_j))/(2h)        bend_j = (f(x + h e_j) − 2f(x) + f(x − h e_j))/h²

    Args:
        values: f, from points (n, m, ...) to (n, m), better in float64: its differences are small.
        x: (n, ...).
        index: places in the flattened sample, (n, m) int64; None for all of them.
        h: step > 0 in units of x; None means :func:`difference_step` of x's dtype.
        base: f(x), (n,), for the second derivatives.
        box: ends that no probe passes; None for none. What is differenced on one side has bend 0.

    Returns:
        Slopes, in x's dtype.

    Source:
        Chen et al., "ZOO" (2017), equations (6) and (7).
    """
    h = difference_step(x.dtype) if h is None else h
    checks.positive("h", h)
    flat = x.flatten(1)
    index = torch.arange(flat.shape[1], device=x.device).expand_as(flat) if index is None else index
    ends = None if box is None else tuple(torch.as_tensor(end).to(x).expand(x.shape[1:]).flatten() for end in box)
    parts = []
    for places in index.split(max(1, AT_ONCE // max(1, 2 * x.numel())), dim=1):
        here = flat.gather(1, places)
        up, down = here + h, here - h
        if ends is not None:
            up, down = torch.minimum(up, ends[1][places]), torch.maximum(down, ends[0][places])
        points = flat[:, None].repeat(1, 2 * places.shape[1], 1)
        points.scatter_(2, torch.cat([places, places], dim=1)[..., None], torch.cat([up, down], dim=1)[..., None])
        high, low = values(points.reshape(*points.shape[:2], *x.shape[1:])).chunk(2, dim=1)
        above, below = (up - here).to(high), (here - down).to(high)
        slope = (high - low) / (above + below)
        bend = slope
        if base is not None:
            bend = 2 * ((high - base[:, None]) / above - (base[:, None] - low) / below) / (above + below)
        parts.append((slope.to(x.dtype), bend.nan_to_num(0.0, 0.0, 0.0).to(x.dtype)))
    slope, bend = (torch.cat(found, dim=1) for found in zip(*parts, strict=True))
    return Slopes(slope, None if base is None else bend)


def variance_reduced(here: Tensor, there: Tensor, full: Tensor) -> Tensor:
    """SVRG's estimate at x: a cheap one, less its own error at a snapshot x̃.

        v = ĝ(x) − ĝ(x̃) + ĝ_full(x̃)

    ``here`` and ``there`` must come from the same directions, and the same part of a sum. The expectation of v is that
    of ``here``, if ``full`` is unbiased; its variance falls with ‖x − x̃‖ to that of ``full``.

    Source:
        Liu et al., "Zeroth-order stochastic variance reduction for nonconvex optimization" (2018), algorithm 2.
    """
    return here - there + full


def precise(loss: LossFunction) -> LossFunction:
    """The loss, computed in float64: that of a point that is differenced with the float64 values of a session."""

    def of(logits: Tensor, y: Tensor, target: Tensor | None = None, kappa: float = 0.0) -> Tensor:
        return loss(logits.double(), y, target, kappa)

    return of


def loss_at_x(session: Session, live: Live, loss: LossFunction) -> Tensor:
    """The loss of live samples at x, (n,) float64, by the answer to the clean question: no query more."""
    if session.clean is None:  # nobody was asked
        return live.x.new_zeros(len(live), dtype=torch.float64)
    return precise(loss)(session.clean[live.rows], live.y, live.target, session.kappa)


class _Mean:
    """c/q Σ_i s_i u_i with the slopes s_i = difference_i/length, or with the signs of the differences.

    A difference of NaN counts for nothing: nothing was heard of that direction, or of one of its pair.
    """

    def __init__(self, x: Tensor, length: float, signs: bool) -> None:
        self.total: Tensor | float = 0.0  # (n, r, d)
        self.heard: Tensor | float = 0.0  # (n, r)
        self.shape, self.length, self.signs = x.shape[1:], length, signs

    def add(self, u: Tensor, difference: Tensor) -> None:
        """Along u (n, m, ...) the differences (n, m), or (n, m, r) of r functions."""
        difference = difference if difference.dim() == 3 else difference[..., None]
        self.heard = self.heard + (difference == difference).sum(dim=1)
        slope = difference.sign() if self.signs else difference / self.length
        self.total = self.total + torch.bmm(slope.nan_to_num(0.0).to(u.dtype).mT, u.flatten(2))

    def of(self, directions: Directions) -> Tensor:
        """(n, r, ...)."""
        assert isinstance(self.total, Tensor) and isinstance(self.heard, Tensor)  # there is a direction
        scale = directions.weight / self.heard.clamp_min(1).to(self.total.dtype)
        return (self.total * scale[..., None]).unflatten(2, self.shape)


def _inside_(points: Tensor, box: Ends | None) -> None:
    if box is not None:
        clip_(points, *box)


def _share_inside(x: Tensor, deviation: float, box: Ends) -> Tensor:
    """The probability that N(x_j, deviation²) is in the box, which is E[u·clip(x + μu)]/μ by Stein's lemma."""
    above, below = (torch.as_tensor(end).to(x) for end in (box[1], box[0]))
    scale = 1 / (deviation * math.sqrt(2))
    return 0.5 * (torch.erf((above - x) * scale) + torch.erf((x - below) * scale))
